"""Paired differences against a slow loop, against their closed form, and against themselves."""

import numpy as np
import pytest

from method_oracles import paired_interval_by_loop
from retain import paired, scores

rng = np.random.default_rng(0)
ROWS = (60, 40)


def outcomes(right: float, seed: int) -> list[np.ndarray]:
    """Of two tasks after every stage, each row right with that probability."""
    draw = np.random.default_rng(seed)
    return [(draw.random((3, n)) < right).astype(float) for n in ROWS]


def differences(ours: list, theirs: list, score: object = scores.average_accuracy, **options: int) -> np.ndarray:
    one, other = (paired.resampled(runs, **options) for runs in (ours, theirs))
    return paired.each(one, score) - paired.each(other, score)  # type: ignore[arg-type]


def test_a_method_is_no_better_than_itself() -> None:
    runs = [outcomes(0.7, seed) for seed in range(3)]
    found = differences(runs, runs, replicates=50)
    assert found.shape == (3, 50) and (found == 0).all()
    assert paired.interval(found) == (0.0, 0.0)


@pytest.mark.parametrize("score", [scores.average_accuracy, scores.forgetting])
def test_the_interval_is_that_of_a_slow_loop(score: object) -> None:
    ours, theirs = ([outcomes(0.9 - 0.1 * seed - i / 5, 9 * i + seed) for seed in range(3)] for i in range(2))
    theirs[0] = outcomes(0.9, 20)
    found = paired.interval(differences(ours, theirs, score))
    assert found == pytest.approx(paired_interval_by_loop(ours, theirs, score), abs=0.03)
    assert np.ptp(found) > 0.2


def test_one_seed_leaves_the_standard_error_of_paired_rows() -> None:
    """Of the mean over tasks of mean differences d of rows: sqrt(sum_i var(d_i) / n_i) / T."""
    ours, theirs = outcomes(0.8, 1), outcomes(0.7, 2)
    gains = [a[-1] - b[-1] for a, b in zip(ours, theirs, strict=True)]
    error = sum(gain.var() / len(gain) for gain in gains) ** 0.5 / 2
    low, high = paired.interval(differences([ours], [theirs], replicates=2000))
    assert (low + high) / 2 == pytest.approx(np.mean([gain.mean() for gain in gains]), abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_rows_that_both_get_right_or_wrong_together_say_more() -> None:
    ours = outcomes(0.8, 1)
    near = [np.where(rng.random(a.shape) < 0.05, 1 - a, a) for a in ours]
    widths = [np.ptp(paired.interval(differences([ours], [other]))) for other in (near, outcomes(0.8, 2))]
    assert widths[0] < widths[1] / 2


def test_seeds_that_disagree_widen_it() -> None:
    """Three seeds drawn of three are all the lowest once in 27 times, which is more than 2.5 %."""
    assert paired.interval(np.full((3, 2000), 0.2)) == pytest.approx((0.2, 0.2))
    disagreeing = np.repeat([[0.1], [0.2], [0.3]], 2000, axis=1)
    assert paired.interval(disagreeing) == pytest.approx((0.1, 0.3))
    assert paired.interval(disagreeing, level=0.5) == pytest.approx((0.5 / 3, 0.7 / 3))


def test_what_is_not_measured_has_no_interval() -> None:
    joint = [np.where(np.arange(3)[:, None] == 1, np.nan, a) for a in outcomes(0.8, 1)]
    found = paired.interval(differences([joint], [outcomes(0.8, 2)], scores.forgetting, replicates=10))
    assert np.isnan(found).all()


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 2)])
def test_shapes_are_refused(shape: tuple) -> None:
    with pytest.raises(ValueError, match="seeds, replicates"):
        paired.interval(np.zeros(shape))


def test_what_was_lost_is_paired_by_row() -> None:
    rng = np.random.default_rng(0)
    then = rng.uniform(1, 5, 40)
    assert paired.lost([then, then - 0.25], relative=False) == pytest.approx(
        (0.25,) * 3
    )  # no noise, however rows differ
    assert paired.lost([then, 0.9 * then], relative=True) == pytest.approx((0.1,) * 3)
    now = then - rng.normal(0.2, 1, 40)
    fall, low, high = paired.lost([then, now], relative=False, replicates=4000)
    error = (then - now).std() / 40**0.5
    assert fall == pytest.approx((then - now).mean())
    assert (low, high) == pytest.approx((fall - 1.96 * error, fall + 1.96 * error), abs=0.15 * error)
