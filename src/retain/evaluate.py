"""How good a model is at a task: loss, and accuracy with the task known and unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from retain.method import Method
from retain.metrics import OF_NUMBERS, Metric, misfit
from retain.task import IGNORED, SquaredError, Task, evaluating, on_device, rows_of


@dataclass(frozen=True)
class Score:
    """A model's score on one task's test rows.

    Attributes:
        n: test rows.
        loss: negative log-likelihood in nats per example (mean over examples, summed over an example's tokens).
        correct: 1 or 0 for each row, the task known: only its own classes compete. None for sequences and regression.
        correct_unknown: the same, the task unknown: all classes seen so far compete. None if tasks own no classes.
        task_found: 1 or 0 for each row: the winning class belongs to the right task. None if tasks own no classes.
        losses: the loss of each row (n,), whose mean ``loss`` is. None if it was not kept.
        tokens: the number of target tokens of each row (n,), that its loss is a sum over. None if not sequences.
        answers: how good what the model answers is, for each row (n,), by metric (``answers.answers``).
        metric: the task's own.
        said: the class or number (n,), or numbers (n, k), for each row, of tasks whose metric is not accuracy.
        wanted: the right ones, of that shape.
    """

    n: int
    loss: float
    correct: Tensor | None = None
    correct_unknown: Tensor | None = None
    task_found: Tensor | None = None
    losses: Tensor | None = None
    tokens: Tensor | None = None
    answers: Mapping[str, Tensor] = field(default_factory=dict)
    metric: Metric = "accuracy"
    said: Tensor | None = None
    wanted: Tensor | None = None


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, *, seen: Sequence[int] = (), batch_size: int = 64) -> Score:
    """Score ``model`` on ``task.test`` in eval mode.

    Args:
        model: a model, with the coefficients to test in place.
        task: its loss says which classes compete; its ``groups`` which task owns each class.
        seen: numbers of the tasks learned so far, whose classes compete when the task is unknown.
        batch_size: rows at a time.

    Raises:
        ValueError: no test rows.
        FloatingPointError: a loss that is not finite.
    """
    if task.test is None or not len(task.test):
        raise ValueError(f"task {task.name!r} has no test rows")
    device = next(model.parameters()).device
    groups: Tensor | None = getattr(task.loss, "groups", None)
    names = ("loss", "correct", "unknown", "found", "tokens", "said", "wanted")
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with evaluating(model):
        for raw in _test_batches(task, batch_size):
            outputs, targets = task.forward(model, on_device(raw, device))
            parts["loss"].append(task.loss.nll(outputs, targets).double().cpu())
            if outputs.dim() == 3 and not targets.is_floating_point():
                parts["tokens"].append((targets != IGNORED).sum(1).cpu())
            if outputs.dim() == 2 and not targets.is_floating_point():
                own = outputs if groups is None else task.loss.restrict(outputs, targets)  # type: ignore[attr-defined]
                parts["correct"].append((own.argmax(-1) == targets).cpu())
                parts["said"].append(own.argmax(-1).cpu())
                if groups is not None:
                    winner = _among(outputs, _owned(groups.to(device), seen))
                    parts["unknown"].append((winner == targets).cpu())
                    parts["found"].append(_of_one_task(groups.to(device), winner, targets))
            elif isinstance(task.loss, SquaredError) and task.metric in OF_NUMBERS:
                parts["said"].append(_numbers(task, task.loss.own(outputs, targets)))
                targets = _numbers(task, targets)
            parts["wanted"].append(targets.cpu())
    if task.metric == "accuracy":
        parts |= {"said": [], "wanted": []}
    elif not parts["said"]:
        raise ValueError(f"task {task.name!r}: {task.metric} is of one class or number for each row")
    elif reason := misfit(task.metric, parts["said"][0][0].numel()):
        raise ValueError(f"task {task.name!r}: {reason}")
    whole = {name: torch.cat(tensors) if tensors else None for name, tensors in parts.items()}
    loss = torch.cat(parts["loss"])
    if not loss.isfinite().all():
        raise FloatingPointError(
            f"the loss on the test rows of task {task.name!r} is not finite: lower training.learning_rate, or "
            "use a wider dtype"
        )
    kinds = whole["correct"], whole["unknown"], whole["found"]
    told: Any = {"metric": task.metric, "said": whole["said"], "wanted": whole["wanted"]}
    return Score(len(loss), float(loss.mean()), *kinds, loss, whole["tokens"], **told)


@torch.no_grad()
def evaluate_unsaid(
    method: Method, task: Task, score: Score, *, seen: Sequence[int] = (), batch_size: int = 64
) -> Score:
    """``score`` with what nobody's word on the task leaves of it, for a method whose tasks are ``separate``.

    A row runs under the coefficients of the task that ``method.guess`` says, and that task's classes compete; of a
    method that cannot tell, under the latest, and the classes of all ``seen`` compete. What tasks own no classes of
    (domain-incremental) is scored so altogether; elsewhere ``correct_unknown`` and ``task_found`` are.
    """
    device = next(method.model.parameters()).device
    groups: Tensor | None = getattr(task.loss, "groups", None)
    losses, right, found, said = [], [], [], []
    for raw in _test_batches(task, batch_size):
        batch = on_device(raw, device)
        names = None
        if method.routes and isinstance(batch, Mapping):
            names = method.guess({k: v for k, v in batch.items() if k != "labels"})
        with evaluating(method.model):
            outputs, targets = _answered(method, task, batch, names)
        losses.append(task.loss.nll(outputs, targets).double().cpu())
        if isinstance(task.loss, SquaredError):
            said.append(_numbers(task, task.loss.own(outputs, targets)))
            continue
        winner = outputs.argmax(-1)
        said.append(winner.cpu())
        if groups is not None:
            here = groups.to(device)
            allowed = (
                _owned(here, seen) if names is None else torch.stack([here == int(method.learned[n]) for n in names])
            )
            winner = _among(outputs, allowed)
            found.append(_of_one_task(here, winner, targets))
        right.append((winner == targets).cpu())
    if groups is not None:
        return replace(score, correct_unknown=torch.cat(right), task_found=torch.cat(found))
    loss, told = torch.cat(losses), None if score.said is None else torch.cat(said)
    correct = torch.cat(right) if right else None
    return replace(score, loss=float(loss.mean()), losses=loss, correct=correct, said=told)


def _numbers(task: Task, values: Tensor) -> Tensor:
    """``values`` (n, ...) of a regression as its labels have them: (n,), or (n, k) where there are several."""
    return task.unit * (values if values.dim() == 1 else values.flatten(1)).double().cpu()


def _answered(method: Method, task: Task, batch: Any, names: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Outputs and targets of ``batch``, every row under the coefficients of its own of ``names``, or the latest."""
    if names is None:
        method.activate(None)
        return task.forward(method.model, batch)
    order, parts = [], []
    for name in dict.fromkeys(names):
        method.activate(name)
        rows = torch.tensor([i for i, one in enumerate(names) if one == name])
        order.append(rows)
        parts.append(task.forward(method.model, {k: v[rows.to(v.device)] for k, v in batch.items()}))
    back = torch.cat(order).argsort()
    outputs, targets = (torch.cat(both)[back] for both in zip(*parts, strict=True))
    return outputs, targets


def _owned(groups: Tensor, tasks: Sequence[int]) -> Tensor:
    """Which of the classes (C,) belong to ``tasks``."""
    return torch.isin(groups, torch.tensor(list(tasks), device=groups.device, dtype=groups.dtype))


def _among(outputs: Tensor, allowed: Tensor) -> Tensor:
    """The winning class (N,) among those ``allowed`` (C,) or (N, C); -1 where none is."""
    winner = outputs.masked_fill(~allowed, float("-inf")).argmax(-1)
    return torch.where(allowed.any(-1), winner, -1)


def _of_one_task(groups: Tensor, winner: Tensor, targets: Tensor) -> Tensor:
    return ((groups[winner] == groups[targets]) & (winner >= 0)).cpu()


def _test_batches(task: Task, batch_size: int) -> DataLoader | Sequence:
    if isinstance(task.test, list | tuple) and task.collate is None:
        return task.test
    rows, collate = rows_of(task.test, task.collate)
    return DataLoader(rows, batch_size=batch_size, collate_fn=collate)
