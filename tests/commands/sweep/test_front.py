"""Fronts, areas and knees against what one sees, and against slow twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from retain.commands.sweep.front import hypervolume, knee, pareto


def drawn(seed: int, n: int = 12) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in np.random.default_rng(seed).integers(0, 8, (n, 2)) / 8]


def test_a_point_is_on_the_front_unless_another_is_as_good_in_both_and_better_in_one() -> None:
    assert pareto([(0.1, 0.5), (0.2, 0.9), (0.2, 0.8), (0.3, 0.9)]) == [True, True, False, False]
    assert pareto([(0.1, 0.5), (0.1, 0.5)]) == [True, True] and pareto([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_what_counting_squares_gives(seed: int) -> None:
    points, reference = drawn(seed), (0.75, 0.125)
    fine = (np.arange(128) + 0.5) / 128
    covered = sum(
        x < reference[0] and y > reference[1] and any(f < x and y < g for f, g in points)
        for x, y in itertools.product(fine, fine)
    )
    assert hypervolume(points, reference) == pytest.approx(covered / 128**2, abs=1e-9)
    front = [point for point, good in zip(points, pareto(points), strict=True) if good]
    assert hypervolume(front, reference) == hypervolume(points, reference)


def test_the_knee_is_the_farthest_above_the_line_between_the_ends() -> None:
    points = [(0.0, 0.1), (0.1, 0.3), (0.2, 0.9), (0.6, 0.95), (1.0, 1.0), (0.9, 0.2)]
    (a, b), (c, d) = points[0], points[4]
    above = [(c - a) * (y - b) - (d - b) * (x - a) for x, y in points[:5]]  # twice the area of a triangle
    assert knee(points) == int(np.argmax(above)) == 2
    assert knee([(100 * x, 3 * y + 7) for x, y in points]) == 2  # whatever the units


@pytest.mark.parametrize(
    "points", [[(0.1, 0.5)], [(0.0, 0.1), (1.0, 1.0)], [(0.0, 0.0), (0.5, 0.1), (1.0, 1.0)], [(0.2, 0.2), (0.2, 0.1)]]
)
def test_a_front_without_a_bend_has_no_knee(points: list[tuple[float, float]]) -> None:
    assert knee(points) is None
