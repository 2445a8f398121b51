"""Metrics that are no mean over rows, against scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import matthews_corrcoef, mean_absolute_error

from retain import paired, scores
from retain.metrics import OF_NUMBERS, Answered, errors, misfit, unit

ORACLES = {
    "matthews": matthews_corrcoef,
    "pearson": lambda wanted, said: pearsonr(wanted, said).statistic,
    "spearman": lambda wanted, said: spearmanr(wanted, said).statistic,
    "neg_mean_absolute_error": lambda wanted, said: -mean_absolute_error(wanted, said),
    "neg_mpjpe": lambda wanted, said: -mean_absolute_error(wanted, said),  # of errors beside zero, as they are kept
}


def answered(metric: str, n: int = 60, stages: int = 2) -> Answered:
    """Answers that get worse, with ties, the more of them are classes."""
    rng = np.random.default_rng(1)
    wanted = rng.integers(0, 3, n).astype(float) if metric not in OF_NUMBERS else rng.normal(size=n).round(1)
    noise = rng.normal(size=(stages, n)) * np.linspace(0.5, 1, stages)[:, None]
    said = (wanted + noise).round(0 if metric not in OF_NUMBERS else 1)
    return Answered(metric, said, wanted)


@pytest.mark.parametrize("metric", ORACLES)
def test_scores_of_rows_and_of_rows_drawn_anew(metric: str) -> None:
    it = answered(metric)
    assert it.scores() == pytest.approx([ORACLES[metric](it.wanted, said) for said in it.said])
    drawn = np.random.default_rng(2).integers(60, size=60)
    found = it.scores(np.bincount(drawn, minlength=60))
    assert found == pytest.approx([ORACLES[metric](it.wanted[drawn], said[drawn]) for said in it.said])


@pytest.mark.parametrize("metric", ORACLES)
def test_values_of_rows_have_the_metric_for_their_mean_and_its_error(metric: str) -> None:
    it = answered(metric, n=300)
    rows, drawn = it.rows(), scores.resample([it], replicates=300)[:, :, 0]
    assert rows.mean(1) == pytest.approx(it.scores())
    assert rows.std(1) / 300**0.5 == pytest.approx(drawn.std(0), rel=0.2)


def test_a_difference_of_stages_is_paired_by_row() -> None:
    it = answered("pearson", n=300)
    fall, low, high = paired.lost(it, relative=False)
    before, after = it.scores()
    assert fall == pytest.approx(before - after) and low < fall < high
    apart = scores.resample([it])[:, :, 0].std(0)
    assert high - low < 2 * 1.96 * (apart**2).sum() ** 0.5  # the rows are the same
    share = paired.lost(it, relative=True)[0]
    assert share == pytest.approx(fall / before)
    error = answered("neg_mean_absolute_error")
    had, has = -error.scores()
    assert paired.lost(error, relative=True)[0] == pytest.approx((has - had) / had)


def test_no_scale_matters_and_what_is_constant_tells_nothing() -> None:
    it = answered("pearson")
    small = Answered("pearson", 1e-9 * it.said + 3e-6, 1e9 * it.wanted - 7)
    assert small.scores() == pytest.approx(it.scores())
    for metric in ("matthews", "pearson", "spearman"):
        assert Answered(metric, np.full((1, 9), 0.1), np.arange(9) % 2.0).scores() == [0]


def test_what_was_not_measured_has_no_score() -> None:
    for metric in ORACLES:
        it = answered(metric)
        said = it.said.copy()
        said[0] = np.nan
        found = Answered(metric, said, it.wanted).scores()
        assert np.isnan(found[0]) and found[1] == pytest.approx(it.scores()[1])


def test_tasks_of_several_metrics_have_a_score() -> None:
    assert unit(["pearson"] * 2) == "Pearson correlation" and unit(["pearson", "accuracy"]) == "score"


def test_errors_of_several_numbers_a_row() -> None:
    rng = np.random.default_rng(0)
    said, wanted = 100 * rng.normal(size=(2, 5, 12)), 100 * rng.normal(size=(5, 12))
    for stage, errs in zip(said, errors("neg_mpjpe", said, wanted), strict=True):
        assert errs == pytest.approx([joints_apart(*row) for row in zip(stage, wanted, strict=True)])
    for stage, errs in zip(said, errors("neg_mean_absolute_error", said, wanted), strict=True):
        assert errs.mean() == pytest.approx(mean_absolute_error(wanted, stage))
    found = Answered("neg_mpjpe", errors("neg_mpjpe", said, wanted), np.zeros(5))
    assert found.scores() == pytest.approx(-errors("neg_mpjpe", said, wanted).mean(1)) and found.is_error
    assert not misfit("neg_mpjpe", 12) and not misfit("pearson", 1)
    assert "and a row has 10" in misfit("neg_mpjpe", 10) and "of one number a row" in misfit("pearson", 2)


def joints_apart(said: list[float], wanted: list[float]) -> float:
    """The mean distance of joints, one after the other."""
    joints = range(0, len(said), 3)
    return sum(math.dist(said[i : i + 3], wanted[i : i + 3]) for i in joints) / len(joints)
