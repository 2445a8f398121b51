"""Scores against a computation by hand, row after row."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models import MLP, fit, prompts, texts, tiny_bert, tiny_llama
from retain import Method, Share
from retain.evaluate import evaluate, evaluate_unsaid
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


def test_numbers_are_scored_in_the_unit_of_their_labels() -> None:
    x, net = torch.randn(6, 4), MLP()
    task = Task("t", [], [(x, torch.ones(6, 3))], SquaredError(), metric="neg_mpjpe", unit=100.0)
    score = evaluate(net, task)
    assert score.said is not None and score.wanted is not None
    torch.testing.assert_close(score.said, 100 * net(x).double())
    assert score.wanted.tolist() == [[100.0] * 3] * 6
    with pytest.raises(ValueError, match="task 't': metric 'pearson' is of one number a row, and a row has 3; of sev"):
        evaluate(net, replace(task, metric="pearson"))


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
        evaluate(MLP(), Task("t", [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))], test))


def test_a_model_that_diverged_is_refused() -> None:
    net = MLP()
    net[0].weight.data.fill_(float("nan"))
    task = Task("t", [], [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))])
    with pytest.raises(FloatingPointError, match="test rows of task 't' is not finite: lower training.learning_rate"):
        evaluate(net, task)


def routed() -> tuple[Method, list[Task]]:
    """Share after two tasks of words of their own, and of two classes each."""
    method, tasks, groups = Share(tiny_bert(), route=True), [], torch.tensor([0, 0, 1])
    for number, name in enumerate("ab"):
        batches = texts(name, seed=number).train
        for batch in batches:
            batch["input_ids"] = batch["input_ids"] % 12 + 12 * number
            batch["labels"] = batch["labels"] % (2 - number) + 2 * number
        tasks.append(Task(name, batches, batches, CrossEntropy(groups)))
        fit(method, tasks[-1])
    return method, tasks


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("owned", [True, False])
def test_a_task_that_nobody_says_is_guessed_or_taken_for_the_latest(tells: bool, owned: bool) -> None:
    method, tasks = routed()
    method.means = method.means if tells else {}
    task = tasks[0] if owned else replace(tasks[0], loss=CrossEntropy())
    method.activate("a")
    known = evaluate(method.model, task, seen=[0, 1])
    score = evaluate_unsaid(method, task, known, seen=[0, 1], batch_size=3)
    right, found, losses = [], [], []
    for batch in task.test:
        for ids, label in zip(batch["input_ids"], batch["labels"], strict=True):
            name = method.guess({"input_ids": ids[None]})[0] if tells else "b"
            method.activate(name)
            logits = method.model.eval()(input_ids=ids[None]).logits[0].detach()
            classes = {"a": [0, 1], "b": [2]}[name] if owned and tells else [0, 1, 2]
            winner = max(classes, key=lambda c: float(logits[c]))
            right.append(winner == int(label))
            found.append((winner == 2) == (int(label) == 2))
            losses.append(float(task.loss.nll(logits[None], label[None])))
    if owned:
        assert score.correct_unknown.tolist() == right and score.task_found.tolist() == found
        assert score.correct is known.correct and score.loss == known.loss
    else:
        assert score.correct.tolist() == right and score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
