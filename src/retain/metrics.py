"""Scores of a task that are no mean over its rows: correlations; and the error of numbers. Higher is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["accuracy", "matthews", "pearson", "spearman", "neg_mean_absolute_error", "neg_mpjpe"]
Array = NDArray[np.float64]

ROUNDING = 1e-12  # of the largest number, or variance, below which numbers are one
ERRORS: tuple[Metric, ...] = ("neg_mean_absolute_error", "neg_mpjpe")  # of rows, whose mean is the negated score
OF_NUMBERS: tuple[Metric, ...] = ("pearson", "spearman", *ERRORS)
SPACE = 3  # numbers that a joint is given by
TITLES: dict[str, str] = {
    "accuracy": "accuracy",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "neg_mean_absolute_error": "negated mean absolute error",
    "neg_mpjpe": "negated mean per joint position error",
}


def errors(metric: str, said: Array, wanted: Array) -> Array:
    """The error (..., n) of each row, of ``said`` (..., n, k) numbers beside those ``wanted`` (n, k).

    "neg_mean_absolute_error" is of their mean distance, (1/k) sum_i |said_i - wanted_i|; "neg_mpjpe" of that of joints
    in space, E_MPJPE of Ionescu et al. 2014 (Human3.6M, TPAMI 36): (3/k) sum_j ||said_j - wanted_j||, three numbers
    each. Neither is negated here.
    """
    apart = said - wanted
    if metric == "neg_mpjpe":
        apart = np.linalg.norm(apart.reshape(*apart.shape[:-1], -1, SPACE), axis=-1)
    found: Array = np.abs(apart).mean(-1)
    return found


def misfit(metric: str, count: int) -> str:
    """Why ``metric`` is of no rows of ``count`` numbers each; empty if it is."""
    if metric == "neg_mpjpe" and count % SPACE:
        return f"metric {metric!r} is of joints, of three numbers each, and a row has {count}"
    if metric not in ERRORS and count > 1:
        return f"metric {metric!r} is of one number a row, and a row has {count}; of several: {', '.join(ERRORS)}"
    return ""


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model said to the test rows of a task, stage after stage, and what it is scored by.

    "matthews" is the correlation of Gorodkin 2004 (Computational Biology and Chemistry 28), equation 8: with two
    classes that of Matthews 1975. "spearman" is Pearson's correlation of ranks, those of ties their mean. Where one
    side is constant, correlations are 0: nothing is known from it.

    Attributes:
        metric: of ``TITLES``, but for accuracy.
        said: (S, n) classes or numbers after each of S stages; a row of NaN where nothing was measured. Of an error of
            several numbers a row the errors, beside which 0 is wanted.
        wanted: (n,).
    """

    metric: str
    said: Array
    wanted: Array

    @property
    def is_error(self) -> bool:
        """Whether scores are an error, negated: its share is one of the error."""
        return self.metric in ERRORS

    def scores(self, times: Array | None = None) -> Array:
        """(S,) the metric on rows of which each counts so many ``times`` (n,); all once if not given."""
        times = np.ones(len(self.wanted)) if times is None else times
        if self.is_error:
            return -(np.abs(self.said - self.wanted) @ times) / times.sum()
        return np.array([np.nan if x is None else self._correlated(x, times) for x in self._coded])

    def rows(self) -> Array:
        """(S, n) values whose mean over rows is the metric, and which vary as it does: the jackknife's."""
        if self.is_error:
            return -np.abs(self.said - self.wanted)
        n = len(self.wanted)
        without = np.stack([self.scores((np.arange(n) != i).astype(np.float64)) for i in range(n)], axis=1)
        return self.scores()[:, None] + (n - 1) * (without.mean(1, keepdims=True) - without)

    @cached_property
    def _coded(self) -> list[Array | None]:
        return [None if np.isnan(stage).any() else self._code(stage) for stage in self.said]

    @cached_property
    def _right(self) -> Array:
        return self._code(self.wanted)

    def _code(self, values: Array) -> Array:
        """``values`` (n,) as (n, k): a column for each class; the number, on its own scale; or its place in order."""
        if self.metric == "matthews":
            classes = np.unique(np.concatenate([self.wanted, self.said[~np.isnan(self.said)]]))
            return (values[:, None] == classes).astype(np.float64)
        if self.metric == "spearman":
            return np.unique(values, return_inverse=True)[1].astype(np.float64)[:, None]
        apart = values - values.mean()
        size = np.abs(apart).max()
        return (apart / size if size > ROUNDING * np.abs(values).max() else 0 * apart)[:, None]

    def _correlated(self, said: Array, times: Array) -> float:
        x, y = (_ranks(z, times) if self.metric == "spearman" else z for z in (said, self._right))
        weights = times / times.sum()
        x, y = x - weights @ x, y - weights @ y
        xx, yy, xy = (float(weights @ (a * b).sum(1)) for a, b in ((x, x), (y, y), (x, y)))
        return xy / (xx * yy) ** 0.5 if min(xx, yy) > ROUNDING else 0.0


def _ranks(places: Array, times: Array) -> Array:
    """The ranks (n, 1) of rows at ``places`` (n, 1) among different values, each row so many ``times`` (n,) there."""
    index = places[:, 0].astype(np.intp)
    count = np.bincount(index, weights=times)
    return (np.cumsum(count) - (count - 1) / 2)[index, None]


def unit(metrics: Iterable[str]) -> str:
    """What the score matrix of tasks with these ``metrics`` holds, in words."""
    found = set(metrics)
    return TITLES[found.pop()] if len(found) == 1 else "score"
