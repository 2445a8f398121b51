"""Learning without Forgetting: new rows hold the outputs of earlier tasks (Li and Hoiem 2016, arXiv 1606.09282)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from retain.buffer import as_batch, first_targets, named, padding_of, stacked
from retain.method import Method
from retain.task import IGNORED, Batch, CrossEntropy, Forward, SquaredError, Task, evaluating, on_device, precise


class LwF(Method):
    """Distil what the model gave for earlier tasks' classes or numbers into what it gives now, on new rows.

    The loss of a step gains ``weight`` times the sum, over the heads of finished tasks, of KL(p* || p) with
    p = softmax(z / ``temperature``) over the head's classes: a mean over ``batch_size`` rows of the new task, drawn
    anew, or over their target tokens. z* are the outputs of the model as it was when the task began, in eval mode. A
    model whose tasks share all outputs, such as a language model, has one head. Of a regression's head KL is that
    of two Gaussians, half the squared distance. No old data is kept, and nothing but which heads are
    finished; while a task trains, a copy of what it trains.

    From the second task on every step costs two more forwards and a backward of so many rows.

    Args:
        model: a model from ``peft.get_peft_model``, or any module.
        weight: lambda_o of the paper, which has 1.
        temperature: T of the paper, which has 2; more holds unlikely classes, too, and everything with less force.
        batch_size: rows drawn for a step; all, if the task has fewer.
        seed: of what is drawn.
    """

    STATE = ("groups", "numbers")
    guards = True
    needs_adapter = False
    knob = ("weight", (0.1, 0.3, 1.0, 3.0, 10.0))
    late = ("weight",)

    def __init__(
        self,
        model: nn.Module,
        *,
        weight: float = 1.0,
        temperature: float = 2.0,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        self.check(weight=weight, temperature=temperature, batch_size=batch_size)
        self.weight, self.temperature, self.batch_size = weight, temperature, batch_size
        self.extra_rows = 1.5 * batch_size
        self.groups: dict[str, Tensor] = {}
        self.numbers: dict[str, Tensor] = {}
        self._old: dict[str, Tensor] = {}
        self._heads: list[tuple[Tensor | slice, bool]] = []
        self._task: Task | None = None
        self._rows = 0

    @classmethod
    def check(cls, **keywords: Any) -> None:
        for key in ("weight", "temperature"):
            if not 0 < keywords[key] < math.inf:
                raise ValueError(f"{key} must be positive and finite, got {keywords[key]}")
        if keywords["batch_size"] < 1:
            raise ValueError(f"batch_size must be at least 1, got {keywords['batch_size']}")

    def begin_task(self, task: Task) -> None:
        if not isinstance(task.loss, CrossEntropy | SquaredError):
            raise ValueError(
                f"task {task.name!r}: lwf distils the probabilities of classes or tokens, or numbers; the loss "
                f"must be a CrossEntropy or a SquaredError, got {type(task.loss).__name__}"
            )
        self.steps, self._task, self._rows = 0, task, len(task.order())
        finished = {int(group): kind for kind in (False, True) for group in (self.groups, self.numbers)[kind].values()}
        self._heads, groups = [(slice(None), isinstance(task.loss, SquaredError))], task.loss.groups
        if groups is not None:
            self._heads = [((groups.cpu() == group).nonzero()[:, 0], finished[group]) for group in sorted(finished)]
        if self.learned:
            self._old = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def extra_loss(self) -> Tensor | float:
        if self._task is None or not self._old:
            return 0.0
        numbers, device = self.drawn(self._rows, self.batch_size), next(self.model.parameters()).device
        pieces, run = [named(batch) for _, batch in self._task.take(numbers, len(numbers))], self._task.forward
        found = [
            self._distance(on_device(as_batch(rows), device), run)
            for _, rows in stacked(pieces, padding_of(self.model))
        ]
        distances = torch.cat(found)
        return self.weight * distances.sum() / max(len(distances), 1)

    def after_step(self) -> None:
        self.steps += 1

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self._task, self._old = None, {}
        if isinstance(task.loss, SquaredError) and task.loss.groups is not None:
            self.numbers[task.name] = torch.tensor(task.loss.group)
        elif isinstance(task.loss, CrossEntropy) and task.loss.groups is not None:
            self.groups[task.name] = task.loss.groups.cpu()[first_targets(task).cpu()]

    def _distance(self, batch: Batch, run: Forward) -> Tensor:
        """KL from the outputs as they were, summed over heads, in nats for every target (U,) of ``batch``."""
        with torch.no_grad(), evaluating(self.model):
            old = {f"model.{name}": x for name, x in self._old.items()}
            before, _ = functional_call(_Forward(self.model, run), old, (batch,))
        now, targets = run(self.model, batch)
        if targets.is_floating_point():
            before, now = (z.reshape(len(z), -1) for z in (before, now))
        else:
            before, now = (z[targets != IGNORED] for z in (before, now))
        found = []
        for own, is_number in self._heads:
            z = before[:, own], now[:, own]
            found.append(squared(*z) if is_number else divergence(*z, self.temperature))
        return torch.stack(found).sum(0)


class _Forward(nn.Module):
    """``run`` as a module, which can be called with other parameters."""

    def __init__(self, model: nn.Module, run: Forward) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.run(self.model, batch)


def divergence(before: Tensor, now: Tensor, temperature: float) -> Tensor:
    """KL(softmax(before / T) || softmax(now / T)) in nats (n,), of logits (n, C) each."""
    then, here = ((precise(z) / temperature).log_softmax(-1) for z in (before, now))
    return (then.exp() * (then - here)).sum(-1)


def squared(before: Tensor, now: Tensor) -> Tensor:
    """KL between Gaussians of unit variance in nats (n,), of means (n, k) each: 1/2 ||before - now||^2."""
    return 0.5 * (precise(before) - precise(now)).square().sum(-1)
