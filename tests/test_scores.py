"""Scores against numbers worked out by hand, their identities, and bootstrap intervals against their closed form."""

from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retain import scores

HAND = np.array([[0.05, 0.1, 0.15], [0.9, 0.1, 0.2], [0.8, 0.85, 0.3], [0.7, 0.8, 0.95]])
MATRICES = st.integers(2, 6).flatmap(lambda tasks: arrays(np.float64, (tasks + 1, tasks), elements=st.floats(0.01, 1)))


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (scores.average_accuracy, (0.7 + 0.8 + 0.95) / 3),
        (scores.average_incremental_accuracy, (0.9 + 0.825 + 2.45 / 3) / 3),
        (scores.learning_accuracy, 0.9),
        (scores.forgetting, 0.125),
        (scores.backward_transfer, -0.125),
        (scores.forward_transfer, ((0.1 - 0.1) + (0.3 - 0.15)) / 2),
        (scores.zero_shot_transfer, 0.175),
        (lambda a: scores.zero_shot_transfer(a, by="step"), ((0.1 + 0.2) / 2 + 0.3) / 2),
        (scores.forward_forgetting, ((0.1 - 0.1) + (0.15 - 0.25)) / 2),
        (scores.stability, 1 - (0.2 / 0.9 + 0.05 / 0.85) / 2),
        (lambda a: scores.pooled_accuracy(a, [100, 300, 600]), 0.07 + 0.24 + 0.57),
        (
            lambda a: scores.average_incremental_accuracy(a, [100, 300, 600]),
            (0.9 + (0.25 * 0.8 + 0.75 * 0.85) + 0.88) / 3,
        ),
        (lambda a: scores.forward_transfer(a, [0.5, 0.2, 0.1]), ((0.1 - 0.2) + (0.3 - 0.1)) / 2),
        (lambda a: scores.intransigence(a, [0.95, 0.8, 1.0]), (0.05 - 0.05 + 0.05) / 3),
        (lambda a: scores.plasticity(a, [0.9, 1.0, 0.95]), (1 + 0.85 + 1) / 3),
    ],
)
def test_hand_computed(score, expected):
    assert score(HAND) == pytest.approx(expected, abs=1e-12)


def test_forgetting_ignores_scores_before_the_task_and_after_the_last():
    a = np.array([[0.9, 0.9, 0.9], [0.5, 0.9, 0.9], [0.6, 0.5, 0.9], [0.4, 0.7, 0.5]])
    assert scores.forgetting(a) == pytest.approx(((0.6 - 0.4) + (0.5 - 0.7)) / 2)


@given(MATRICES)
def test_final_less_learned_is_a_share_of_backward_transfer(a):
    tasks = a.shape[1]
    share = (tasks - 1) / tasks * scores.backward_transfer(a)
    assert scores.MFN(a) - scores.MFT(a) == pytest.approx(share, abs=1e-12)


@given(MATRICES)
def test_forgetting_is_at_least_minus_backward_transfer(a):
    assert scores.forgetting(a) >= -scores.backward_transfer(a) - 1e-12
    learned_last = np.minimum(a, np.append(0, np.diagonal(a[1:]))[:, None])
    np.fill_diagonal(learned_last[1:], 1.0)
    assert scores.forgetting(learned_last) == pytest.approx(-scores.backward_transfer(learned_last), abs=1e-12)


@given(MATRICES, st.floats(0.5, 100))
def test_scale(a, factor):
    assert scores.forgetting(factor * a) == pytest.approx(factor * scores.forgetting(a), abs=1e-9)
    assert scores.stability(factor * a) == pytest.approx(scores.stability(a), abs=1e-9)


@given(MATRICES)
def test_zero_shot_weightings_agree_for_two_tasks(a):
    two = a[:3, :2]
    assert scores.zero_shot_transfer(two, "task") == scores.zero_shot_transfer(two, "step") == two[1, 1]


def test_score_after_k_tasks_is_that_of_the_corner():
    assert scores.forgetting(HAND[:3, :2]) == pytest.approx(0.9 - 0.8)


def test_one_task_has_no_forgetting_and_no_transfer():
    got = scores.summary([[0.1], [0.8]], n=[50], reference=[1.0])
    defined = {name: value for name, value in got.items() if value is not None}
    assert defined == pytest.approx(
        {
            "average_accuracy": 0.8,
            "pooled_accuracy": 0.8,
            "average_incremental_accuracy": 0.8,
            "learning_accuracy": 0.8,
            "intransigence": 0.2,
            "plasticity": 0.8,
        }
    )
    assert isnan(scores.forgetting([[0.1], [0.8]]))


def test_joint_has_a_final_average_and_nothing_that_needs_the_rows_between():
    joint = np.full((4, 3), nan)
    joint[0], joint[-1] = 0.1, [0.9, 0.8, 0.7]
    got = scores.summary(joint, n=[1, 1, 2])
    assert {name for name, value in got.items() if value is not None} == {"average_accuracy", "pooled_accuracy"}
    assert got["average_accuracy"] == pytest.approx(0.8)
    assert got["pooled_accuracy"] == pytest.approx(0.775)


def test_unmeasured_row_zero_and_upper_part_cost_only_transfer():
    lower = HAND.copy()
    lower[0] = nan
    lower[1:][np.triu_indices(3, 1)] = nan
    got, full = scores.summary(lower), scores.summary(HAND)
    lost = {"forward_transfer", "zero_shot_transfer", "forward_forgetting"}
    assert {name for name in full if full[name] is not None and got[name] is None} == lost
    assert {name: got[name] for name in got if name not in lost} == {n: full[n] for n in full if n not in lost}


