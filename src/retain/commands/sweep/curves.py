"""What is swept, and the runs of it: a trunk that stops after what all points share, and a branch for every point."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain import config as configuration
from retain import yamls
from retain.commands.many.cells import Cell
from retain.commands.many.entries import ASSIGNMENT, Entry, entries
from retain.commands.sweep.branch import SHARED, shared
from retain.commands.sweep.points import Scale, scale
from retain.config import RunConfig
from retain.methods import METHODS

CLAIM = "sweep.yaml"
TRUNKS = "trunks"
SOLE = ""  # the value of a point that has none

Value = float | str


@dataclass(frozen=True, eq=False)
class Curve:
    """A method over its knob, or as one point where there is no knob or its label gives the value.

    Attributes:
        entry: the method.
        keyword: the knob; None if there is none.
        scale: the values over which it goes; None for a single point.
        trunk: the label of what its branches begin with.
    """

    entry: Entry
    keyword: str | None = None
    scale: Scale | None = None
    trunk: str = ""

    @property
    def label(self) -> str:
        """As it was asked for."""
        return self.entry.label


@dataclass(frozen=True)
class Sweep:
    """All that is swept: ``document`` is the configuration of every run but for its method, its seed and its folder."""

    document: dict[str, Any]
    curves: list[Curve]
    seeds: list[int]
    output: Path

    def cells(self, curve: Curve, value: Value) -> dict[int, Cell]:
        """The runs of a point by seed."""
        own = {} if value == SOLE else {str(curve.keyword): value}
        parts = [curve.entry.folder, *(f"{k}={_written(v)}" for k, v in own.items())]
        name = ", ".join([curve.label, *(f"{k} {_written(v)}" for k, v in own.items())])
        return self._cells(curve.entry, own, curve.label, name, self.output.joinpath(*parts))

    def trunks(self, curve: Curve) -> dict[int, Cell]:
        """What all points of ``curve`` begin with, by seed; empty if they have nothing in common."""
        known = METHODS[curve.entry.method["name"]].knob or ("", (0,))
        middle = {str(curve.keyword): known[1][len(known[1]) // 2]} if curve.keyword == known[0] else {}
        folder = self.output / TRUNKS / replace(curve.entry, label=curve.trunk).folder
        name = f"{curve.trunk}, what all points share"
        cells = self._cells(curve.entry, middle, f"{curve.trunk}, shared", name, folder, SHARED)
        common = all(shared(cell.config, str(curve.keyword)) == SHARED for cell in cells.values())
        return cells if common else {}

    def found(self, curve: Curve) -> list[Value]:
        """The values of which there are finished runs, ascending."""
        if curve.scale is None:
            return [SOLE]
        folders = (self.output / curve.entry.folder).glob(f"{curve.keyword}=*")
        done = [folder for folder in folders if any(folder.glob("seed-*/results.json"))]
        number = int if curve.scale.whole else float
        return sorted(number(folder.name.partition("=")[2]) for folder in done)

    def _cells(
        self, entry: Entry, own: dict[str, Any], label: str, name: str, folder: Path, tasks: int | None = None
    ) -> dict[int, Cell]:
        checked = configuration.parse(self.document | entry.sections | {"method": entry.method | own})
        found = {}
        for turn, seed in enumerate(self.seeds):
            config = checked.model_copy(update={"seed": seed, "output": str(folder / f"seed-{seed}")})
            found[seed] = Cell(label, f"{name}, seed {seed}", config, turn, tasks)
        return found


def curves(
    asked: Sequence[str], config: RunConfig, knob: str | None, limits: Sequence[float] | None
) -> tuple[list[Curve], dict[str, str]]:
    """The methods to sweep in the order asked for, and of those that "all" leaves out, the reasons.

    What the file says of a knob is swept over; what a label says of it is a point.

    Raises:
        ValueError: a name, keyword or value that is not allowed, or a ``knob`` that no method has.
    """
    every, left_out = entries(asked, config, 1)
    found = [_curve(entry, knob, limits) for entry in every]
    if knob is not None and all(curve.keyword is None for curve in found):
        known = ", ".join(f"{entry.keyword} of {entry.label}" for entry in every if entry.keyword) or "none"
        raise ValueError(f"--knob {knob!r}: none of the methods has it; their own knobs: {known}")
    for curve in found:
        for value in (curve.scale.low, curve.scale.high) if curve.scale else ():
            method = curve.entry.method | {str(curve.keyword): value}
            configuration.parse(config.model_dump(exclude_none=True) | curve.entry.sections | {"method": method})
    return found, left_out


def _curve(entry: Entry, knob: str | None, limits: Sequence[float] | None) -> Curve:
    cls = METHODS[entry.method["name"]]
    keyword = entry.keyword if knob is None else knob if knob in inspect.signature(cls).parameters else None
    if keyword is None:
        return Curve(entry)
    trunk = _trunk(entry.label, keyword)
    if trunk != entry.label:
        return Curve(entry, keyword, None, trunk)
    return Curve(entry, keyword, scale(cls, keyword, limits), trunk)


def _trunk(label: str, keyword: str) -> str:
    """``label`` without what it says of ``keyword``."""
    name, _, rest = label.partition(":")
    kept = [x for x in re.split(ASSIGNMENT, rest) if x and not re.match(rf"{re.escape(keyword)}[.=]", x)]
    return ":".join([name, *([",".join(kept)] if kept else [])])


def document(config: RunConfig) -> dict[str, Any]:
    """``config`` without method and output, the same rows for all seeds."""
    return config.model_dump(exclude_none=True, exclude={"method", "output"}) | {"split_seed": config.rows_seed}


def described(config: RunConfig, made: Sweep) -> str:
    """What does not change from one sitting to the next, as YAML: more methods, values and seeds may come."""
    return yamls.write(made.document | {"method": config.method})


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
