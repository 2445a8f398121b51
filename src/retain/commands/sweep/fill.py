"""The runs of a sweep that are missing: trunks first, a branch as soon as its trunk has learned what all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from retain import store
from retain.commands.many.board import Board
from retain.commands.many.cells import Cell, Process, Starter, why, work
from retain.commands.sweep.branch import branch
from retain.commands.sweep.curves import Curve, Sweep, Value
from retain.files import in_use
from retain.workshop import check_folder


class Roots:
    """Which runs begin with which trunk: where two or more do, or where the trunk is there already."""

    def __init__(self, made: Sweep, wanted: Mapping[Curve, Sequence[Value]]) -> None:
        self.of: dict[Cell, tuple[Cell, str]] = {}
        self.cells: list[Cell] = []
        trunks: dict[str, dict[int, Cell]] = {}
        for curve, values in wanted.items():
            known = trunks.setdefault(curve.trunk, made.trunks(curve))
            for value in values:
                for seed, cell in made.cells(curve, value).items():
                    check_folder(cell.config)
                    if not cell.finished:
                        self.cells.append(cell)
                        self.of |= {cell: (known[seed], str(curve.keyword))} if known else {}
        for trunk in [trunk for known in trunks.values() for trunk in known.values()]:
            if len(branches := self.branches(trunk)) < 2 and not trunk.finished:
                self.of = {cell: root for cell, root in self.of.items() if cell not in branches}
        self.trunks = list(dict.fromkeys(trunk for trunk, _ in self.of.values() if not trunk.finished))
        for trunk in self.trunks:
            check_folder(trunk.config)

    def branches(self, trunk: Cell) -> list[Cell]:
        """What begins with ``trunk`` and is not finished."""
        return [cell for cell, (root, _) in self.of.items() if root is trunk]

    def ready(self) -> list[Cell]:
        """What need not wait for anything."""
        return self.trunks + [cell for cell in self.cells if cell not in self.of or self.of[cell][0].finished]


def fill(
    made: Sweep, wanted: Mapping[Curve, Sequence[Value]], start: Starter, jobs: int, console: Console
) -> dict[str, str]:
    """Run what is missing of ``wanted``. Returns why runs have failed, by name.

    Seed by seed, so that a sweep cut short is of all points. What another process runs is waited for.
    """
    roots = Roots(made, wanted)

    def begin(cell: Cell) -> Process:
        if cell in roots.of:
            trunk, keyword = roots.of[cell]
            try:
                branch(trunk.folder, cell.config, keyword)
            except store.StoreError as error:
                store.write(cell.log, f"error: {error}\n")
                return Refused()
        return start(cell)

    def then(cell: Cell, code: int) -> list[Cell]:
        branches = roots.branches(cell)
        if cell.finished:
            return branches
        for each in branches:
            board.dropped(each.label, 1)
        return []

    waiting = [cell.label for cell in roots.trunks + roots.cells]
    total = sum(len(values) * len(made.seeds) for values in wanted.values()) + len(roots.trunks)
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
