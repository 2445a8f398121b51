"""How good a model is at a task: loss, and accuracy with the task known and unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from retain.task import Task, evaluating, forward, on_device, rows_of


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
    """

    n: int
    loss: float
    correct: Tensor | None = None
    correct_unknown: Tensor | None = None
    task_found: Tensor | None = None
    losses: Tensor | None = None


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
    parts: dict[str, list[Tensor]] = {"loss": [], "correct": [], "unknown": [], "found": []}
    with evaluating(model):
        for raw in _test_batches(task, batch_size):
            outputs, targets = forward(model, on_device(raw, device))
            parts["loss"].append(task.loss.nll(outputs, targets).double().cpu())
            if outputs.dim() == 2 and not targets.is_floating_point():
                own = outputs if groups is None else task.loss.restrict(outputs, targets)  # type: ignore[attr-defined]
                parts["correct"].append((own.argmax(-1) == targets).cpu())
                if groups is not None:
                    winner = _among_seen(outputs, groups.to(device), seen)
                    parts["unknown"].append((winner == targets).cpu())
                    parts["found"].append(
                        (groups.to(device)[winner] == groups.to(device)[targets]).cpu() & (winner >= 0).cpu()
                    )
    whole = {name: torch.cat(tensors) if tensors else None for name, tensors in parts.items()}
    loss = torch.cat(parts["loss"])
    if not loss.isfinite().all():
        raise FloatingPointError(
            f"the loss on the test rows of task {task.name!r} is not finite: lower training.learning_rate, or "
            "use a wider dtype"
        )
    return Score(len(loss), float(loss.mean()), whole["correct"], whole["unknown"], whole["found"], loss)


def _among_seen(outputs: Tensor, groups: Tensor, seen: Sequence[int]) -> Tensor:
    """The winning class (N,) among those of the seen tasks; -1 where none is seen."""
    allowed = torch.isin(groups, torch.tensor(list(seen), device=groups.device, dtype=groups.dtype))
    if not allowed.any():
        return torch.full((len(outputs),), -1, device=outputs.device)
    return outputs.masked_fill(~allowed, float("-inf")).argmax(-1)


def _test_batches(task: Task, batch_size: int) -> DataLoader | Sequence:
    if isinstance(task.test, list | tuple) and task.collate is None:
        return task.test
    rows, collate = rows_of(task.test, task.collate)
    return DataLoader(rows, batch_size=batch_size, collate_fn=collate)