def test_shares_of_nothing_are_undefined():
    never_learned = [[0.0, 0.0], [0.0, 0.0], [0.0, 0.5]]
    assert isnan(scores.stability(never_learned))
    assert scores.forgetting(never_learned) == 0
    assert isnan(scores.plasticity(HAND, [0.9, 0.0, 0.95]))


def test_check_accepts_rows_read_from_json():
    rows: list[list[float | None]] = [[None, None], [1, 0.5], [0, 1]]
    np.testing.assert_array_equal(scores.check(rows), [[nan, nan], [1, 0.5], [0, 1]])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (HAND[1:], r"\(T\+1, T\), row 0 the untouched model.*got \(3, 3\)"),
        ([0.5, 0.5], r"got \(2,\)"),
        (np.empty((1, 0)), r"got \(1, 0\)"),
        ([[0.1], [np.inf]], "infinite"),
        ([[0.1], [0.2, 0.3]], "rectangular array of numbers"),
        ([["a"], ["b"]], "rectangular array of numbers"),
    ],
)
def test_check_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        scores.summary(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.pooled_accuracy(HAND, [1, 2]), r"n must be \(3,\), one value per task; got \(2,\)"),
        (lambda: scores.pooled_accuracy(HAND, [1, 0, 2]), "at least one test example"),
        (lambda: scores.intransigence(HAND, 0.5), r"reference must be \(3,\)"),
        (lambda: scores.forward_transfer(HAND, [0.1]), r"baseline must be \(3,\)"),
        (lambda: scores.zero_shot_transfer(HAND, "row"), "unknown average 'row'; known: 'task', 'step'"),  # type: ignore[arg-type]
        (lambda: scores.resample([]), "got none"),
        (
            lambda: scores.resample([np.ones((3, 5))]),
            r"correct\[0\] must be \(T\+1, examples\) = \(2, n\); got \(3, 5\)",
        ),
        (lambda: scores.resample([np.ones((2, 0))]), r"got \(2, 0\)"),
        (lambda: scores.resample([np.array([[1, nan], [1, 1]])]), "NaN in part"),
        (lambda: scores.resample([np.ones((2, 5))], replicates=0), "at least 1; got 0"),
        (lambda: scores.bootstrap([np.ones((2, 5))], scores.MFN, level=95), "between 0 and 1; got 95"),
    ],
)
def test_arguments_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bootstrap_matches_the_binomial_interval():
    n, p = 1000, 0.7
    correct = np.stack([np.full(n, nan), np.arange(n) < p * n])
    low, high = scores.bootstrap([correct], scores.average_accuracy, replicates=4000)
    half = 1.959964 * sqrt(p * (1 - p) / n)
    assert (low, high) == pytest.approx((p - half, p + half), abs=0.0025)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    n, p, trials = 200, 0.7, 150
    drawn = np.random.default_rng(1).random((trials, 1, n)) < p
    covered = 0
    for trial in drawn:
        low, high = scores.bootstrap([np.repeat(trial, 2, 0)], scores.average_accuracy, replicates=200, level=0.9)
        covered += low <= p <= high
    assert covered / trials == pytest.approx(0.9, abs=0.05)


def test_examples_are_drawn_alike_in_all_rows():
    learned = np.random.default_rng(0).random(400) < 0.8
    correct = [np.stack([~learned, learned, learned]), np.stack([learned, ~learned, learned])]
    assert scores.bootstrap(correct, scores.forgetting) == (0.0, 0.0)
    low, high = scores.bootstrap(correct, scores.average_accuracy)
    assert high - low > 0.02


def test_resample_agrees_with_drawing_one_example_at_a_time():
    rng = np.random.default_rng(0)
    correct = [rng.random((3, 30)) < [[0.2], [0.9], [0.5]], rng.random((3, 50)).round(3)]
    slow = np.empty((3000, 3, 2))
    for replicate in slow:
        for i, values in enumerate(correct):
            chosen = rng.integers(values.shape[1], size=values.shape[1])
            replicate[:, i] = values[:, chosen].mean(axis=1)
    fast = scores.resample(correct, replicates=3000)
    np.testing.assert_allclose(fast.mean(0), slow.mean(0), atol=0.008)
    np.testing.assert_allclose(_covariance(fast), _covariance(slow), atol=0.001)


def _covariance(matrices):
    return np.cov(matrices.reshape(len(matrices), -1), rowvar=False)


def test_resample_keeps_unmeasured_rows_unmeasured():
    values = np.array([[nan] * 4, [1, 0, 1, 1]])
    got = scores.resample([values], replicates=5)
    assert np.isnan(got[:, 0]).all() and np.isfinite(got[:, 1]).all()
    assert np.isnan(scores.resample([np.full((2, 4), nan)], replicates=5)).all()
    assert all(map(isnan, scores.bootstrap([values], scores.forgetting, replicates=5)))


def test_bootstrap_repeats_itself_by_seed():
    correct = [np.random.default_rng(0).random((2, 100)) < 0.6]
    first = scores.resample(correct, replicates=20, seed=3)
    np.testing.assert_array_equal(first, scores.resample(correct, replicates=20, seed=3))
    assert (first != scores.resample(correct, replicates=20, seed=4)).any()
