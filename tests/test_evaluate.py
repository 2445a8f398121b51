"""Scores against a computation by hand, row after row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models import MLP, prompts, tiny_llama
from retain.evaluate import evaluate
from retain.task import CrossEntropy, SquaredError, Task

GROUPS = torch.tensor([0, 0, 1, 1, 1])
LABELS = [2, 3, 4, 2, 3, 4, 4]


def model() -> nn.Module:
    return nn.Sequential(MLP(classes=5), nn.Dropout(0.0))


def rows() -> list[tuple[Tensor, Tensor]]:
    x = 3 * torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(1))
    return [(row, torch.tensor(label)) for row, label in zip(x, LABELS, strict=True)]


def by_hand(seen: list[int]) -> tuple[float, list[bool], list[bool], list[bool]]:
    net, loss, known, unknown, found = model().eval(), 0.0, [], [], []
    for x, y in rows():
        logits, label = net(x).tolist(), int(y)
        own = {c: logits[c] for c in range(5) if GROUPS[c] == GROUPS[label]}
        loss -= own[label] - math.log(sum(map(math.exp, own.values())))
        known.append(max(own, key=own.__getitem__) == label)
        allowed = {c: logits[c] for c in range(5) if int(GROUPS[c]) in seen}
        winner = max(allowed, key=allowed.__getitem__) if allowed else None
        unknown.append(winner == label)
        found.append(winner is not None and bool(GROUPS[winner] == GROUPS[label]))
    return loss / len(LABELS), known, unknown, found


@pytest.mark.parametrize("seen", [[], [0], [1], [0, 1]])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_the_task_known_and_unknown(seen: list[int], batch_size: int) -> None:
    task = Task("t", [], rows(), CrossEntropy(GROUPS), torch.utils.data.default_collate)
    score = evaluate(model(), task, seen=seen, batch_size=batch_size)
    loss, known, unknown, found = by_hand(seen)
    assert score.n == 7 and score.loss == pytest.approx(loss, rel=1e-5)
    assert score.losses.shape == (7,) and score.losses.mean().item() == score.loss
    own = evaluate(model(), Task("t", [], [(rows()[3][0][None], rows()[3][1][None])], CrossEntropy(GROUPS)), seen=seen)
    assert score.losses[3].item() == pytest.approx(own.loss, rel=1e-5)  # in the order of the rows
    assert [score.correct.tolist(), score.correct_unknown.tolist(), score.task_found.tolist()] == [
        known,
        unknown,
        found,
    ]
    assert len({*known}) == 2 or seen != [0, 1]  # the case is not trivial


def test_nothing_seen_finds_nothing() -> None:
    score = evaluate(model(), Task("t", [], rows(), CrossEntropy(GROUPS), torch.utils.data.default_collate), seen=())
    assert not score.correct_unknown.any() and not score.task_found.any() and score.correct.any()


def test_without_groups_all_classes_compete() -> None:
    batches = [(torch.stack([x for x, _ in rows()]), torch.tensor(LABELS))]
    score = evaluate(model(), Task("t", [], batches))
    logits = model()(batches[0][0])
    assert torch.equal(score.correct, logits.argmax(1) == batches[0][1])
    assert score.correct_unknown is None and score.task_found is None
    loss = nn.functional.cross_entropy(logits, batches[0][1])
    assert score.loss == pytest.approx(loss.item(), rel=1e-5)


def test_lists_of_batches_loaders_and_rows_score_alike() -> None:
    x, y = torch.stack([row for row, _ in rows()]), torch.tensor(LABELS)
    batches, loader = [(x[:5], y[:5]), (x[5:], y[5:])], DataLoader(rows(), batch_size=2)
    losses = [evaluate(model(), Task("t", [], test)).loss for test in (batches, loader)]
    losses.append(evaluate(model(), Task("t", [], rows(), collate=torch.utils.data.default_collate)).loss)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_sequences_have_a_loss_per_example_and_no_accuracy() -> None:
    net, batches = tiny_llama(), prompts(sizes=(3, 2)).train
    score = evaluate(net, Task("t", [], batches))
    net.eval()
    total = 0.0
    for batch in batches:
        logits = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        for row, labels in zip(logits, batch["labels"], strict=True):
            total -= sum(row[t - 1, labels[t]].item() for t in range(1, len(labels)) if labels[t] != -100)
    assert score.n == 5 and score.loss == pytest.approx(total / 5, rel=1e-5)
    assert score.correct is score.correct_unknown is score.task_found is None


def test_regression_has_no_accuracy() -> None:
    x = torch.randn(6, 4)
    net = MLP()
    score = evaluate(net, Task("t", [], [(x, torch.zeros(6, 3))], SquaredError()))
    assert score.loss == pytest.approx(0.5 * net(x).square().sum(1).mean().item(), rel=1e-5)
    assert score.correct is None


def test_it_evaluates_without_dropout_and_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Dropout(0.9), MLP())
    net[1].eval()
    task = Task("t", [], [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))])
    assert evaluate(net, task).loss == evaluate(net, task).loss
    assert net[0].training and not net[1].training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("test", [None, []])
def test_a_task_without_test_rows_is_refused(test: list | None) -> None:
    with pytest.raises(ValueError, match="task 't' has no test rows"):
        evaluate(MLP(), Task("t", [], test))


def test_a_model_that_diverged_is_refused() -> None:
    net = MLP()
    net[0].weight.data.fill_(float("nan"))
    task = Task("t", [], [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))])
    with pytest.raises(FloatingPointError, match="test rows of task 't' is not finite: lower training.learning_rate"):
        evaluate(net, task)
