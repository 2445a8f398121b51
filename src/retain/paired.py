"""One method against another: differences of scores, paired by seed and by test row, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from retain.metrics import Answered
from retain.scores import Array, Column, matrix_of, resample


def resampled(runs: Sequence[Sequence[Column]], *, replicates: int = 1000, seed: int = 0) -> Array:
    """Score matrices (S, R, T+1, T) of R resampled test sets, the same draws in all S runs of one stream.

    Two calls with the same numbers of rows and the same ``seed`` draw the same rows, so that methods are paired.

    Args:
        runs: S runs, one a seed, each T arrays (T+1, n_i) as `scores.resample` takes them; all of the same test rows.
        replicates: R.
        seed: of the draws.
    """
    return np.stack([resample(run, replicates=replicates, seed=seed) for run in runs])


def each(matrices: Array, score: Callable[[Array], float]) -> Array:
    """``score`` (S, R) of each of ``matrices`` (S, R, T+1, T)."""
    return np.array([[score(a) for a in run] for run in matrices])


def interval(differences: ArrayLike, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over seeds of ``differences`` (S, R), over seeds and test rows together.

    Column r holds the difference of two methods under each seed on the r-th resampled test set; for each, S seeds are
    drawn with replacement ("The pigeonhole bootstrap", Owen 2007, Annals of Applied Statistics 1). One seed leaves an
    interval over test rows alone, and the spread of S seeds is understated by sqrt((S-1)/S), as by any bootstrap: a
    fifth for three. NaN where a difference is.

    Args:
        differences: (S, R).
        level: share of the replicates inside the interval.
        seed: of the draws of seeds.

    Raises:
        ValueError: not (S, R).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"differences must be (seeds, replicates); got {values.shape}")
    seeds, replicates = values.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(seeds, replicates))
    means = np.take_along_axis(values, drawn, axis=0).mean(0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def lost(
    rows: Column, *, relative: bool, level: float = 0.95, replicates: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """How far the score of a task has fallen from the first to the second of two stages, and its interval.

    Percentile interval over rows, drawn in pairs; it says nothing of other seeds. ``relative``: as a share of the
    first score, NaN where that is not positive in some draw; of an error that is negated, as a share of the error.

    Args:
        rows: (2, n) values whose means are the scores, then and now, or what was answered to n rows.
        relative: as above.
        level: share of the replicates inside the interval.
        replicates: resampled test sets.
        seed: of the draws.

    Returns:
        (loss, low, high).
    """
    drawn = resample([rows], replicates=replicates, seed=seed)[:, :, 0]
    found = np.concatenate([matrix_of([rows]).T, drawn])
    fall = found[:, 0] - found[:, 1]
    if relative:
        whole = -found[:, 0] if isinstance(rows, Answered) and rows.is_error else found[:, 0]
        fall = fall / np.where(whole > 0, whole, np.nan)
    low, high = np.quantile(fall[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(fall[0]), float(low), float(high)
