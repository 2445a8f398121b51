"""Outputs and targets of every kind of model; rows and subsets."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from models import (
    CLASSES,
    MLP,
    VOCABULARY,
    bare_bert,
    bare_gpt2,
    bare_llama,
    bare_vit,
    images,
    prompts,
    seeded,
    texts,
    tiny_llama,
)
from retain.fisher.running import part_of
from retain.task import CrossEntropy, SquaredError, Task, evaluating, forward, joined


def bare_t5():
    shape = dict(d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return seeded(
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **shape))
    )


# --- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (bare_bert, texts),
        (bare_vit, images),
        (bare_llama, prompts),
        (tiny_llama, prompts),
        (bare_gpt2, prompts),
        (bare_t5, prompts),
    ],
)
def test_likelihood_is_the_one_the_model_itself_reports(build, data):
    """Shifted for causal models only, padding and prompts left out: the mean over tokens is the model's own loss."""
    model = build().eval()
    (batch,) = data(sizes=(5,)).train
    outputs, targets = forward(model, batch)
    nll = CrossEntropy().nll(outputs, targets)
    assert nll.shape == (5,) and outputs.shape[:-1] == targets.shape
    torch.testing.assert_close(nll.sum() / (targets != -100).sum(), model(**batch).loss)


def test_a_regression_head_and_its_targets_have_one_shape():
    model = bare_bert(num_labels=1, problem_type="regression").eval()
    (batch,) = texts(sizes=(5,)).train
    batch = batch | {"labels": batch["labels"].float()}
    outputs, targets = forward(model, batch)
    nll = SquaredError().nll(outputs, targets)
    assert nll.shape == (5,)
    torch.testing.assert_close(2 * nll.mean(), model(**batch).loss)
    with pytest.raises(ValueError, match="real numbers, not classes: .*SquaredError"):
        CrossEntropy().nll(outputs, targets)


def test_batches_and_models_that_need_a_forward_are_refused():
    (batch,) = texts(sizes=(2,)).train
    with pytest.raises(ValueError, match="no 'labels', only input_ids, attention_mask: .* Task a forward"):
        forward(bare_bert(), {k: v for k, v in batch.items() if k != "labels"})
    with pytest.raises(ValueError, match="BertModel gives no logits: it needs a forward of its own"):
        forward(bare_bert().base_model, batch)


# --- rows ------------------------------------------------------------------------------------------------------------


