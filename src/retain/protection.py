"""What methods share that put springs on earlier tasks: how strong, what came of it, and when it is too much."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retain.fisher.choice import Choice
from retain.gauge import Factor, factor
from retain.method import Method
from retain.multiplier import Multiplier, loosened
from retain.multiplier import Strength as Strength
from retain.multiplier import check_strength as check_multiplier
from retain.task import Task

# Of the first task's movement: a later task that moves the weights less is held fast.
FROZEN = 0.03
# Of its score that a task loses with a nat of its loss: a guess, until it was measured.
SHARE_OF_NAT = 0.35
# Before the names of parameters in what is kept of a training.
INSIDE = "multiplier_inside/"
SINCE = "multiplier_since"
# Of the steps of a training: if more are undone, hardly anything is left of it.
UNDONE = 0.5
# Times what a budget allows: a rise beyond is worth a warning.
MISSED = 1.25


class Protection(Method):
    """A method that adds strength x the foreseen rise to the loss.

    Attributes:
        default: the strength if none is given, and the factor that is expected between foreseen and measured nats.
        multiplier: what a foreseen nat weighs, see ``retain.multiplier``.
        calibration: of each training after the first, by the task that it learned: the rise that was foreseen, the rise
            that was measured, its standard error (3,); where scores were measured, too, the share that was lost and its
            standard error (5,).
        reached: the logarithm of the multiplier at the last boundary, by the latest task; empty without a budget.
        inside: with a budget that rolls back, the trained parameters where the present training kept it last, by name.
        moved: of what was trained first, by name: the square of how far it moved, and on how many rows.
    """

    STATE: ClassVar[tuple[str, ...]] = ("calibration", "reached", "moved")
    late = ("strength",)

    def __init__(self, model: nn.Module, *, strength: Strength | None, default: float, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.default = default
        self.multiplier = Multiplier(default if strength is None else strength, default)
        self.calibration: dict[str, Tensor] = {}
        self.reached: dict[str, Tensor] = {}
        self.moved: dict[str, Tensor] = {}
        self.inside: dict[str, Tensor] = {}
        self._since = 0

    @property
    def strength(self) -> float:  # type: ignore[override]
        """What a foreseen nat weighs just now."""
        return self.multiplier.value

    @property
    def limit(self) -> str | None:
        return self.multiplier.limit

    @property
    def factor(self) -> Factor:
        """Measured nats that a foreseen one stands for, after what was measured so far."""
        return factor((entry.tolist()[:3] for _, entry in sorted(self.calibration.items())), self.default)

    @property
    def shares(self) -> Factor:
        """The share of their score that earlier tasks lose with a foreseen nat, after what was measured so far."""
        entries = [entry.tolist() for _, entry in sorted(self.calibration.items()) if len(entry) == 5]
        return factor(((foreseen, *lost) for foreseen, _, _, *lost in entries), self.default * SHARE_OF_NAT)

    def reading(self) -> dict[str, float]:
        """Of ``predicted_rise`` the total and each task that is told apart; calibrated once a rise was measured."""
        rises = self.predicted_rise()
        if not rises:
            return {}
        found = {"foreseen_rise": rises.pop("total")}
        found |= {f"foreseen_rise/{name}": rise for name, rise in rises.items()}
        if self.calibration:
            found["calibrated_rise"] = self.factor.read(found["foreseen_rise"])["calibrated"]
        if self.multiplier.budget is not None:
            found["strength"] = self.strength
        return found

    def calibrate(
        self, task: str, foreseen: float, measured: float, error: float, share: tuple[float, float] | None = None
    ) -> None:
        self.calibration[task] = torch.tensor([foreseen, measured, error, *(share or ())])

    def begin_task(self, task: Task) -> None:
        of_what = self.factor if self.multiplier.unit == "nats" else self.shares
        self.multiplier.begin(of_what.middle, next(iter(self.reached.values()), None))
        self.inside, self._since = {}, 0

    def before_step(self) -> None:
        if self.multiplier.rolls_back and self.multiplier.inside:
            self.inside, self._since = {name: p.detach().clone() for name, p in self._trained.items()}, 0

    def after_step(self) -> None:
        self.multiplier.step()
        self._since += 1

    @torch.no_grad()
    def finish(self) -> None:
        if not self.multiplier.steps:
            return
        rise = self.predicted_rise()["total"]
        if self.inside and rise > self.multiplier.allowed:
            for name, parameter in self._trained.items():
                parameter.copy_(self.inside[name])
            rise = self.predicted_rise()["total"]
        elif self.inside:
            self._since = 0
        self.multiplier.rise, self.inside = torch.tensor(rise), {}

    def end_task(self, task: Task) -> None:
        if self.learned and self.multiplier.budget is not None:
            self._settle(task)
            self.reached = {task.name: self.multiplier.log}
        super().end_task(task)

    def progress(self) -> dict[str, Tensor]:
        if not self.learned:
            return {}
        inside = {f"{INSIDE}{name}": tensor for name, tensor in self.inside.items()}
        since = {SINCE: torch.tensor(self._since)} if self.multiplier.rolls_back else {}
        return self.multiplier.state() | inside | since

    def load_progress(self, state: Mapping[str, Tensor]) -> None:
        inside = {key.removeprefix(INSIDE): tensor for key, tensor in state.items() if key.startswith(INSIDE)}
        known = self.multiplier.state().keys() if self.learned else set()
        extra = {f"{INSIDE}{name}" for name in self._trained} if inside else set()
        since = {SINCE} if self.learned and self.multiplier.rolls_back else set()
        if known | extra | since != state.keys():
            raise ValueError("the progress of a training is of another method, or of another kind of `strength`")
        if state:
            self.multiplier.load(state)
        if since:
            self._since = int(state[SINCE])
        self.inside = {name: inside[name].to(p.device) for name, p in self._trained.items() if inside}

    @property
    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _settle(self, task: Task) -> None:
        """Say how the budget was kept, and warn if it was not."""
        multiplier = self.multiplier
        if not multiplier.steps:
            warnings.warn(
                f"the budget of {multiplier.said(1)} has not been looked after: no step was told to the method while "
                f"{task.name!r} trained; call attach(optimizer, method)",
                stacklevel=4,
            )
            return
        if self.inside:
            warnings.warn(
                f"a rollback to the budget of {multiplier.said(1)} has not been looked after while {task.name!r} "
                "trained; call method.finish() between the last step and what reads the weights",
                stacklevel=4,
            )
        used = float(multiplier.rise) / multiplier.allowed
        self.boundary["budget_used"] = used
        if multiplier.rolls_back:
            self.boundary["rolled_back"] = self._since
        if used > MISSED:
            warnings.warn(
                f"the budget of {multiplier.said(1)} could not be kept while {task.name!r} trained: "
                f"it ended at {multiplier.said(used)}. The learning rate is too high for it, or the training too short",
                stacklevel=4,
            )
        elif multiplier.rolls_back and not self.inside and self._since > UNDONE * multiplier.steps:
            warnings.warn(
                f"the last {self._since} of {multiplier.steps} steps that trained {task.name!r} were undone, for they "
                f"lay beyond the budget of {multiplier.said(1)}: little of the task is left. The learning rate is too "
                "high for the budget, or the budget too small for the task",
                stacklevel=4,
            )

    def compare_movement(self, squares: Mapping[str, float], task: Task) -> None:
        """Warn if ``task`` has hardly moved the weights, compared with the first task, when nothing held them yet.

        Fewer rows may move them less. The ratio of both movements goes into ``boundary["moved"]``.

        Args:
            squares: ||change||^2 since the last boundary, of everything that is protected, by name.
            task: the one just trained on.
        """
        rows = len(task.order())
        if not self.number:
            self.moved = {name: torch.tensor([square, rows]) for name, square in squares.items()}
        if not self.number or not self.moved or not any(float(first[0]) for first in self.moved.values()):
            return
        first = math.fsum(float(square) for square, _ in self.moved.values()) ** 0.5
        moved = math.fsum(squares.values()) ** 0.5
        self.boundary["moved"] = moved / first
        fewer = min(1.0, rows / max(float(n) for _, n in self.moved.values()))
        if self.multiplier.given and 0 < moved < FROZEN * fewer * first:
            warnings.warn(
                f"{task.name!r} has moved the weights by {moved / first:.1%} of what the first task moved them: the "
                f"protection has frozen the model; {loosened(self.strength, self.limit)}",
                stacklevel=3,
            )


def check_strength(strength: Any, decay: float | None) -> None:
    """Refuse a strength that is none (see ``retain.multiplier``) and a decay outside [0, 1]."""
    check_multiplier(strength)
    if decay is not None and not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")


def check_temperature(strength: Any, choice: Choice, own: float = 1.0) -> None:
    """Refuse a strength that is no number with importance at another temperature than its ``own``."""
    temperature = choice.sweep.get("temperature", 1.0)
    if not isinstance(strength, int | float) and temperature != own:
        raise ValueError(
            f"strength must be given as a number with fisher.temperature={temperature}: what is known of "
            f"{choice.name!r} was measured at {own}, and importance is larger at higher temperatures"
        )
