"""How a run starts: as a copy of a process that has imported everything once, or as a Python of its own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch

from retain import config as configuration
from retain import store
from retain.commands.many.cells import Cell, Process, Starter

IMPORTED = ["retain.run", "retain.cli", "transformers.trainer", "peft", "datasets", "sklearn.cluster"]
Begin = Callable[[list[str], Path, Mapping[str, str], Sequence[int]], Process]


def starter(threads: int, keep_open: Sequence[int] = (), begin: Begin | None = None) -> Starter:
    """Starts a cell as ``retain run`` with so many threads, its output in its log.

    A number of threads in the environment goes before. The descriptors ``keep_open`` stay open while the run lives.
    How it begins is left to the machine, unless it is said: a copy where that is safe, without a GPU.
    """
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment = counts | os.environ | {"PYTHONUNBUFFERED": "1"}
    safe = sys.platform == "linux" and not torch.cuda.is_available()
    begin = begin or (copied if safe else launched)

    def start(cell: Cell) -> Process:
        store.write(cell.file, f"# retain run {cell.file}\n{configuration.dump(cell.config)}")
        arguments = ["run", str(cell.file)] + ([] if cell.tasks is None else ["--stop-after", str(cell.tasks)])
        return begin(arguments, cell.log, environment, keep_open)

    return start


def launched(arguments: list[str], log: Path, environment: Mapping[str, str], keep_open: Sequence[int]) -> Process:
    """``retain`` with these ``arguments``, in a Python that starts from nothing."""
    command = [sys.executable, "-m", "retain", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, pass_fds=keep_open)


def copied(arguments: list[str], log: Path, environment: Mapping[str, str], keep_open: Sequence[int]) -> Process:
    """The same in a copy of a server that imports the libraries once, which takes a run more than ten seconds.

    The server has trained nothing, so that its copies are as good as new.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_retain, args=(arguments, log, dict(environment), _Open(keep_open)))
    process.start()
    return Copy(process)


class Copy:
    """A copy at work, as ``subprocess.Popen`` would tell of it."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def poll(self) -> int | None:
        code: int | None = self.process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("retain run", timeout or 0.0)
        return int(self.process.exitcode)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


class _Open:
    """Descriptors that are handed on to another process."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.descriptors = descriptors

    def __reduce__(self) -> tuple[Any, ...]:
        return _taken, ([DupFd(descriptor) for descriptor in self.descriptors],)


def _taken(handed: Sequence[Any]) -> _Open:
    return _Open([one.detach() for one in handed])


def _retain(arguments: list[str], log: Path, environment: dict[str, str], _: _Open) -> None:
    """``retain`` with these ``arguments`` in the process at hand."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    if (threads := environment["OMP_NUM_THREADS"]).isdecimal():
        torch.set_num_threads(int(threads))
    sys.argv = ["retain", *arguments]
    runpy.run_module("retain", run_name="__main__", alter_sys=True)
