"""Arithmetic on the score matrix of a stream: accuracy, forgetting, transfer, and their bootstrap intervals.

A score matrix ``a`` (T+1, T) holds in row t the scores, higher is better, of every task after training task t; row 0 is
the untouched model. Columns are tasks; NaN is "not measured", and a score that needs such an entry is NaN itself. So is
a score that is not defined, such as the forgetting of a stream of one task. With a_{t,i} counted from 1 as in the
papers, the score after only k tasks is the same function of ``a[: k + 1, :k]``.
"""

from collections.abc import Callable, Iterator, Sequence
from math import isnan, nan
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from retain.metrics import Answered, Array

Scores = ArrayLike | Sequence[Sequence[float | None]]
Column = Scores | Answered
DRAWN = 2**20  # numbers that are drawn at a time


def check(a: Scores) -> Array:
    """Return ``a`` (T+1, T) as float64, or say in a ValueError why it is no score matrix; None counts as NaN."""
    a = _floats(a, "scores")
    if a.ndim != 2 or a.shape[0] != a.shape[1] + 1 or not a.size:
        raise ValueError(f"scores must be (T+1, T), row 0 the untouched model (NaN if not measured); got {a.shape}")
    return a


def average_accuracy(a: Scores) -> float:
    """Final average over tasks: ACC of Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), "MFN" of the MLLM benchmarks.

    (1/T) sum_i a_{T,i}
    """
    return _mean(check(a)[-1])


def pooled_accuracy(a: Scores, n: ArrayLike) -> float:
    """Final average over all test examples, ``n`` (T,) of them per task: what class-incremental papers call A_T.

    sum_i n_i a_{T,i} / sum_i n_i
    """
    a = check(a)
    return float(np.average(a[-1], weights=_sizes(n, a)))


def average_incremental_accuracy(a: Scores, n: ArrayLike | None = None) -> float:
    """Mean over time of the average on the tasks seen so far: Rebuffi et al. 2017 (arXiv 1611.07725), also "MAA".

    (1/T) sum_t (1/t) sum_{i<=t} a_{t,i}; with test sizes ``n`` (T,) the inner average is the pooled one.
    """
    a = check(a)
    weights = np.ones(a.shape[1]) if n is None else _sizes(n, a)
    return _mean(np.array([np.average(a[t, :t], weights=weights[:t]) for t in range(1, len(a))]))


def learning_accuracy(a: Scores) -> float:
    """Score of each task right after its own training: LA of Riemer et al. 2019 (arXiv 1810.11910), also "MFT".

    (1/T) sum_t a_{t,t}
    """
    return _mean(_learned(check(a)))


MFT = learning_accuracy
MFN = average_accuracy
MAA = average_incremental_accuracy


def forgetting(a: Scores) -> float:
    """Loss against the best score a task ever had: Chaudhry et al. 2018 (arXiv 1801.10112).

    (1/(T-1)) sum_{j<T} max_{j<=l<T} a_{l,j} - a_{T,j}. The paper's maximum starts at l = 1; here it starts where task j
    is first trained, so that losing a good zero-shot score before then is not counted (`forward_forgetting` does that).
    """
    a = check(a)
    return _mean(_best(a) - a[-1, :-1])


def stability(a: Scores) -> float:
    """One minus the share of its best score that a task lost, as in EWC-LoRA (arXiv 2602.17559).

    1 - (1/(T-1)) sum_{j<T} (best_j - a_{T,j}) / best_j, best_j as in `forgetting`; NaN if a best score is not positive.
    """
    a = check(a)
    best = _best(a)
    return 1 - _mean(_ratio(best - a[-1, :-1], best))


def backward_transfer(a: Scores) -> float:
    """Change of a task's score since its own training: BWT of Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    (1/(T-1)) sum_{i<T} a_{T,i} - a_{i,i}, hence MFN - MFT = ((T-1)/T) BWT.
    """
    a = check(a)
    return _mean((a[-1] - _learned(a))[:-1])


