"""What a foreseen nat weighs in the loss: a number, the gauge's factor, or what keeps the rise within a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from retain.mistakes import Within, check_names

Strength = float | Literal["auto"] | Mapping[str, float | str | bool]

RATE = 0.1  # of the logarithm a step, where the rise is a factor e or more from what is allowed
STEEP = 10.0  # times the multiplier: the most that a rise beyond what is allowed weighs
PERCENT = re.compile(r"(\d+\.?\d*|\.\d+)%")
DEEPEST = 20.0  # times below the default: where a task may begin, after one whose budget was slack
REACH = 1e4  # either way of where it starts, the furthest that a multiplier goes


class Multiplier:
    """lambda of ``loss + lambda R``, R being the foreseen rise.

    Three kinds: a number; "auto", the gauge's factor, so that a nat lost weighs like a nat gained; or, with a budget b,
    that of min loss s.t. c R <= b, c the gauge's factor. The last is found while training, by dual ascent on
    its logarithm,

        log lambda <- log lambda + RATE clip(log(c R / b), -1, 1)          after every optimizer step,

    and weighs min(c R / b, STEEP) lambda R: at the constraint the Lagrangian's gradient, below it less and beyond it
    more, which damps the swings of an ascent whose weights answer late. Log-multipliers as in GECO (arXiv 1810.00597),
    the damping as the proportional part of a PID Lagrangian (arXiv 2007.03964).

    Attributes:
        budget: in ``unit``, if there is one.
        unit: "nats", or "%": a share of the score that the earlier tasks have.
        rolls_back: whether a training that ends beyond its budget goes back to where it was last inside.
        allowed: of R, in the units of R; infinite without a budget.
        steps: that the multiplier has made in the present task.
    """

    def __init__(self, strength: Strength, default: float) -> None:
        self.given, self.default = strength, default
        given = strength if isinstance(strength, Mapping) else {}
        self.budget: float | None = None
        self.unit = "nats"
        if given:
            self.budget, self.unit = _amount(given["budget"])
        self.rolls_back = bool(given.get("rollback"))
        self.fixed = float(strength) if isinstance(strength, int | float) else default
        self.allowed, self.steps, self._weighed = math.inf, 0, False
        self.start = torch.tensor(math.log(default))
        self.log, self.rise = self.start, torch.tensor(0.0)

    @property
    def value(self) -> float:
        """What the next foreseen nat weighs."""
        return self.fixed if self.budget is None else float(self._weight(self.rise))

    @property
    def limit(self) -> str | None:
        """The budget, with its unit."""
        return None if self.budget is None else self.said(1)

    def begin(self, factor: float, reached: Tensor | None = None) -> None:
        """A task begins, and a foreseen nat stands for ``factor`` measured ones.

        With a budget the multiplier begins where the last task ``reached``, its logarithm, or ``DEEPEST`` times below
        the default: a slack budget leaves next to nothing, from which a short training would not come back in time.
        """
        if self.given == "auto":
            self.fixed = factor
        elif self.budget is not None:
            self.allowed, self.steps = self.budget / factor, 0
            self.log = self.start if reached is None else reached.clamp(min=float(self.start) - math.log(DEEPEST))
            self.rise = torch.zeros_like(self.rise)

    @property
    def inside(self) -> bool:
        """Whether the weights, as they were weighed since the last step, keep the budget."""
        return self._weighed and float(self.rise) <= self.allowed

    def said(self, used: float) -> str:
        """So many times the budget, with its unit."""
        amount = used * (self.budget or 0.0)
        return f"{amount:.2g} nats" if self.unit == "nats" else f"{amount:.2%}"

    def weigh(self, rise: Tensor, penalty: Tensor | None = None) -> Tensor:
        """What R adds to the loss. ``penalty``, if it is not R itself, differs from it by a constant."""
        penalty = rise if penalty is None else penalty
        if self.budget is None:
            return self.fixed * penalty
        self._weighed = True
        self.rise, self.log = rise.detach().float(), self.log.to(rise.device)
        return self._weight(self.rise).to(penalty.dtype) * penalty

    def step(self) -> None:
        """The optimizer has stepped on what was weighed last."""
        if not self._weighed:
            return
        error = torch.log(self.rise.clamp(min=1e-30) / self.allowed).clamp(-1, 1)
        start, reach = float(self.start), math.log(REACH)
        self.log = (self.log + RATE * error).clamp(start - reach, start + reach)
        self.steps, self._weighed = self.steps + 1, False

    def state(self) -> dict[str, Tensor]:
        """What has changed since ``begin``; empty without a budget."""
        if self.budget is None:
            return {}
        here = torch.stack([self.log.cpu(), self.rise.cpu()])
        return {"multiplier": here, "multiplier_steps": torch.tensor(self.steps)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        self.log, rise = state["multiplier"].unbind()
        self.rise, self.steps = rise, int(state["multiplier_steps"])

    def _weight(self, rise: Tensor) -> Tensor:
        return self.log.exp() * (rise / self.allowed).clamp(0, STEEP)


def loosened(strength: float, limit: str | None) -> str:
    """What to do where a penalty is too strong: one of ``strength``, or of a budget that allows ``limit``."""
    return f"method.strength is {strength:g}: lower it" if limit is None else f"the budget is {limit}: raise it"


def check_strength(strength: Any) -> None:
    """Refuse a strength that is no number of at least 0, not "auto", and no budget above 0.

    Raises:
        ValueError: what came and what is allowed.
    """
    if strength is None or strength == "auto":
        return
    if isinstance(strength, Mapping):
        try:
            check_names(strength, ["budget", "rollback"], "strength")
        except ValueError as error:
            raise Within("strength", error) from None
        _amount(strength.get("budget"))
        if not isinstance(rollback := strength.get("rollback", False), bool):
            raise Within("strength.rollback", f"{rollback!r} is not allowed; expected true or false")
    elif isinstance(strength, bool) or not isinstance(strength, int | float):
        raise Within("strength", f"{strength!r} is not allowed; expected a number, 'auto' or {{budget: nats}}")
    elif not 0 <= strength < math.inf:
        raise ValueError(f"strength must be at least 0 and finite, got {strength}")


def _amount(budget: Any) -> tuple[float, str]:
    """A budget and its unit.

    Raises:
        ValueError: what came and what is allowed.
    """
    if isinstance(budget, str) and PERCENT.fullmatch(budget) and 0 < (share := float(budget[:-1])) < 100:
        return share / 100, "%"
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
        raise Within("strength.budget", f"{budget!r} is not allowed; expected nats above 0, or a share such as '2%'")
    return float(budget), "nats"
