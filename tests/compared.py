"""Runs of a comparison that are made up, where what counts is who is run, when, and what is made of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from retain import config as configuration
from retain import store
from retain.commands.many.cells import Cell
from retain.config import RunConfig, parse
from retain.evaluate import Score
from retain.ledger import LEDGER, Ledger
from retain.methods import METHODS
from retain.results import record, results

TASKS = ("a", "b", "c")


def stream(output: Path, **sections: Any) -> RunConfig:
    """A configuration whose data are nowhere."""
    tasks = [{"name": name, "path": "json", "data_files": f"{name}.jsonl", "max_train": 200} for name in TASKS]
    return parse({"model": {"path": "m"}, "tasks": tasks, "output": str(output)} | sections)


class Ended:
    """A process that has come to its end, with this exit code."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def starter(
    right: Callable[[Cell], float] = lambda cell: 0.7,
    codes: Mapping[str, int] | None = None,
    later: Callable[[Cell], float | None] = lambda cell: None,
) -> tuple[Callable[[Cell], Ended], list[Cell]]:
    """Starts runs that are over at once, with a share of ``right`` rows or an exit code by name; and all of them."""
    started: list[Cell] = []

    def start(cell: Cell) -> Ended:
        started.append(cell)
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        cell.log.write_text(f"some output\nerror: {cell.name} went wrong\n")
        code = (codes or {}).get(cell.name, 0)
        if not code:
            pretend(cell, right(cell), later=later(cell))
        return Ended(code)

    return start, started


def pretend(cell: Cell, right: float, rows: int = 40, later: float | None = None) -> None:
    """Write what a run leaves, if of every task the share ``right`` of its rows is right from when it is learned on.

    With ``later`` it is that share from the next task on.
    """
    tasks = [task.name for task in cell.config.tasks]
    stages = [0, len(tasks)] if METHODS[cell.config.method["name"]].cumulative else list(range(len(tasks) + 1))
    draw = np.random.default_rng(zlib.crc32(cell.name.encode()))
    chance = draw.random((len(tasks), rows))
    records = []
    then = right if later is None else later
    for stage in stages[: None if cell.tasks is None else 1 + cell.tasks]:
        shares = [0.2 if i >= stage else right if i == stage - 1 else then for i in range(len(tasks))]
        hits = {t: torch.tensor(chance[i] < shares[i]) for i, t in enumerate(tasks)}
        found = record(stage - 1, {t: Score(rows, 1.0, hit, hit, hit) for t, hit in hits.items()})
        found |= {"boundary": {}, "warnings": [], "seconds": {"evaluate": 1.0}}
        if stage:
            found |= {"seconds": {"train": 2.0, "boundary": 0.5, "evaluate": 1.0}, "steps": 10}
            kinds = {"learned": 8 * stage, "fisher": 4096 * stage}
            found["bytes"] = {"adapter": 8192, "state": sum(kinds.values()) + 100, "kinds": kinds}
        folder = cell.folder / (f"tasks/{stage - 1:02d}-{tasks[stage - 1]}" if stage else "base")
        store.write_json(folder / "scores.json", found)
        store.close(folder)
        records.append(found)
    if not (cell.folder / LEDGER).exists():
        Ledger(cell.folder / LEDGER).append("run")
    store.write(cell.folder / "config.yaml", configuration.dump(cell.config))
    if cell.tasks is not None:
        return
    names: Any = SimpleNamespace(tasks=[SimpleNamespace(name=name) for name in tasks])
    store.write_json(cell.folder / "results.json", results(cell.config, names, records))