class Numbers(Dataset):
    """Rows (number, number)."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.tensor(i)


def sources(n=11):
    inputs, targets = torch.arange(float(n))[:, None], torch.arange(n)
    pairs = list(zip(inputs, targets, strict=True))
    return {
        "data set": Task("t", Numbers(n)),
        "tensors": Task("t", TensorDataset(inputs, targets)),
        "loader": Task("t", DataLoader(Numbers(n), batch_size=4, shuffle=True)),
        "batches": Task("t", list(zip(inputs.split(4), targets.split(4), strict=True))),
        "mappings": Task("t", [{"x": x, "labels": y} for x, y in zip(inputs.split(4), targets.split(4), strict=True)]),
        "rows": Task("t", pairs, collate=lambda rows: tuple(torch.stack(side) for side in zip(*rows, strict=True))),
    }


@pytest.mark.parametrize("source", sources())
@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("samples", [None, 5, 100])
def test_rows_come_in_order_with_their_numbers(source, size, samples):
    task, seen = sources()[source], []
    for numbers, batch in task.batches(size, samples, seed=2):
        values = tuple(batch.values()) if isinstance(batch, dict) else batch
        assert 1 <= len(numbers) <= size
        assert all(torch.equal(v.flatten().long(), numbers) for v in values)
        seen += numbers.tolist()
    whole = 11 if samples in (None, 100) else samples
    assert seen == sorted(set(seen)) and len(seen) == whole
    assert seen == [int(i) for numbers, _ in sources()["tensors"].batches(7, samples, seed=2) for i in numbers]


@pytest.mark.parametrize("source", sources())
def test_any_rows_can_be_taken(source):
    task, seen = sources()[source], []
    assert sorted(task.order(seed=1).tolist()) == list(range(11)) and task.order(1).tolist() != task.order(2).tolist()
    for numbers, batch in task.take(torch.tensor([9, 2, 3, 10]), 3):
        values = tuple(batch.values()) if isinstance(batch, dict) else batch
        assert len(numbers) <= 3 and all(torch.equal(v.flatten().long(), numbers) for v in values)
        seen += numbers.tolist()
    assert seen == [2, 3, 9, 10]
    assert list(task.take(torch.tensor([], dtype=torch.long), 3)) == []


def test_subsets_of_other_seeds_are_others():
    task = Task("t", Numbers(1000))
    first, second = (torch.cat([n for n, _ in task.batches(50, 100, seed)]) for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("source", sources())
def test_joined_has_all_rows(source):
    one, two = sources(5)[source], sources(3)[source]
    task = joined([one, two])
    values = torch.cat([list(b.values() if isinstance(b, dict) else b)[1] for _, b in task.batches(2)])
    assert values.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert task.loss is two.loss and task.known


def test_joined_lets_all_classes_compete_where_the_task_is_not_known():
    tasks = [replace(sources()["tensors"], known=False, loss=CrossEntropy(torch.arange(3))) for _ in range(2)]
    whole = joined(tasks)
    assert whole.loss.groups is None and not whole.known


def test_parts_and_sums_of_tasks_keep_their_forward():
    def plain(model, batch):
        return model(batch[0]), batch[1]

    (task,) = [Task("t", TensorDataset(torch.zeros(3, 1), torch.zeros(3)), forward=plain, one_by_one=True)]
    for made in (joined([task, task]), part_of(task, torch.arange(2), 2)):
        assert made.forward is plain and made.one_by_one
    assert [len(n) for n, _ in task.measured(torch.arange(3), 16)] == [1, 1, 1]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1), torch.tensor(0))])


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), iter([])], ids=["data set", "loader", "iterator"])
def test_data_that_cannot_be_counted_are_refused(data):
    with pytest.raises(ValueError, match="counted and read again"):
        next(Task("t", data).batches(2))


@pytest.mark.parametrize("data", [[], Numbers(0)], ids=["batches", "data set"])
def test_no_rows(data):
    with pytest.raises(ValueError, match="no training rows"):
        next(Task("t", data).batches(2))


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ({"input_ids": [1, 2], "labels": [1, 2]}, "'input_ids' holds a list, not a tensor"),
        ({"x": torch.zeros(3), "labels": torch.tensor(1)}, r"'labels' has the shape \(\), without a dimension of rows"),
        ({"input_ids": torch.zeros(3).long(), "labels": torch.zeros(3).long()}, r"'input_ids' has the shape \(3,\)"),
        ((torch.zeros(3), torch.tensor(1)), r"1 has the shape \(\)"),
        ((torch.zeros(3, 2), torch.zeros(2)), r"different numbers of rows \(0: 3, 1: 2\)"),
        ("a text", "a str, not a mapping or a pair of tensors"),
        (torch.zeros(3), "a Tensor, not a mapping or a pair of tensors"),
    ],
)
def test_a_list_of_rows_is_not_taken_for_one_of_batches(element, message):
    whole = (torch.zeros(3, 2), torch.zeros(3).long())
    with pytest.raises(ValueError, match=f"task 't': .* its element 1 is none: .*{message}.* are rows, give collate="):
        Task("t", [whole, element])
    Task("t", [whole, element], collate=list)


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_that_cannot_name_a_folder(name):
    with pytest.raises(ValueError, match="name"):
        Task(name, [])


def test_evaluating_gives_every_module_its_own_mode_back():
    model = nn.Sequential(MLP(), nn.Dropout(), nn.BatchNorm1d(CLASSES))
    model[2].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert model.training and model[1].training and not model[2].training
