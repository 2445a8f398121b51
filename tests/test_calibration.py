"""What was foreseen beside what was measured, and what is said of it, against numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from retain.calibration import calibrate, doubts, in_words, share_in_words

BEFORE = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([1.0, 1.0]), "c": torch.tensor([5.0])}
AFTER = {"a": torch.tensor([0.3, 0.4, 0.5, 0.8]), "b": torch.tensor([0.0, 4.0]), "c": torch.tensor([0.5])}


def test_a_rise_is_measured_row_by_row() -> None:
    """Of "a" the rows rise by .2 .2 .2 .4, of "b" by -1 and 3: means .25 and 1, standard errors .05 and 2."""
    found = calibrate({"total": 0.1}, {"a": 1.0, "b": 0.5}, BEFORE, AFTER)
    assert json.loads(json.dumps(found)) == found
    a, b = found["tasks"]["a"], found["tasks"]["b"]
    assert (a["measured"], a["standard_error"]) == pytest.approx((0.25, 0.05), abs=2e-6)
    assert (b["measured"], b["standard_error"]) == pytest.approx((1.0, 2.0), abs=2e-6)
    assert a["foreseen"] is b["foreseen"] is a["ratio"] is b["ratio"] is None
    assert found["total"]["measured"] == pytest.approx(0.25 + 0.5 * 1, abs=2e-6)
    assert found["total"]["standard_error"] == pytest.approx((0.05**2 + 1.0**2) ** 0.5, abs=2e-6)
    assert (found["total"]["foreseen"], found["total"]["ratio"]) == (0.1, None)  # it could be chance


def test_a_ratio_is_given_where_the_rise_is_clear() -> None:
    found = calibrate({"total": 0.05, "a": 0.01}, {"a": 1.0}, BEFORE, AFTER)
    assert found["total"]["ratio"] == pytest.approx(0.2, rel=1e-5) and found["tasks"]["a"]["ratio"] == pytest.approx(
        0.04
    )
    fallen = calibrate({"total": 0.05}, {"a": 1.0}, AFTER, BEFORE)
    assert fallen["total"]["measured"] < 0 and fallen["total"]["ratio"] is None


def test_one_row_has_no_standard_error() -> None:
    found = calibrate({"total": 0.05}, {"a": 1.0, "c": 1.0}, AFTER, BEFORE)
    assert found["tasks"]["c"]["standard_error"] is found["total"]["standard_error"] is found["total"]["ratio"] is None
    assert found["total"]["measured"] == pytest.approx(4.25, abs=1e-5)
    json.dumps(found, allow_nan=False)


def rise(foreseen: float, measured: float, error: float | None = 0.01) -> dict[str, Any]:
    clear = error is not None and measured > 2 * error
    ratio = foreseen / measured if clear else None
    return {"foreseen": foreseen, "measured": measured, "standard_error": error, "ratio": ratio}


@pytest.mark.parametrize(
    ("strength", "foreseen", "measured", "said"),
    [
        (1.0, 0.001, 0.5, "protecting them weighed 0.001: the protection is inert. method.strength is 1: raise it "),
        (2.0, 0.001, 0.5, "raise it (about 500 would weigh a nat lost like a nat gained)"),
        (1.0, 0.0, 0.5, "raise it (far more would weigh a nat lost"),
        (10.0, 0.001, 0.5, ""),  # 2 % of a nat paid for a nat lost
        (0.0, 0.001, 0.5, ""),  # nothing was to be protected
        (1.0, 1e-6, 0.015, ""),  # the rise could be chance
        (1.0, 1e-6, -0.5, ""),
        (100.0, 0.02, 0.5, ""),  # it pays as much as there was to gain
        (100.0, 0.0201, 0.5, "more than the whole loss of 2 that there was to gain: the protection dominates"),
        (1e6, 0.0201, 0.0, "method.strength is 1e+06: lower it, or lower the learning rate"),
    ],
)
def test_an_inert_and_a_dominating_protection_are_told_of(
    strength: float, foreseen: float, measured: float, said: str
) -> None:
    calibration = {"total": rise(foreseen, measured), "tasks": {"a": {}}}
    found = doubts(calibration, strength, "b", loss=2.0)
    assert len(found) == bool(said) and said in "".join(found)


def test_a_budget_is_named_in_place_of_the_strength_that_it_finds_and_what_it_allows_is_nothing_inert() -> None:
    told = {"strength": 1e6, "task": "b", "loss": 2.0, "limit": "0.5 nats"}
    assert "the budget is 0.5 nats: raise it" in doubts({"total": rise(0.0201, 0.0), "tasks": {"a": {}}}, **told)[0]
    inside = {"total": rise(0.001, 0.5), "tasks": {"a": {}}}
    assert doubts(inside, 1.0, "b", 2.0) and not doubts(inside, 1.0, "b", 2.0, "0.5 nats")


def test_a_clear_rise_that_is_slight_worries_nobody() -> None:
    for tasks, told in ({"a": {}}, True), ({"a": {}, "b": {}}, False):
        assert bool(doubts({"total": rise(1e-9, 0.015, 0.001), "tasks": tasks}, 1.0, "c", 2.0)) is told


def test_a_rise_in_words_without_a_standard_error() -> None:
    assert in_words(rise(0.5, 4.25, None)) == "changed by +4.250, no clear rise; foreseen +0.5"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1 / 330, "1/330 of it"),
        (0.105, "1/9.5 of it"),
        (0.5, "1/2.0 of it"),
        (0.9, "0.9 times that"),
        (7.25, "7.2 times that"),
        (0.0, "0 times that"),
        (-0.2, "-0.2 times that"),
    ],
)
def test_a_ratio_in_words(ratio: float, words: str) -> None:
    assert share_in_words(ratio) == words
