"""The factor between foreseen and measured rises."""

import math

import pytest

from retain.gauge import PRIOR_SPREAD, SCATTER, factor


def test_without_boundaries_it_is_what_is_expected() -> None:
    found = factor([], 10.0)
    assert found.middle == pytest.approx(10.0) and found.boundaries == 0
    expected = math.hypot(math.log(PRIOR_SPREAD), SCATTER)
    assert math.log(found.spread) == pytest.approx(expected, rel=1e-3)
    assert found.read(0.01) == pytest.approx({"calibrated": 0.1, "low": 0.1 / found.spread, "high": 0.1 * found.spread})


def test_clear_rises_without_strays_give_the_normal_posterior() -> None:
    """Of measured rises that are known well the logarithms are normal observations of the factor's."""
    ratios = [30.0, 60.0, 45.0]
    found = factor([(0.01, 0.01 * r, 1e-3) for r in ratios], 10.0)
    precision = [1 / math.log(PRIOR_SPREAD) ** 2, *[1 / SCATTER**2] * 3]
    logs = [math.log(10.0), *map(math.log, ratios)]
    mean = sum(p * x for p, x in zip(precision, logs, strict=True)) / sum(precision)
    assert math.log(found.middle) == pytest.approx(mean, abs=0.05)
    assert math.log(found.spread) == pytest.approx(math.sqrt(1 / sum(precision) + SCATTER**2), abs=0.05)


def test_a_rise_that_is_not_clear_counts_for_little_and_a_fall_is_no_obstacle() -> None:
    clear = factor([(0.01, 1.0, 0.02)] * 3, 10.0).middle
    assert clear > 60
    assert 30 < factor([(0.01, 1.0, 0.02)] * 3 + [(0.01, -0.3, 0.02)], 10.0).middle <= clear * 1.01
    assert factor([(0.01, 1.0, 10.0)], 10.0).middle == pytest.approx(10.0, rel=0.05)
    assert factor([(0.01, 0.0, 0.01)], 10.0).middle < 10.0
    assert factor([(0.01, 0.5, math.nan), (0.01, 0.5, math.inf)], 10.0).middle > 10.0
    assert factor([(0.0, 0.5, 0.01)], 10.0).boundaries == 0
