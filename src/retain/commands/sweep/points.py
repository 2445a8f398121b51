"""Where a knob is tried: as many values as asked for, evenly over what changes in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import numpy as np

from retain.method import Method

DIGITS = 3  # of a value, or of what it lacks of 1


@dataclass(frozen=True)
class Scale:
    """The values from ``low`` to ``high`` by what changes most over them: log v, or log(1 - v) for shares near 1."""

    low: float
    high: float
    whole: bool = False

    @property
    def from_one(self) -> bool:
        """Whether it is log(1 - v)."""
        return self.high < 1 and (1 - self.low) / (1 - self.high) > self.high / self.low

    def at(self, share: float) -> float:
        """The value after ``share``, in [0, 1], of the way from ``low`` to ``high``."""
        if share in (0, 1):
            return self.high if share else self.low
        low, high = (1 - self.low, 1 - self.high) if self.from_one else (self.low, self.high)
        value = float(f"{math.exp((1 - share) * math.log(low) + share * math.log(high)):.{DIGITS}g}")
        value = float(f"{1 - value:.12g}") if self.from_one else value
        return round(value) if self.whole else value

    def share(self, value: float) -> float:
        """How much of the way from ``low`` to ``high`` leads to ``value``."""
        low, high, here = (math.log(1 - x if self.from_one else x) for x in (self.low, self.high, value))
        return min(1.0, max(0.0, (here - low) / (high - low)))

    def grid(self, points: int) -> tuple[float, ...]:
        """So many values, both ends among them; fewer where whole numbers lie too close, the middle if it is one."""
        shares = np.linspace(0, 1, points).tolist() if points > 1 else [0.5]
        return tuple(sorted({self.at(share) for share in shares}))


def scale(method: type[Method], keyword: str, limits: Sequence[float] | None) -> Scale:
    """Where ``keyword`` is tried: over ``limits``, or over what the method says of its knob.

    Raises:
        ValueError: limits that are none, or a keyword of which no limits are known or whose values are no numbers.
    """
    default: Any = inspect.signature(method).parameters[keyword].default
    if default is not None and (isinstance(default, bool) or not isinstance(default, int | float)):
        raise ValueError(f"{keyword}, {default!r} if it is left out, is not a number: there is no curve over it")
    if limits is None:
        if method.knob is None or method.knob[0] != keyword:
            raise ValueError(f"{keyword} has no range of its own: say --range LOW HIGH")
        limits = (method.knob[1][0], method.knob[1][-1])
    low, high = limits
    if not 0 < low < high < math.inf:
        raise ValueError(f"--range {low:g} {high:g}: a range goes from a number above 0 to a larger one")
    low, high = (float(f"{x:g}") for x in (low, high))  # as points are called
    hint = get_type_hints(method.__init__)[keyword]
    kinds = get_args(hint) or (hint,)
    return Scale(float(low), float(high)) if float in kinds else Scale(int(low), int(high), whole=True)
