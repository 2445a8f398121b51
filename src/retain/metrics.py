"""Scores of a task that are no mean over its rows: correlations; and the error of numbers. Higher is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["accuracy", "matthews", "pearson", "spearman", "neg_mean_absolute_error"]
Array = NDArray[np.float64]

ROUNDING = 1e-12  # of the largest number, or variance, below which numbers are one
OF_NUMBERS: tuple[Metric, ...] = ("pearson", "spearman", "neg_mean_absolute_error")
TITLES: dict[str, str] = {
    "accuracy": "accuracy",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "neg_mean_absolute_error": "negated mean absolute error",
}


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model said to the test rows of a task, stage after stage, and what it is scored by.

    "matthews" is the correlation of Gorodkin 2004 (Computational Biology and Chemistry 28), equation 8: with two
    classes that of Matthews 1975. "spearman" is Pearson's correlation of ranks, those of ties their mean. Where one
    side is constant, correlations are 0: nothing is known from it.

    Attributes:
        metric: of ``TITLES``, but for accuracy.
        said: (S, n) classes or numbers after each of S stages; a row of NaN where nothing was measured.
        wanted: (n,).
    """

    metric: str
    said: Array
    wanted: Array

    @property
    def is_error(self) -> bool:
        """Whether scores are an error, negated: its share is one of the error."""
        return self.metric == "neg_mean_absolute_error"

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