def forward_transfer(a: Scores, baseline: ArrayLike | None = None) -> float:
    """Gain on a task just before its own training: FWT of Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    (1/(T-1)) sum_{i>=2} a_{i-1,i} - b_i. The paper's ``baseline`` b (T,) is a model with random weights; the default is
    row 0, the untouched model, which for a pretrained one is its zero-shot score.
    """
    a = check(a)
    b = a[0] if baseline is None else _vector(baseline, a, "baseline")
    return _mean(np.diagonal(a[1:], offset=1) - b[1:])


def zero_shot_transfer(a: Scores, by: Literal["task", "step"] = "task") -> float:
    """Score, a level and no difference, on tasks not trained yet: "Transfer" of MTIL (Zheng et al. 2023, 2303.06628).

    "task": (1/(T-1)) sum_{i>=2} (1/(i-1)) sum_{1<=t<i} a_{t,i}, each task counts alike.
    "step": (1/(T-1)) sum_{t<T} (1/(T-t)) sum_{i>t} a_{t,i}, each moment in time counts alike.
    """
    a = check(a)
    tasks = range(1, a.shape[1])
    if by == "task":
        return _mean(np.array([a[1 : i + 1, i].mean() for i in tasks]))
    if by == "step":
        return _mean(np.array([a[t, t:].mean() for t in tasks]))
    raise ValueError(f"unknown average {by!r}; known: 'task', 'step'")


def forward_forgetting(a: Scores) -> float:
    """Zero-shot score lost to the training of earlier tasks, after EBLoRA (arXiv 2602.00722).

    (1/(T-1)) sum_{i>=2} a_{0,i} - (1/(i-1)) sum_{1<=t<i} a_{t,i}
    """
    a = check(a)
    return _mean(a[0, 1:]) - zero_shot_transfer(a)


def intransigence(a: Scores, reference: ArrayLike) -> float:
    """What the learning of new tasks cost: Chaudhry et al. 2018 (arXiv 1801.10112), averaged over tasks.

    (1/T) sum_k a*_k - a_{k,k}; ``reference`` (T,) a*_k is task k's score by a model trained jointly on tasks 1..k (the
    paper's) or on task k alone: say which.
    """
    a = check(a)
    return _mean(_vector(reference, a, "reference") - _learned(a))


def plasticity(a: Scores, reference: ArrayLike) -> float:
    """Learning accuracy as a share of an unconstrained model's, as in EWC-LoRA (arXiv 2602.17559).

    (1/T) sum_i a_{i,i} / a*_i; ``reference`` (T,) is plain fine-tuning. NaN if a reference score is not positive.
    """
    a = check(a)
    return _mean(_ratio(_learned(a), _vector(reference, a, "reference")))


def summary(a: Scores, n: ArrayLike | None = None, reference: ArrayLike | None = None) -> dict[str, float | None]:
    """Collect every score of ``a`` (T+1, T) by name; None where it is not defined or not measured.

    Args:
        a: The score matrix.
        n: (T,) test sizes, for the pooled accuracy; the incremental average stays task-balanced.
        reference: (T,) scores that stand for full plasticity, for intransigence and plasticity alike.
    """
    a = check(a)
    values = {
        "average_accuracy": average_accuracy(a),
        "pooled_accuracy": nan if n is None else pooled_accuracy(a, n),
        "average_incremental_accuracy": average_incremental_accuracy(a),
        "learning_accuracy": learning_accuracy(a),
        "forgetting": forgetting(a),
        "backward_transfer": backward_transfer(a),
        "forward_transfer": forward_transfer(a),
        "zero_shot_transfer": zero_shot_transfer(a),
        "forward_forgetting": forward_forgetting(a),
        "stability": stability(a),
        "intransigence": nan if reference is None else intransigence(a, reference),
        "plasticity": nan if reference is None else plasticity(a, reference),
    }
    return {name: None if isnan(value) else value for name, value in values.items()}


def matrix_of(correct: Sequence[Column]) -> Array:
    """The score matrix (T+1, T) of T ``correct``, as in `resample`."""
    return np.stack([c.scores() if isinstance(c, Answered) else _floats(c, "correct").mean(1) for c in correct], axis=1)


