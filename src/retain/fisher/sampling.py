"""Which examples to run backward, with what weight, and how far the mean over them may be off.

A model that fits its rows has most of its Fisher information in a few of them. One forward pass finds the squared
score |p - y|^2 of every row; rows are then drawn in proportion to it and weighted by the inverse, which leaves the mean
what it was (importance sampling; Katharopoulos and Fleuret 2018, arXiv 1803.00942, do so to train).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNIFORM = 0.1  # the share of draws that all rows have alike, so that no weight exceeds 1 / UNIFORM
# An example run backward, with its products, costs about four looks at one. Unless importance sampling needs a fourth
# of the examples or less, looking for them does not pay.
WORTH = 4.0
# Rows to look at for each one drawn. With variances u of a row and v of a draw, R looks and m draws are best shared
# out at R/m = sqrt(WORTH u / v); fitted models have u / v around 64, and more.
LOOKS = 16


def concentration(energies: Tensor) -> float:
    """How many times fewer examples importance sampling needs: E[e^2] / E[e]^2 of squared scores (R,), at least 1."""
    mean = energies.double().mean()
    return float(energies.double().square().mean() / mean**2) if mean > 0 else 1.0


@dataclass(frozen=True)
class Sample:
    """Rows drawn from a pool of R: ``chosen`` (n,) places in it, how many ``times`` (n,) each, and how many times it
    was to be ``expected`` (n,)."""

    pool: int
    chosen: Tensor
    times: Tensor
    expected: Tensor

    @property
    def draws(self) -> float:
        return float(self.times.sum())

    @property
    def weights(self) -> Tensor:
        """(n,) whose weighted sum over the chosen is, in expectation, ``draws`` times the mean over the pool."""
        return self.times * self.draws / (self.pool * self.expected)

    def variance(self, values: Tensor) -> float:
        """Of the weighted sum of ``values`` (n,), over other draws from the pool.

        Only the part f of an expectation k + f is left to chance. Deville's estimator for rows that are taken with
        unequal probabilities f, at a fixed total (Matei and Tille 2005, J. Official Statistics 21).
        """
        by_chance = self.times > self.expected.floor()
        missing = 1 - self.expected.frac()[by_chance]
        parts = (values * self.weights / self.times)[by_chance]
        shares = missing / missing.sum()
        spread = (missing * (parts - (shares * parts).sum()).square()).sum() / (1 - shares.square().sum())
        return float(spread) if len(parts) > 1 and missing.any() else 0.0


def every(count: int) -> Sample:
    """All rows of a pool, once."""
    ones = torch.ones(count, dtype=torch.float64)
    return Sample(count, torch.arange(count), ones, ones)


def drawn(energies: Tensor, draws: int, generator: torch.Generator) -> Sample:
    """``draws`` rows, with replacement, in proportion to their squared scores (R,) mixed with UNIFORM.

    Systematic: a row that is expected k + f times comes k or k + 1 times, which leaves less to chance than
    independent draws. The rows must stand in random order.
    """
    q = energies.double()
    q = (1 - UNIFORM) * q / q.sum() + UNIFORM / len(q) if q.any() else torch.full_like(q, 1 / len(q))
    reached = (draws * q).cumsum(0)
    reached[-1] = draws
    reached = (reached + torch.rand((), generator=generator, dtype=torch.float64)).floor()
    times = reached.diff(prepend=reached.new_zeros(1))
    chosen = times.nonzero()[:, 0]
    return Sample(len(q), chosen, times[chosen], (draws * q)[chosen])


class Tally:
    """Mean of a value over ``rows`` rows, from one sample after another, and how far it may be off."""

    def __init__(self, rows: int) -> None:
        self.draws = self.total = self.squares = self.variance = 0.0
        self.examples = 0
        self.share = torch.zeros(rows, dtype=torch.float64)
        self.relabelled = self.disagreement = 0.0

    def add(self, pool: slice, sample: Sample, values: Tensor) -> None:
        """Add a ``sample`` from the rows ``pool``, with the ``values`` (n,) of what it chose."""
        weighted = sample.weights * values
        self.draws += sample.draws
        self.total += float(weighted.sum())
        self.squares += float((weighted * values).sum())
        self.variance += sample.variance(values)
        self.examples += len(values)
        self.share[pool] += sample.draws / sample.pool

    def relabel(self, sample: Sample, values: Tensor, some: Sample, others: Tensor) -> None:
        """Compare the ``values`` (n,) of a sample with the ``others`` (k,) that ``some`` of it have by other labels."""
        weights = sample.weights[some.chosen] * some.times / some.expected
        self.relabelled += sample.draws
        self.disagreement += float((weights * (values[some.chosen] - others).square()).sum()) / 2

    @property
    def looked(self) -> int:
        """How many rows a sample has been drawn from."""
        return int(self.share.count_nonzero())

    @property
    def chance(self) -> float:
        """Relative variance of the mean over other draws, from the same rows and from others; more draws lower it."""
        if not self.total or (self.examples < 2 and self.looked < len(self.share)):
            return math.inf
        spread = (self.squares * self.draws / self.total**2 - 1) * self.examples / max(self.examples - 1, 1)
        unseen = float((self.share / self.draws - 1 / len(self.share)).square().sum())
        return self.variance / self.total**2 + max(spread, 0.0) * unseen

    @property
    def labels(self) -> float:
        """Relative variance of the mean of all rows over other labels for them; draws do not lower it.

        Infinite where all rows that were labelled once more came to the same value: of few rows that is chance, and
        says nothing of the others.
        """
        if not self.total or not self.relabelled:
            return 0.0
        if not self.disagreement:
            return math.inf
        return self.disagreement / self.relabelled / len(self.share) * (self.draws / self.total) ** 2

    @property
    def error(self) -> float:
        """Relative standard error of the mean, as one over all rows and all their labels."""
        return math.sqrt(self.chance + self.labels)
