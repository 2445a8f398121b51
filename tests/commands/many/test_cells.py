"""Runs in processes: so many at a time, none that takes others with it, none that is left behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compared import Ended, starter, stream
from retain import config
from retain.commands.many import cells, starting
from retain.commands.many.cells import Cell, held, terminable, why, work
from retain.commands.many.starting import launched
from retain.stopping import Stopped
from retain.store import StoreError

pytestmark = pytest.mark.usefixtures("fast_runs")


def cell(folder: Path, name: str = "ewc") -> Cell:
    return Cell(name, f"{name}, seed 0", stream(folder / name / "seed-0"))


class Slow(Ended):
    """Ends at the third look."""

    now, most = 0, 0

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.asked = 0, 0
        Slow.now += 1
        Slow.most = max(Slow.most, Slow.now)

    def poll(self) -> int | None:  # type: ignore[override]
        self.looks += 1
        Slow.now -= self.looks == 3
        return 0 if self.looks == 3 else None

    def terminate(self) -> None:
        self.asked += 1


class Seen:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def started(self, cell: Cell) -> None:
        self.told.append(cell.label)

    def ended(self, cell: Cell, seconds: float, failure: str | None) -> None:
        self.told.append((cell.label, failure))

    def look(self) -> None: ...


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PAUSE", 0.001)


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_so_many_at_a_time(jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slow.now = Slow.most = 0
    monkeypatch.setattr(Cell, "finished", True)
    work([cell(tmp_path, name) for name in "abcd"], lambda _: Slow(), jobs, Seen())
    assert (Slow.most, Slow.now) == (min(jobs, 4), 0)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    start, started = starter(codes={"b, seed 0": 1, "c, seed 0": -9})
    all_three, watcher = [cell(tmp_path, name) for name in "abcd"], Seen()
    failed = work(all_three, start, 1, watcher)
    assert started == all_three and failed == {all_three[1]: 1, all_three[2]: -9}
    assert [told for told in watcher.told if isinstance(told, tuple)] == [
        ("a", None),
        ("b", "b, seed 0 went wrong"),
        ("c", "killed by signal 9"),
        ("d", None),
    ]


def test_a_run_that_ends_well_without_results_has_failed(tmp_path: Path) -> None:
    one = cell(tmp_path)
    assert work([one], lambda _: Ended(), 1, Seen()) == {one: 0} and why(one, 1) == "exit status 1"  # before its log
    one.log.parent.mkdir(parents=True)
    one.log.write_text("\n\n")
    assert work([one], lambda _: Ended(), 1, Seen()) == {one: 0} and why(one, 0) == "exit status 0"


def test_what_ends_the_work_ends_the_runs(tmp_path: Path) -> None:
    running: list[Slow] = []

    def start(_: Cell) -> Slow:
        if len(running) == 2:
            raise KeyboardInterrupt
        running.append(Slow())
        return running[-1]

    with pytest.raises(KeyboardInterrupt):
        work([cell(tmp_path, name) for name in "abc"], start, 3, Seen())
    assert [process.asked for process in running] == [1, 1]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is started in Python's place."""
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def write_script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines]))
    path.chmod(0o755)


def test_a_run_is_a_plain_command_with_its_threads_and_its_log(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(shell, 'echo "$@"', 'echo "error: $OMP_NUM_THREADS threads" >&2', "exit 3")
    one = cell(tmp_path)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    start = starting.starter(5, begin=launched)
    assert [start(one).wait() for _ in range(2)] == [3, 3]
    assert one.log.read_text() == 2 * f"-m retain run {one.file}\nerror: 5 threads\n" and why(one, 3) == "5 threads"
    assert config.load(one.file) == one.config
    assert one.file.read_text().startswith(f"# retain run {one.file}\n") and one.file.parent == one.folder.parent
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    starting.starter(5, begin=launched)(one).wait()
    assert why(one, 3) == "7 threads"


def test_a_folder_is_held_as_long_as_a_run_lives_in_it(shell: Path, tmp_path: Path) -> None:
    write_script(shell, "exec sleep 60")
    with held(tmp_path) as locks:
        with pytest.raises(StoreError, match="a comparison already works here"), held(tmp_path):
            pass
        process = starting.starter(1, locks, launched)(cell(tmp_path))
    try:
        with pytest.raises(StoreError, match="a run that outlived one"), held(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with held(tmp_path):
        pass


def test_a_run_that_does_not_listen_is_killed(shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PATIENCE", 0.1)
    write_script(shell, "trap '' TERM", "echo up", "while true; do sleep 0.1; done")
    one = cell(tmp_path)
    process = starting.starter(1, begin=launched)(one)
    while not one.log.read_text():
        time.sleep(0.01)
    cells.stop([process])
    assert process.wait(5) == -9


def test_a_request_to_end_is_heard() -> None:
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_stages_are_counted_as_they_finish(tmp_path: Path) -> None:
    from compared import pretend

    one, joint = cell(tmp_path), Cell("joint", "joint", stream(tmp_path / "joint", method={"name": "joint"}))
    assert one.stages() == (0, None) and not one.finished
    for each in (one, joint):
        pretend(each, 0.5)
    assert (one.stages(), joint.stages()) == ((4, 4), (2, 2)) and one.finished
    (one.folder / "tasks" / "02-c" / "done").unlink()
    assert one.stages() == (3, 4)
