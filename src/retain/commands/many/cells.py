"""Runs, each a plain ``retain run`` in a process of its own, so many at a time; ``starting`` says how one starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from retain import store
from retain.config import RunConfig
from retain.methods import METHODS
from retain.stopping import Stopped

PAUSE = 0.2  # seconds between looks at the runs
PATIENCE = 60.0  # seconds that a run has to finish its step and save it when it is asked to end


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: of a method (by its label) under a seed, or under a value that is tried. Earlier turns start first.

    With ``tasks`` it stops after so many of them, and never has results.
    """

    label: str
    name: str
    config: RunConfig
    turn: int = 0
    tasks: int | None = None

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.output)

    @property
    def file(self) -> Path:
        """Its configuration, with which it can be run alone."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What it has printed, in all attempts."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        if self.tasks is None:
            return (self.folder / "results.json").exists()
        return self.stages()[0] > self.tasks

    def results(self) -> dict[str, Any]:
        """What it has found."""
        return store.read_json(self.folder / "results.json")

    def stages(self) -> tuple[int, int | None]:
        """Finished stages, the untouched model included, and all of them, once that is known."""
        done = [self.folder / "base" / store.DONE, *self.folder.glob(f"tasks/*/{store.DONE}")]
        finished = sum(path.exists() for path in done)
        if not done[0].exists():
            return finished, None
        if self.tasks is not None:
            return finished, 1 + self.tasks
        cumulative = METHODS[self.config.method["name"]].cumulative
        return finished, 2 if cumulative else 1 + len(store.read_json(self.folder / "base" / "scores.json")["tasks"])


class Process(Protocol):
    """What is asked of a run that has been started; see ``subprocess.Popen``."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Watcher(Protocol):
    """Who is told how it goes."""

    def started(self, cell: Cell) -> None: ...
    def ended(self, cell: Cell, seconds: float, failure: str | None) -> None: ...
    def dropped(self, label: str, runs: int) -> None: ...
    def taken(self, cell: Cell) -> None: ...
    def look(self) -> None: ...


Starter = Callable[[Cell], Process]
Follow = Callable[[Cell, int], Sequence[Cell]]
Elsewhere = Callable[[Cell], bool]


def work(
    cells: Sequence[Cell],
    start: Starter,
    jobs: int,
    watcher: Watcher,
    then: Follow = lambda cell, code: (),
    elsewhere: Elsewhere = lambda cell: False,
) -> dict[Cell, int]:
    """Run ``cells``, ``jobs`` at a time; one that fails does not stop the others. Returns the exit codes of failures.

    Whatever ends this ends the runs too; each continues where it was when it is started again.

    Args:
        cells: what to run, those of earlier turns first.
        start: starts one.
        jobs: how many may run at a time.
        watcher: who is told.
        then: what is to be run once a cell has ended with such a code.
        elsewhere: whether another process runs or has run a cell: it is waited for, and ends with code 0 here.
    """
    waiting, running, failed = list(cells), dict[Cell, tuple[Process, float]](), dict[Cell, int]()
    try:
        while waiting or running:
            for cell in sorted(waiting, key=lambda cell: cell.turn):
                if not elsewhere(cell):
                    if len(running) == jobs:
                        break
                    waiting.remove(cell)
                    running[cell] = start(cell), time.monotonic()
                    watcher.started(cell)
                elif cell.finished:
                    waiting.remove(cell)
                    watcher.dropped(cell.label, 1)
                    waiting += then(cell, 0)
            for cell, (process, since) in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[cell]
                    if code and elsewhere(cell):
                        watcher.taken(cell)
                        waiting.append(cell)
                        continue
                    if code or not cell.finished:
                        failed[cell] = code
                    watcher.ended(cell, time.monotonic() - since, why(cell, code) if cell in failed else None)
                    waiting += then(cell, code)
            watcher.look()
            time.sleep(PAUSE if running or waiting else 0)
    finally:
        stop([process for process, _ in running.values()])
    return failed


def why(cell: Cell, code: int) -> str:
    """Why a run has failed, in a line."""
    if code < 0:
        return f"killed by signal {-code}"
    text = cell.log.read_text(errors="replace") if cell.log.exists() else ""  # nothing was written yet
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit status {code}"


def stop(running: Sequence[Process]) -> None:
    """End what still runs; whatever ends the waiting ends it at once."""
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        except BaseException:
            for other in running:
                other.kill()
            raise


@contextmanager
def terminable() -> Iterator[None]:
    """A request to end ends the runs too, as an interrupt from the keyboard does."""

    def end(number: int, _: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held(folder: Path) -> Iterator[list[int]]:
    """Hold ``folder``, so that no second comparison works there; gives the file descriptors that hold it.

    A run that inherits them holds it too, should it outlive the comparison.

    Raises:
        StoreError: it is held by another process.
    """
    if sys.platform == "win32":
        yield []
        return
    import fcntl

    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise store.StoreError(
                f"{folder}: a comparison already works here, or a run that outlived one (started by process "
                f"{file.read() or 'unknown'}): wait for it, or end it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield [file.fileno()]
