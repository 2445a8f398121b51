"""``retain compare``: every method on one stream, tuned alike, under the same seeds and on the same test rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import store
from retain.commands.compare.comparison import CLAIM, Comparison, budget_named, described, document, reference
from retain.commands.compare.figures import draw
from retain.commands.compare.measure import measure_of
from retain.commands.compare.summary import read, summarise
from retain.commands.compare.tables import markdown, show
from retain.commands.compare.tuning import choose
from retain.commands.many.board import Board
from retain.commands.many.cells import Cell, Starter, held, terminable, why, work
from retain.commands.many.claim import claim
from retain.commands.many.entries import Entry, entries
from retain.commands.many.machine import cores, most_jobs
from retain.commands.many.starting import starter
from retain.config import RunConfig
from retain.workshop import check_folder


def compare(
    config: RunConfig,
    asked: Sequence[str],
    *,
    seeds: int = 3,
    budget: str = "full",
    tries: int | None = None,
    against: str | None = None,
    jobs: int | None = None,
    output: Path | None = None,
    console: Console | None = None,
    start: Starter | None = None,
) -> bool:
    """Run what is missing of a comparison, write its table and figures into ``output``, and say whether it is complete.

    Args:
        config: of the stream; what it says under ``method`` holds for the method of that name.
        asked: names of methods, ``name:key=value,...`` for variants, or "all".
        seeds: how many, from that of ``config`` on.
        budget: "full" or "small".
        tries: values of every knob; None: the budget's.
        against: the label that the others are compared with; None: sequential, else the first.
        jobs: runs at a time; None: as many as cores and memory allow.
        output: None: the run's ``output`` with "-compare" behind it.
        console: where to print.
        start: starts a run; None: in a process of its own.

    Raises:
        ValueError: a method, keyword, budget or reference that is not allowed.
        StoreError: ``output`` belongs to something else, or another comparison works there.
    """
    console, spent = console or Console(), budget_named(budget, tries)
    found, left_out = entries(asked, config, spent.tries)
    rival, folder = reference(against, found), output or Path(f"{config.output}-compare")
    made = Comparison(document(config, spent), spent, found, [config.seed + i for i in range(seeds)], folder)
    jobs = jobs or most_jobs(config.model.path)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    machine = {
        "cores": cores(),
        "jobs": jobs,
        "threads": int(threads) if threads.isdecimal() else max(1, cores() // jobs),
    }
    claim(made.output / CLAIM, "comparison", described(config, made))
    with held(folder) as locks, terminable():
        log = Log(folder)
        try:
            failed = fill(made, start or starter(machine["threads"], locks), jobs, console, log)
        except KeyboardInterrupt:
            console.print(f"stopped: {folder} keeps what is done, and the same command continues", soft_wrap=True)
            raise
        finally:
            log.save()
        content = gather(made, rival, log) | {"machine": machine, "left_out": left_out, "failed": failed}
        write(content, folder)
    if not content["methods"]:
        console.print("no run has finished")
        return False
    show(console, content)
    for kind, name in (("table", "comparison.md"), ("numbers", "comparison.json")):
        console.print(f"{kind}: {folder / name}", soft_wrap=True)
    return not failed


class Log:
    """What is known of earlier sittings: the values that were chosen, and the seconds that runs took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.since = folder, time.monotonic()
        self.choices: dict[str, dict[str, Any]] = self._read("tuning.json")
        times = self._read("times.json")
        self.before, self.seconds = times.get("wall", 0.0), dict[str, float](times.get("runs", {}))

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return store.read_json(path) if path.exists() else {}

    @property
    def wall(self) -> float:
        """Seconds that comparisons have worked here, all together."""
        return round(self.before + time.monotonic() - self.since, 1)

    def took(self, name: str, seconds: float) -> None:
        """A run has ended; the seconds of several attempts add up."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        self.save()

    def save(self) -> None:
        """Write the seconds down."""
        store.write_json(self.folder / "times.json", {"wall": self.wall, "runs": self.seconds})

    def durations(self) -> dict[str, list[float]]:
        """Seconds of runs by label."""
        found: dict[str, list[float]] = {}
        for name, seconds in self.seconds.items():
            found.setdefault(name.rpartition(", ")[0], []).append(seconds)
        return found

    def choose(self, entry: Entry, cells: Mapping[float, Cell]) -> bool:
        """Choose once and for all among the finished ``cells``; False if there are none."""
        choice = choose(entry, cells)
        if choice["chosen"] is None:
            return False
        choice["seconds"] = sum(self.seconds.get(cell.name, 0.0) for cell in cells.values())
        self.choices[entry.label] = choice
        store.write_json(self.folder / "tuning.json", self.choices)
        return True

    def choice(self, entry: Entry) -> dict[str, Any] | None:
        """What was chosen among the values that ``entry`` tries; None if that is still to be done."""
        choice = self.choices.get(entry.label)
        return choice if choice and choice["tried"] == list(entry.tried) else None

    def settled(self, entry: Entry) -> bool:
        """Whether there is nothing to choose any more."""
        return not entry.tried or self.choice(entry) is not None

    def value(self, entry: Entry) -> float | None:
        """What was chosen, if there was a choice."""
        return (self.choice(entry) or {}).get("chosen")


def fill(made: Comparison, start: Starter, jobs: int, console: Console, log: Log) -> dict[str, str]:
    """Run what is missing: a method's runs as soon as it is tuned. Returns why runs have failed, by name.

    What tunes goes first, then seed by seed, so that a comparison cut short is of all methods. A value whose run ends
    with an error counts as tried; a method of which a run was killed is tuned the next time.
    """
    trials = {entry: made.tuning(entry) for entry in made.entries if not log.settled(entry)}
    left = {entry.label: _unfinished(cells.values()) for entry, cells in trials.items()}
    for entry in [entry for entry in trials if not left[entry.label]]:
        log.choose(entry, trials.pop(entry))
    tuning = [cell for entry in trials for cell in left[entry.label]]
    ready = [cell for entry in made.entries if log.settled(entry) for cell in _missing(made, entry, log)]
    waiting = [cell.label for cell in tuning + ready] + [entry.label for entry in trials for _ in made.seeds]
    total = sum(len(entry.tried) + len(made.seeds) for entry in made.entries)
    killed = set[str]()

    def then(cell: Cell, code: int) -> list[Cell]:
        entry = next((entry for entry in trials if cell in trials[entry].values()), None)
        if entry is None:
            return []
        left[entry.label].remove(cell)
        killed.update([entry.label] if code < 0 else [])
        if left[entry.label]:
            return []
        if entry.label in killed or not log.choose(entry, trials[entry]):
            board.dropped(entry.label, len(made.seeds))
            return []
        return _missing(made, entry, log)

    with Board(console, waiting, total - len(waiting), log.durations(), jobs, log.took) as board:
        codes = work(tuning + ready, start, jobs, board, then)
    return {cell.name: f"{why(cell, code)} ({cell.log})" for cell, code in codes.items()}


def _missing(made: Comparison, entry: Entry, log: Log) -> list[Cell]:
    return _unfinished(made.cells(entry, log.value(entry)).values())


def _unfinished(cells: Iterable[Cell]) -> list[Cell]:
    """Those of ``cells`` that have no results; the folders of all are their own."""
    there = list(cells)
    for cell in there:
        check_folder(cell.config)
    return [cell for cell in there if not cell.finished]


def gather(made: Comparison, rival: str, log: Log) -> dict[str, Any]:
    """Everything that ``comparison.json`` says of the finished runs."""
    runs: dict[str, dict[int, Any]] = {}
    for entry in made.entries:
        cells = made.cells(entry, log.value(entry)) if log.settled(entry) else {}
        runs[entry.label] = {seed: read(cell) for seed, cell in cells.items() if cell.finished}
    by = measure_of(made.document["model"]["kind"], (task.get("metric") for task in made.document["tasks"]))
    content = summarise(made.entries, runs, rival, by)
    for entry in made.entries:
        if entry.label in content["methods"]:
            content["methods"][entry.label] |= {
                "method": entry.method,
                "sections": entry.sections,
                "knob": _knob(entry, log),
                "cumulative": entry.cumulative,
            }
    spent = log.seconds.items()
    return {
        "retain": version("retain"),
        "stream": made.document,
        "scenario": made.document["scenario"],
        "seeds": made.seeds,
        "budget": asdict(made.budget),
        "tuning": {e.label: choice for e in made.entries if (choice := log.choice(e))},
        "seconds": {
            "wall": log.wall,
            "runs": sum(seconds for _, seconds in spent),
            "tuning": sum(seconds for name, seconds in spent if ", tuning " in name),
        },
    } | content


def _knob(entry: Entry, log: Log) -> dict[str, Any] | None:
    if entry.keyword is None:
        return None
    value = log.value(entry) if entry.tried else entry.method.get(entry.keyword)
    return {"keyword": entry.keyword, "value": value, "tuned": bool(entry.tried)}


def write(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``comparison.json``, ``comparison.md`` and the figures."""
    store.write_json(folder / "comparison.json", content)
    if content["methods"]:
        draw(content, folder)
        store.write(folder / "comparison.md", markdown(content))
