"""Which rows are kept, against turns taken one by one; and batches of rows of different length."""

import pytest
import torch

from method_oracles import rows_in_turn
from models import prompts, texts, vectors
from retain.buffer import as_batch, chosen, classes_in, keys, named, read, stacked
from retain.task import Task


@pytest.mark.parametrize("count", [1, 2, 5, 11, 40])
@pytest.mark.parametrize("kinds", [1, 3, 8])
def test_cells_take_turns(count, kinds):
    generator = torch.Generator().manual_seed(count)
    cells = torch.randint(kinds, (23,), generator=generator) ** 2 // kinds  # some of many rows, some of few
    lots = keys(torch.arange(23), seed=count)
    assert chosen(lots, cells, count).tolist() == rows_in_turn(lots.tolist(), cells.tolist(), count)


@pytest.mark.parametrize("balanced", [True, False])
def test_choosing_among_what_was_chosen_is_choosing_among_all_rows_ever_seen(balanced):
    lots = keys(torch.arange(60), seed=1)
    tasks = torch.arange(3).repeat_interleave(torch.tensor([30, 10, 20]))
    cells = tasks * balanced
    kept = torch.arange(0)
    for task in range(3):
        among = torch.cat([kept, (tasks == task).nonzero()[:, 0]])
        kept = among[chosen(lots[among], cells[among], 12)]
    assert torch.equal(kept, chosen(lots, cells, 12))
    assert len(set(tasks[kept].bincount().tolist())) == (1 if balanced else 3)


@pytest.mark.slow
def test_one_cell_is_a_reservoir():
    """Every row of 20 is kept in a quarter of the draws, and no pair more often than another."""
    draws = torch.zeros(2000, 20)
    for seed in range(len(draws)):
        draws[seed, chosen(keys(torch.arange(20), seed), torch.zeros(20), 5)] = 1
    together = draws.T @ draws / len(draws)
    expected = torch.full((20, 20), 5 * 4 / (20 * 19)).fill_diagonal_(0.25)
    assert (together - expected).abs().max() < 4 * (0.25 * 0.75 / len(draws)) ** 0.5


def test_keys_belong_to_the_number_of_a_row_and_the_seed():
    whole = keys(torch.arange(50), seed=3)
    assert torch.equal(keys(torch.tensor([7, 31]), seed=3), whole[[7, 31]])
    assert not torch.equal(keys(torch.arange(50), seed=4), whole)
    assert len(whole.unique()) == 50 and (whole >= 0).all() and (whole < 1).all()


def test_numbers_are_no_tokens_even_if_there_are_as_many():
    (batch,) = texts(sizes=(2,), length=7).train
    batch["attention_mask"][:, 5:] = 0
    ((_, rows),) = stacked([batch | {"labels": torch.randn(2, 7)}])
    assert rows["input_ids"].shape == (2, 5) and rows["labels"].shape == (2, 7)


def test_token_rows_of_any_length_become_one_batch_that_is_no_longer_than_it_has_to_be():
    short, long = (prompts(sizes=(2,), length=n, seed=n).train[0] for n in (5, 9))
    long = {name: x[:, :8] for name, x in long.items()}
    long["attention_mask"][:, 6:], long["labels"][:, 6:] = 0, -100
    ((numbers, rows),) = stacked([short, long], padding=9)
    assert numbers == [0, 1] and {x.shape for x in rows.values()} == {(4, 6)}
    assert rows["input_ids"][:2, 5:].unique().tolist() == [9] and rows["labels"][:2, 5:].unique().tolist() == [-100]
    assert not rows["attention_mask"][:2, 5:].any()
    for name in rows:
        assert torch.equal(rows[name][:2, :5], short[name]) and torch.equal(rows[name][2:], long[name][:, :6])


def test_what_does_not_fit_together_stays_apart():
    pairs = [named((torch.zeros(2, n), torch.zeros(2))) for n in (4, 5, 4)]
    found = {tuple(numbers): rows for numbers, rows in stacked(pairs)}
    assert found.keys() == {(0, 2), (1,)} and found[(0, 2)]["0"].shape == (4, 4)
    inputs, targets = as_batch(found[(1,)])
    assert inputs.shape == (2, 5) and targets.shape == (2,)


def test_rows_are_read_by_their_numbers_from_batches_and_from_data_sets():
    batches = texts(sizes=(4, 4, 3))
    rows = [{key: x[i] for key, x in batch.items()} for batch in batches.train for i in range(len(batch["labels"]))]
    numbers = torch.tensor([0, 3, 5, 10])
    for task in (batches, Task("rows", rows, collate=torch.utils.data.default_collate)):
        found = read(task, numbers)
        assert torch.equal(found["labels"], torch.stack([rows[i]["labels"] for i in numbers]))
        longest = found["input_ids"].shape[1]
        assert torch.equal(found["input_ids"], torch.stack([rows[i]["input_ids"][:longest] for i in numbers]))
        assert torch.equal(classes_in(task), torch.stack([row["labels"] for row in rows]))


def test_sequences_and_numbers_have_no_classes():
    for task in (prompts(), Task("numbers", [(x, x[:, 0]) for x, _ in vectors().train])):
        assert classes_in(task).tolist() == [0] * 11


def test_rows_that_cannot_be_padded_are_refused():
    task = Task("odd", [(torch.zeros(2, n), torch.zeros(2)) for n in (4, 5)])
    with pytest.raises(ValueError, match="task 'odd': its rows differ in shape, and without an attention_mask they"):
        read(task, torch.arange(4))
