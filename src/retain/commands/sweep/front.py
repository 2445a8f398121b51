"""Points of a stability-plasticity curve: which are not dominated, how much they span, and where the curve bends.

A point is (forgetting, learned): less of the first and more of the second is better.
"""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def pareto(points: Sequence[Point]) -> list[bool]:
    """Of each point whether no other is as good in both and better in one."""
    return [not any(other != point and _covers(other, point) for other in points) for point in points]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that ``points`` dominate and that is better than ``reference`` in both."""
    area, edge = 0.0, reference[1]
    for forgetting, learned in sorted(points):
        if forgetting < reference[0] and learned > edge:
            area += (reference[0] - forgetting) * (learned - edge)
            edge = learned
    return area


def knee(points: Sequence[Point]) -> int | None:
    """The number of the point where the Pareto set bends most; None if it has no bend.

    That is the largest y - x, in the unit square that the ends of the set span: x from the least forgetting to the
    most, y from the least learned to the most. On the chord between both ends it is 0.
    """
    inside = [number for number, good in enumerate(pareto(points)) if good]
    (low, least), (high, most) = min(points[i] for i in inside), max(points[i] for i in inside)
    if low == high:
        return None
    bends = [((points[i][1] - least) / (most - least) - (points[i][0] - low) / (high - low), i) for i in inside]
    bend, number = max(bends, key=lambda pair: pair[0])
    return number if bend > 1e-9 else None


def _covers(one: Point, other: Point) -> bool:
    return one[0] <= other[0] and one[1] >= other[1]