def bootstrap(
    correct: Sequence[Column],
    score: Callable[[Array], float],
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of ``score`` over test examples (Efron & Tibshirani 1993), NaN where the score is.

    The interval is about the examples only: it says nothing of other seeds, orders or tasks.

    Args:
        correct: T of them, as in `resample`.
        score: Any function of a score matrix in this file.
        replicates: Number of resampled matrices.
        level: Share of the replicates inside the interval.
        seed: The same seed gives every score the same resampled matrices.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    values = [score(a) for a in resample(correct, replicates=replicates, seed=seed)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample(correct: Sequence[Column], *, replicates: int = 1000, seed: int = 0) -> Array:
    """Score matrices (replicates, T+1, T) of test sets drawn with replacement, the same draw in every row of a task.

    Args:
        correct: T arrays (T+1, n_i): score of each test example of task i in each row, the same examples in the same
            order in all rows; a row not measured is all NaN. Where the score of a task is no mean over examples, what
            was answered to them.
        replicates: Number of matrices.
        seed: Seed of the draws.
    """
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1; got {replicates}")
    rng = np.random.default_rng(seed)
    columns = [c if isinstance(c, Answered) else _outcomes(c, i, len(correct)) for i, c in enumerate(correct)]
    if not columns:
        raise ValueError("correct must hold one array per task; got none")
    return np.stack([_resampled(column, replicates, rng) for column in columns], axis=2)


def _resampled(column: Array | Answered, replicates: int, rng: np.random.Generator) -> Array:
    """Scores (replicates, T+1) of a ``column``, means if it is values (T+1, n), over n examples drawn anew."""
    n = len(column.wanted) if isinstance(column, Answered) else column.shape[1]
    drawn = _drawn(n, replicates, rng)
    if isinstance(column, Answered):
        return np.stack([column.scores(each) for times in drawn for each in times])
    return np.concatenate([times @ column.T / n for times in drawn])


def _drawn(n: int, replicates: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of n examples is drawn in n draws, for ``replicates`` times n draws, some (k, n) at a time."""
    most = max(1, DRAWN // n)
    for start in range(0, replicates, most):
        k = min(most, replicates - start)
        drawn = rng.integers(n, size=(k, n)) + n * np.arange(k)[:, None]
        yield np.bincount(drawn.ravel(), minlength=k * n).reshape(k, n).astype(np.float64)


def _outcomes(values: Scores, task: int, tasks: int) -> Array:
    values = _floats(values, f"correct[{task}]")
    if values.ndim != 2 or len(values) != tasks + 1 or not values.size:
        raise ValueError(f"correct[{task}] must be (T+1, examples) = ({tasks + 1}, n); got {values.shape}")
    missing = np.isnan(values)
    if (missing.any(axis=1) != missing.all(axis=1)).any():
        raise ValueError(f"correct[{task}] has a row that is NaN in part; a row is measured on all examples or on none")
    return values


def _floats(values: Scores, name: str) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    if np.isinf(array).any():
        raise ValueError(f"{name} must be finite, or NaN where not measured; got an infinite value")
    return array


def _vector(values: ArrayLike, a: Array, name: str) -> Array:
    array = _floats(values, name)
    if array.shape != (a.shape[1],):
        raise ValueError(f"{name} must be ({a.shape[1]},), one value per task; got {array.shape}")
    return array


def _sizes(n: ArrayLike, a: Array) -> Array:
    sizes = _vector(n, a, "n")
    if not (sizes > 0).all():
        raise ValueError(f"n must count at least one test example per task; got {sizes.tolist()}")
    return sizes


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else nan


def _ratio(part: Array, whole: Array) -> Array:
    """``part / whole``, NaN where ``whole`` is not positive and a share has no meaning."""
    return part / np.where(whole > 0, whole, nan)


def _learned(a: Array) -> Array:
    """Scores (T,) right after a task's own training, a_{t,t}."""
    return np.diagonal(a[1:])


def _best(a: Array) -> Array:
    """Best scores (T-1,) of all tasks but the last between their own training and the last task's."""
    last = a.shape[1]
    return np.array([a[j + 1 : last, j].max() for j in range(last - 1)])
