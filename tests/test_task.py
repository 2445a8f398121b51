"""Outputs, targets and likelihoods of every kind of model; rows, subsets and draws."""

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
from retain.task import CrossEntropy, SquaredError, Task, check_pass, draw, evaluating, forward, joined


def bare_t5():
    shape = dict(d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return seeded(
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **shape))
    )


# --- forward and the likelihoods -------------------------------------------------------------------------------------


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


def test_a_sequence_is_worth_the_sum_of_its_tokens():
    outputs, targets = torch.randn(2, 4, 5), torch.tensor([[1, 2, -100, 4], [-100, -100, -100, -100]])
    log_p = outputs.log_softmax(-1)
    expected = -(log_p[0, 0, 1] + log_p[0, 1, 2] + log_p[0, 3, 4])
    torch.testing.assert_close(CrossEntropy().nll(outputs, targets), torch.stack([expected, torch.zeros(())]))


def test_groups_compete_among_themselves():
    groups, outputs = torch.tensor([0, 1, 1, 0]), torch.randn(6, 4, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 1, 0])
    nll = CrossEntropy(groups).nll(outputs, targets)
    for row, target, mine in zip(outputs, targets, nll, strict=True):
        own = (groups == groups[target]).nonzero()[:, 0]
        torch.testing.assert_close(mine, row[own].logsumexp(0) - row[target])
    (gradient,) = torch.autograd.grad(nll.sum(), outputs)
    assert not gradient[groups[targets].unsqueeze(1) != groups].any() and gradient.isfinite().all()


@pytest.mark.parametrize("labels", ["sample", "exact", "predicted"])
def test_labels_stay_within_the_group(labels):
    groups, outputs = torch.tensor([0, 1, 0, 1]), 5 * torch.randn(500, 4)
    targets, uniform = torch.randint(0, 4, (500,)), torch.rand(500)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    for weights, chosen in CrossEntropy(groups).targets(labels, outputs, targets, uniform):
        assert (weights[groups[chosen] != groups[targets]] == 0).all()


def test_weights_of_exact_labels_add_up_to_one():
    pairs = list(CrossEntropy().targets("exact", torch.randn(7, 4), torch.zeros(7, dtype=torch.long), torch.zeros(7)))
    torch.testing.assert_close(sum(w for w, _ in pairs), torch.ones(7))
    assert [int(y[0]) for _, y in pairs] == [0, 1, 2, 3]


def test_sampled_labels_follow_the_model():
    outputs = torch.tensor([[0.5, -1.0, 2.0]]).expand(20000, 3)
    zeros = torch.zeros(20000, dtype=torch.long)
    uniform = draw(zeros, outputs, torch.arange(20000), seed=3)
    ((_, drawn),) = CrossEntropy().targets("sample", outputs, zeros, uniform)
    torch.testing.assert_close(drawn.bincount(minlength=3) / 20000, outputs[0].softmax(0), atol=0.01, rtol=0)
    ((_, noisy),) = SquaredError().targets("sample", outputs[:, :1], outputs[:, :1], uniform[:, None])
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.03) and float(noisy.std()) == pytest.approx(1, abs=0.02)


def test_squared_error():
    outputs, targets = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    expected = -torch.distributions.Normal(outputs, 1.0).log_prob(targets).sum((1, 2))
    torch.testing.assert_close(
        SquaredError().nll(outputs, targets) + 4 * torch.log(torch.tensor(2 * torch.pi)), expected
    )
    with pytest.raises(ValueError, match=r"outputs \(3, 1\) and targets \(3,\) must have one shape"):
        SquaredError().nll(torch.randn(3, 1), torch.randn(3))
    with pytest.raises(ValueError, match="no score at all.*use labels='sample'"):
        list(SquaredError().targets("predicted", outputs, targets, torch.rand(3, 2, 4)))


# --- draws -----------------------------------------------------------------------------------------------------------


def test_a_row_draws_the_same_in_any_batch_and_under_any_padding():
    targets, rows = torch.tensor([[5, 6, 7, -100, -100], [-100, 3, 4, 5, -100]]), torch.tensor([11, 4])
    outputs = torch.zeros(2, 5, VOCABULARY)
    together = draw(targets, outputs, rows, seed=0)
    assert together[targets == -100].eq(0).all() and together[targets != -100].ne(0).all()
    alone = draw(targets[:1, :3], outputs[:1, :3], rows[:1], seed=0)
    assert torch.equal(alone[0], together[0, :3])
    left = draw(targets[:1].roll(2, 1), outputs[:1], rows[:1], seed=0)
    assert torch.equal(left[0, 2:], together[0, :3])
    assert not torch.equal(draw(targets, outputs, rows, seed=1), together)
    assert not torch.equal(together[0, :3], together[1, 1:4])


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
    assert task.loss is two.loss


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


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_that_cannot_name_a_folder(name):
    with pytest.raises(ValueError, match="name"):
        Task(name, [])


def test_check_pass():
    check_pass("exact", None, 1)
    with pytest.raises(ValueError, match="unknown labels 'all'; known: sample, data, exact, predicted"):
        check_pass("all", None, 1)
    with pytest.raises(ValueError, match="samples and batch_size must be at least 1, got 0 and 16"):
        check_pass("data", 0, 16)


def test_evaluating_gives_every_module_its_own_mode_back():
    model = nn.Sequential(MLP(), nn.Dropout(), nn.BatchNorm1d(CLASSES))
    model[2].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert model.training and model[1].training and not model[2].training
