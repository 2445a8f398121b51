"""Where a knob is tried."""

from __future__ import annotations

import pytest

from retain.commands.sweep.points import Scale, scale
from retain.methods import METHODS


def test_a_strength_is_tried_evenly_in_its_logarithm_and_more_points_keep_those_that_there_are() -> None:
    strengths = scale(METHODS["ewc-lora"], "strength", None)
    assert strengths.grid(5) == (1, 3.16, 10, 31.6, 100)
    assert strengths.grid(9) == (1, 1.78, 3.16, 5.62, 10, 17.8, 31.6, 56.2, 100)
    assert set(strengths.grid(5)) < set(strengths.grid(9)) and strengths.grid(1) == (10,)
    assert scale(METHODS["ewc-lora"], "strength", (0.1, 1e4)).grid(2) == (0.1, 1e4)


def test_a_share_near_one_is_tried_evenly_in_the_logarithm_of_what_it_lacks() -> None:
    assert scale(METHODS["eblora"], "energy", None).grid(3) == (0.8, 0.9859, 0.999)
    assert scale(METHODS["olora"], "orthogonality", (0.05, 0.5)).grid(3) == (0.05, 0.158, 0.5)
    assert scale(METHODS["ewc-lora"], "strength", (1.2345678, 100)).grid(2) == (1.23457, 100)  # as it is written


def test_whole_numbers_stay_whole_and_fall_together() -> None:
    found = scale(METHODS["share"], "components", None).grid(5)
    assert found == (8, 16, 32, 64, 128) and all(isinstance(value, int) for value in found)
    assert Scale(1, 3, whole=True).grid(9) == (1, 2, 3)
    assert scale(METHODS["ewc-lora"], "rank", (4, 16)).grid(3) == (4, 8, 16)
    assert all(isinstance(value, int) for value in scale(METHODS["ewc-lora"], "rank", (4.0, 16.0)).grid(3))


@pytest.mark.parametrize(
    ("name", "keyword", "limits", "message"),
    [
        ("ewc-lora", "decay", None, "decay has no range of its own: say --range LOW HIGH"),
        ("ewc-lora", "mode", (1, 2), "mode, 'shared' if it is left out, is not a number"),
        ("ewc-lora", "strength", (10, 1), r"--range 10 1: a range goes from a number above 0 to a larger one"),
        ("ewc-lora", "strength", (0, 1), "--range 0 1: "),
    ],
)
def test_where_there_is_no_scale(name: str, keyword: str, limits: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scale(METHODS[name], keyword, limits)
