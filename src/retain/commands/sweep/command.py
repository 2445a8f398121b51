"""``retain sweep``: methods over their knobs, each value a branch from what all share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import store
from retain.commands.export import export
from retain.commands.many.cells import Starter, terminable
from retain.commands.many.claim import claim
from retain.commands.many.machine import cores, most_jobs
from retain.commands.many.starting import starter
from retain.commands.sweep.curves import CLAIM, SOLE, Curve, Sweep, Value, curves, described, document
from retain.commands.sweep.figures import draw
from retain.commands.sweep.fill import fill
from retain.commands.sweep.outcome import gather
from retain.commands.sweep.pick import Rule, pick
from retain.commands.sweep.tables import FIGURE, markdown, show
from retain.config import RunConfig

NUMBERS, TABLE, ADAPTER = "sweep.json", "sweep.md", "picked"


def sweep(
    config: RunConfig,
    asked: Sequence[str],
    *,
    knob: str | None = None,
    limits: Sequence[float] | None = None,
    points: int = 9,
    seeds: int = 3,
    search: int | None = None,
    rule: Rule | None = None,
    jobs: int | None = None,
    output: Path | None = None,
    console: Console | None = None,
    start: Starter | None = None,
) -> bool:
    """Run what is missing of a sweep, write its curve into ``output``, and say whether it is complete.

    Args:
        config: of the stream; what it says under ``method`` holds for the method of that name.
        asked: names of methods, ``name:key=value,...`` for variants, or "all"; empty for that of ``config``.
        knob: the keyword to sweep over; None: each method's own.
        limits: of its values; None: those that the method names.
        points: values, evenly.
        search: values that optuna proposes instead, those that are there included.
        seeds: how many, from that of ``config`` on.
        rule: picks a point, whose adapter is exported; where the sweep is there already, nothing is run for it.
        jobs: runs at a time; None: as many as cores and memory allow.
        output: None: the run's ``output`` with "-sweep" behind it.
        console: where to print.
        start: starts a run; None: in a process of its own.

    Raises:
        ValueError: a method, keyword or value that is not allowed, a stream of one task, or no point to pick.
        StoreError: ``output`` belongs to something else.
    """
    console, folder = console or Console(), output or Path(f"{config.output}-sweep")
    if len(config.tasks) == 1 and config.tasks[0].split_by_class is None:
        raise ValueError("a sweep weighs what is learned against what is forgotten: the stream needs two tasks or more")
    found, left_out = curves(asked or [config.method["name"]], config, knob, limits)
    made = Sweep(document(config), found, [config.seed + i for i in range(seeds)], folder)
    if search is not None:
        _check_optuna()
    claim(made.output / CLAIM, "sweep", described(config, made))
    if rule is not None and (folder / NUMBERS).exists():
        take(folder, rule, console)
        return True
    jobs = jobs or most_jobs(config.model.path)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    each = int(threads) if threads.isdecimal() else max(1, cores() // jobs)
    begin = start or starter(each)
    with terminable():
        failed = _searched(made, search, begin, jobs, console) if search else _swept(made, points, begin, jobs, console)
    content = gather(made, failed, left_out)
    if not content["curves"]:
        console.print("no run has finished")
        return False
    write(content, folder)
    show(console, content)
    for kind, name in (("figure", FIGURE), ("table", TABLE), ("numbers", NUMBERS)):
        console.print(f"{kind}: {folder / name}", soft_wrap=True)
    if rule is not None:
        take(folder, rule, console)
    return not failed


def _swept(made: Sweep, points: int, start: Starter, jobs: int, console: Console) -> dict[str, str]:
    wanted = {curve: curve.scale.grid(points) if curve.scale else (SOLE,) for curve in made.curves}
    return fill(made, wanted, start, jobs, console)


def _check_optuna() -> None:
    if find_spec("optuna") is None:
        raise ValueError("--search needs optuna: pip install 'retain[sweep]'")


def _searched(made: Sweep, trials: int, start: Starter, jobs: int, console: Console) -> dict[str, str]:
    """As many values at a time as keep ``jobs`` runs at work."""
    from retain.commands.sweep.search import Search

    searches = {curve: Search(made, curve, curve.scale, trials) for curve in made.curves if curve.scale}
    wanted: dict[Curve, list[Value]] = {curve: [SOLE] for curve in made.curves if curve not in searches}
    to_come = {}
    for curve, search in searches.items():
        wanted[curve] = search.begin()
        while len(wanted[curve]) * len(made.seeds) < jobs and (value := search.next()) is not None:
            wanted[curve].append(value)
        to_come[curve] = search, search.left * len(made.seeds)
    return fill(made, wanted, start, jobs, console, to_come)


def write(content: dict[str, Any], folder: Path) -> None:
    """Write ``sweep.json``, ``sweep.md`` and the figure."""
    draw(content, folder)
    store.write(folder / TABLE, markdown(content))
    store.write_json(folder / NUMBERS, content)


def take(folder: Path, rule: Rule, console: Console) -> Path:
    """Export the adapter of the point of the sweep in ``folder`` that ``rule`` picks, of its first seed.

    Raises:
        StoreError: ``folder`` holds no sweep, or a damaged one.
        ValueError: no point is picked.
    """
    content = store.read_json(folder / NUMBERS)
    picked = pick(content, rule)
    seed, run = next(iter(picked.point["runs"].items()))
    console.print(f"picked {picked.why}", soft_wrap=True, highlight=False, markup=False)
    if content["rows"] == "test":
        console.print("it was picked by test rows, so what they say of it is too good", highlight=False)
    others = len(picked.point["runs"]) - 1
    console.print(f"the adapter is that of seed {seed}, the first{' of all' * bool(others)}", highlight=False)
    export(folder / run, folder / ADAPTER, None, console)
    return folder / ADAPTER
