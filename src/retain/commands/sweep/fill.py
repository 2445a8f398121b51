"""The runs of a sweep that are missing: trunks first, a branch as soon as its trunk has learned what all share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from rich.console import Console

from retain import store
from retain.commands.many.board import Board
from retain.commands.many.cells import Cell, Process, Starter, why, work
from retain.commands.sweep.branch import branch
from retain.commands.sweep.curves import Curve, Sweep, Value
from retain.files import in_use
from retain.workshop import check_folder


class Roots:
    """Which runs begin with which trunk: where two or more do, where more are to come, or where it is there already.

    Attributes:
        cells: all runs that are missing, trunks aside.
        trunks: all that are missing.
        of: the trunk of a run, and the keyword that is its own.
        points: of a run, of which point it is.
    """

    def __init__(self, made: Sweep, wanted: Mapping[Curve, Sequence[Value]], growing: Collection[Curve] = ()) -> None:
        self.made = made
        self.cells: list[Cell] = []
        self.of: dict[Cell, tuple[Cell, str]] = {}
        self.points: dict[Cell, tuple[Curve, Value]] = {}
        self.known: dict[str, dict[int, Cell]] = {}
        for curve, values in wanted.items():
            for value in values:
                self.add(curve, value)
        grow = {id(trunk) for curve in growing for trunk in self.known.get(curve.trunk, {}).values()}
        for trunk in [trunk for known in self.known.values() for trunk in known.values()]:
            few = len(branches := self.branches(trunk)) < 2 and id(trunk) not in grow
            if few and not trunk.finished:
                self.of = {cell: root for cell, root in self.of.items() if cell not in branches}
        self.trunks = list(dict.fromkeys(trunk for trunk, _ in self.of.values() if not trunk.finished))
        for trunk in self.trunks:
            check_folder(trunk.config)

    def add(self, curve: Curve, value: Value) -> list[Cell]:
        """The runs of a point that are missing."""
        known = self.known.setdefault(curve.trunk, self.made.trunks(curve))
        fresh = []
        for seed, cell in self.made.cells(curve, value).items():
            check_folder(cell.config)
            if not cell.finished:
                fresh.append(cell)
                self.points[cell] = curve, value
                self.of |= {cell: (known[seed], str(curve.keyword))} if known else {}
        self.cells += fresh
        return fresh

    def branches(self, trunk: Cell) -> list[Cell]:
        """What begins with ``trunk`` and is not finished."""
        return [cell for cell, (root, _) in self.of.items() if root is trunk]

    def ready(self) -> list[Cell]:
        """What need not wait for anything."""
        return self.trunks + self.free(self.cells)

    def free(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of ``cells`` that need not wait for a trunk."""
        return [cell for cell in cells if cell not in self.of or self.of[cell][0].finished]


class Proposer(Protocol):
    """Who says which values of a curve come next; see ``retain.commands.sweep.search``."""

    def next(self) -> Value | None: ...
    def close(self, value: Value) -> None: ...


def fill(
    made: Sweep,
    wanted: Mapping[Curve, Sequence[Value]],
    start: Starter,
    jobs: int,
    console: Console,
    searches: Mapping[Curve, tuple[Proposer, int]] | None = None,
) -> dict[str, str]:
    """Run what is missing of ``wanted``. Returns why runs have failed, by name.

    Seed by seed, so that a sweep cut short is of all points. What another process runs is waited for. As soon as a
    point of a curve in ``searches`` has ended, the next is proposed, and at most so many runs come of that.
    """
    searches = searches or {}
    roots = Roots(made, wanted, searches)

    def begin(cell: Cell) -> Process:
        if cell in roots.of:
            trunk, keyword = roots.of[cell]
            try:
                branch(trunk.folder, cell.config, keyword)
            except store.StoreError as error:
                with cell.log.open("a") as log:
                    log.write(f"error: {error}\n")
                return Refused()
        return start(cell)

    def then(cell: Cell, code: int) -> list[Cell]:
        branches = roots.branches(cell)
        if cell in roots.points:
            return followed(*roots.points.pop(cell))
        if cell.finished:
            return branches
        for each in branches:
            board.dropped(each.label, 1)
        return []

    def followed(curve: Curve, value: Value) -> list[Cell]:
        if curve not in searches or (curve, value) in roots.points.values():
            return []
        search, _ = searches[curve]
        search.close(value)
        proposed = search.next()
        return [] if proposed is None else roots.free(roots.add(curve, proposed))

    to_come = [curve.label for curve, (_, runs) in searches.items() for _ in range(runs)]
    waiting = [cell.label for cell in roots.trunks + roots.cells] + to_come
    total = sum(len(values) * len(made.seeds) for values in wanted.values()) + len(roots.trunks) + len(to_come)
    with Board(console, waiting, total - len(waiting), {}, jobs, lambda name, seconds: None) as board:
        codes = work(roots.ready(), begin, jobs, board, then, elsewhere)
    return {cell.name: f"{why(cell, code)} ({cell.log})" for cell, code in codes.items()}


def elsewhere(cell: Cell) -> bool:
    """Whether another process works on it, or has finished it."""
    return cell.finished or in_use(cell.folder)


class Refused:
    """A run that was not even begun, as a process that has ended."""

    def poll(self) -> int:
        return 1

    def wait(self, timeout: float | None = None) -> int:
        return 1

    def terminate(self) -> None: ...
    def kill(self) -> None: ...
