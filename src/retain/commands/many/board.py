"""What a person sees while many runs work: each of them at work, how many are done, and how long the rest may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from retain.commands.many.cells import Cell
from retain.commands.plan import human_time
from retain.results import score_of
from retain.tokenwise import in_nats

LATE = 0.1  # of what a run has taken that takes longer than expected: what is left of it
Durations = dict[str, list[float]]


class Board:
    """One bar over all runs and one for each at work; a line for each that has ended, also where nobody watches.

    Args:
        console: where to.
        waiting: the labels of all runs that are not finished yet, tuning included.
        done: how many are.
        durations: seconds that finished runs have taken, by label.
        jobs: runs at a time.
        note: told the name of each run that has ended and its seconds.
    """

    def __init__(
        self,
        console: Console,
        waiting: Iterable[str],
        done: int,
        durations: Durations,
        jobs: int,
        note: Callable[[str, float], None],
    ) -> None:
        self.console, self.waiting, self.done, self.durations = console, list(waiting), done, durations
        self.jobs, self.note, self.total = jobs, note, len(self.waiting) + done
        self.running: dict[Cell, tuple[TaskID, float]] = {}
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[note]}")
        self.progress = Progress(*columns, console=console, transient=True)
        self.all = self.progress.add_task("", total=self.total, completed=done, note="")

    def __enter__(self) -> Board:
        self.progress.start()
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, cell: Cell) -> None:
        self.waiting.remove(cell.label)
        self.running[cell] = self.progress.add_task(escape(cell.name), total=None, note=""), time.monotonic()

    def ended(self, cell: Cell, seconds: float, failure: str | None) -> None:
        task, _ = self.running.pop(cell)
        self.progress.remove_task(task)
        self.done += 1
        if failure is None:
            self.durations.setdefault(cell.label, []).append(seconds)
        self.note(cell.name, seconds)
        line = f"[dim]{self.done}/{self.total}[/] {escape(cell.name)}: "
        if failure is not None:
            line += f"[red]failed[/]: {escape(failure)} [dim]({escape(str(cell.log))})[/]"
        else:
            line += f"{found(cell)}, {human_time(seconds)}"
        if not self.console.is_terminal:
            line += self.ahead("; ")
        self.console.print(line, highlight=False, soft_wrap=True)

    def dropped(self, label: str, runs: int) -> None:
        """So many runs of ``label`` are not going to be started."""
        for _ in range(runs):
            self.waiting.remove(label)
        self.total -= runs

    def taken(self, cell: Cell) -> None:
        """Another process was quicker to start it."""
        self.progress.remove_task(self.running.pop(cell)[0])
        self.waiting.append(cell.label)

    def look(self) -> None:
        now = time.monotonic()
        for cell, (task, since) in self.running.items():
            stages, total = cell.stages()
            note = f"{stages - 1} of {total - 1} learned" if total else "starting"
            self.progress.update(task, total=total, completed=stages, note=f"{note}, {human_time(now - since)}")
        count = f"{self.done} of {self.total} runs"
        self.progress.update(self.all, total=self.total, completed=self.done, description=count, note=self.ahead())

    def ahead(self, before: str = "") -> str:
        """The time that the rest may take, in words."""
        now = time.monotonic()
        running = [(cell.label, now - since) for cell, (_, since) in self.running.items()]
        seconds = remaining(self.waiting, running, self.durations, self.jobs)
        if seconds is None:
            return f"{before}the first to end tells how long it takes"
        return f"{before}about {human_time(seconds)} left" if self.waiting or running else ""


def remaining(
    waiting: Sequence[str], running: Sequence[tuple[str, float]], known: Mapping[str, Sequence[float]], jobs: int
) -> float | None:
    """Seconds until all is done: 0 if it is, None if no run has told yet how long one takes.

    Args:
        waiting: labels of runs to come; each takes as long as the mean of its label's, or of all.
        running: labels of runs at work, and the seconds that they have worked; one that takes longer than expected is
            reckoned to take another tenth.
        known: seconds of finished runs, by label.
        jobs: runs at a time.
    """
    if not waiting and not running:
        return 0.0
    if not any(known.values()):
        return None
    mean = float(np.mean([seconds for each in known.values() for seconds in each]))
    expected = {label: float(np.mean(known.get(label) or mean)) for label in [*waiting, *(name for name, _ in running)]}
    rest = [max(expected[label] - worked, LATE * worked) for label, worked in running]
    rest += [expected[label] for label in waiting]
    return max(sum(rest) / jobs, *rest)


def found(cell: Cell) -> str:
    """What a finished run has found, in a few words."""
    if cell.tasks is not None:
        return f"{cell.tasks} task{'s' * (cell.tasks > 1)} learned"
    found, unit = in_nats(results := cell.results())
    if found:
        scores = found["scores"]
        text = f"{scores['final']:.3f} {unit}"
    else:
        found, unit = score_of(results)
        scores = found["scores"]
        text = f"{unit} {scores['average_accuracy']:.3f}"
    return text if scores["forgetting"] is None else f"{text}, forgetting {scores['forgetting']:+.3f}"
