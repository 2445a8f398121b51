"""The gauge: what a foreseen nat has cost so far, so that what is foreseen next can be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SCATTER = math.log(2.0)  # of the logarithm of measured/foreseen from boundary to boundary of one run
STRAY = 0.1  # of boundaries tell nothing: what the earlier tasks gained or lost there had other reasons
PRIOR_SPREAD = 4.0  # of the factor between streams, before any boundary: a factor either way
NODES = np.linspace(-4, 4, 161)  # standard deviations
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()
FINEST = 0.05  # of a measured rise: an error below is no better, and the nodes would miss it


@dataclass(frozen=True)
class Factor:
    """How many measured nats a foreseen one stands for.

    Attributes:
        middle: the factor.
        spread: that of the next boundary lies within middle / spread and middle * spread two times in three.
        boundaries: how many were measured.
    """

    middle: float
    spread: float
    boundaries: int

    def read(self, foreseen: float) -> dict[str, float]:
        """A foreseen rise in nats as they are measured: "calibrated", and "low" and "high" of two times in three."""
        value = self.middle * foreseen
        return {"calibrated": value, "low": value / self.spread, "high": value * self.spread}


def factor(boundaries: Iterable[Sequence[float]], prior: float, spread: float = PRIOR_SPREAD) -> Factor:
    """The factor between foreseen and measured rises.

    log measured/foreseen is normal about the logarithm of the factor, with standard deviation ``SCATTER`` from boundary
    to boundary; what is measured has its own error on top, so that a rise that is not clear counts for little and one
    below zero is no obstacle; and ``STRAY`` of the boundaries are of another kind. The posterior is taken on a grid.

    Args:
        boundaries: (foreseen, measured, standard error) of each, in nats.
        prior: the factor that is expected before any boundary.
        spread: one standard deviation of its logarithm, as a factor.
    """
    every = [(f, m, max(e, FINEST * abs(m)) if math.isfinite(e) else abs(m)) for f, m, e in boundaries if f > 0]
    width = math.log(spread)
    logs = math.log(prior) + width * np.linspace(-5, 5, 1001)
    density = -0.5 * ((logs - math.log(prior)) / width) ** 2
    for foreseen, measured, error in ((f, m, e) for f, m, e in every if e):
        there = foreseen * np.exp(logs[:, None] + SCATTER * NODES)
        usual = _normal(measured - there, error) @ WEIGHTS
        density += np.log((1 - STRAY) * usual + STRAY * _normal(measured, math.hypot(measured, error)))
    weights = np.exp(density - density.max())
    weights /= weights.sum()
    mean = float(weights @ logs)
    variance = float(weights @ (logs - mean) ** 2)
    return Factor(math.exp(mean), math.exp(math.sqrt(variance + SCATTER**2)), len(every))


def _normal(x: np.ndarray | float, deviation: float) -> np.ndarray:
    return np.exp(-0.5 * (np.asarray(x) / deviation) ** 2) / deviation
