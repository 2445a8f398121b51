"""``retain sweep --pick``: one point of a sweep, by a rule that is said beforehand, and its adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retain.commands.sweep.front import knee
from retain.commands.sweep.outcome import Found, at, complete
from retain.nearest import did_you_mean

RULES = ("budget=FORGETTING", "knee")


@dataclass(frozen=True)
class Rule:
    """How to pick: the point that learns most within a ``budget`` of forgetting, or without one, the knee."""

    budget: float | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """What a person writes: "budget=0.05" or "knee".

        Raises:
            ValueError: something else.
        """
        name, _, number = text.partition("=")
        if text == "knee":
            return cls()
        try:
            budget = float(number) if name == "budget" else math.nan
        except ValueError:
            budget = math.nan
        if not 0 <= budget < math.inf:
            near = did_you_mean(name, ["budget", "knee"])
            raise ValueError(f"--pick {text!r}: expected {' or '.join(RULES)}, such as budget=0.05{near}")
        return cls(budget)


@dataclass(frozen=True)
class Picked:
    """A point: the label of its method, what ``sweep.json`` says of it, and why it was picked."""

    label: str
    point: Found
    why: str


def pick(content: Found, rule: Rule) -> Picked:
    """The point of ``content`` that ``rule`` picks, among all methods, by means over seeds.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    points = list(complete(content["curves"]))
    if not points:
        raise ValueError("nothing to pick from: no point has finished under every seed")
    named = {id(point): _name(content, label, point) for label, point in points}
    if rule.budget is None:
        number = knee([at(point) for _, point in points])
        if number is None:
            raise ValueError("the front of all points has no knee: it does not bend. Pick budget=FORGETTING")
        return Picked(*points[number], f"{named[id(points[number][1])]}: where the front of all points bends most")
    inside = [(label, point) for label, point in points if at(point)[0] <= rule.budget]
    if not inside:
        _, least = min(points, key=lambda pair: at(pair[1])[0])
        raise ValueError(
            f"no point stays within a forgetting of {rule.budget:g} {content['unit']}: the least is "
            f"{at(least)[0]:.4g}, of {named[id(least)]}"
        )
    label, most = max(inside, key=lambda pair: (at(pair[1])[1], -at(pair[1])[0]))
    why = (
        f"{named[id(most)]}: of the {len(inside)} points within a forgetting of {rule.budget:g} (out of {len(points)}) "
        "the one that learns most"
    )
    return Picked(label, most, why)


def _name(content: Found, label: str, point: Found) -> str:
    forgetting, learned = at(point)
    value = point["value"]
    which = label if value is None else f"{label}, {content['curves'][label]['keyword']} {value:g}"
    return f"{which} ({content['learned']} {learned:.4g}, forgetting {forgetting:.4g})"
