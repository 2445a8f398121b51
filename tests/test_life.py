"""The life of a run on disk, in any order: stages end, are killed between any two calls of the system, are damaged, go
on, and two processes want the folder. What was finished is there, whole, and the record tells of it.

The trainer is a few numbers that follow from those before; files, stages, ledger and lock are the true ones.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from disks import CALLS
from retain import store
from retain.files import LOCK, PARTIAL, REPLACED, StoreError, copy_folder, drop_folder, held, in_use, sweep
from retain.ledger import LEDGER, Ledger, read

STAGES = 2


class Kill(BaseException):
    """The process is gone: nothing that it had still to do is done."""


@contextlib.contextmanager
def killed(after: int) -> Iterator[None]:
    """Ends the block at its call number ``after`` of the system, and lets nothing that clears up do its work."""
    count = 0

    def dying(true: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > after:
                raise Kill
            return true(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in (*CALLS, "unlink", "mkdir", "rmdir", "truncate"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        yield


def weights(number: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2,), float(number))}


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.run = Path(self.home.name, "run")
        self.finished = 0  # stages whose end somebody has seen
        self.damaged: tuple[Path, bytes] | None = None

    def teardown(self) -> None:
        self.home.cleanup()

    def stage(self, number: int) -> Path:
        return self.run / "tasks" / f"{number:02d}-t"

    def go_on(self, stages: int) -> None:
        """As ``retain.run`` goes on: sweep, read what is finished, and do what is left, one stage after another."""
        with held(self.run):
            sweep(self.run)
            done = 0
            while done < STAGES and store.is_closed(self.stage(done)):
                store.verify_all(self.stage(done))
                done += 1
            self.finished = max(self.finished, done)
            for number in range(done):
                drop_folder(self.stage(number) / "trainer")
            book = Ledger(self.run / LEDGER)
            told = {entry["number"] for entry in book.entries if entry["event"] == "end"}
            for number in set(range(done)) - told:
                assert number == done - 1, "only the last end can be untold"
                self.tell(book, number)
            for number in range(done, min(done + stages, STAGES)):
                self.learn(book, number)
            if done + stages >= STAGES:
                copy_folder(self.stage(STAGES - 1) / "adapter", self.run / "adapter")
                store.write_json(self.run / "results.json", {"stages": STAGES})

    def learn(self, book: Ledger, number: int) -> None:
        book.append("begin", number=number)
        before = store.read_tensors(self.stage(number - 1) / "state")["a"] if number else torch.zeros(2)
        folder = self.stage(number)
        store.write_tensors(folder / "trainer" / "x", weights(number))
        store.write_tensors(folder / "adapter" / "w", weights(number))
        store.write_tensors(folder / "state", {"a": before + number})
        book.check()
        store.close(folder, without="trainer")
        self.finished = max(self.finished, number + 1)
        self.tell(book, number)
        drop_folder(folder / "trainer")

    def tell(self, book: Ledger, number: int) -> None:
        book.append("end", number=number, done=store.hash_of(self.stage(number) / store.DONE))

    @precondition(lambda self: self.damaged is None)
    @rule(stages=st.integers(0, STAGES))
    def goes_on(self, stages: int) -> None:
        self.go_on(stages)

    @precondition(lambda self: self.damaged is None)
    @rule(stages=st.integers(1, STAGES), after=st.integers(0, 70))
    def is_killed(self, stages: int, after: int) -> None:
        with contextlib.suppress(Kill), killed(after):
            self.go_on(stages)

    @precondition(lambda self: self.damaged is None and self.finished)
    @rule(data=st.data())
    def is_damaged(self, data: Any) -> None:
        stage = self.stage(data.draw(st.integers(0, self.finished - 1)))
        path = stage / data.draw(st.sampled_from(("state", "adapter/w", store.DONE)))
        content = path.read_bytes()
        at = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        self.damaged = path, content

    @precondition(lambda self: self.damaged is not None)
    @rule()
    def damage_is_refused_and_mended(self) -> None:
        assert self.damaged is not None
        path, content = self.damaged
        with pytest.raises(StoreError, match="tasks/0"):
            self.go_on(STAGES)
        assert path.read_bytes() != content
        path.write_bytes(content)
        self.damaged = None

    @rule()
    def another_process_wants_it(self) -> None:
        """A lock does not hold within a process, so the other one is a copy of this."""
        with held(self.run):
            if (other := os.fork()) == 0:
                try:
                    held(self.run).__enter__()
                except StoreError:
                    os._exit(7)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 7
        assert not in_use(self.run)

    @invariant()
    def what_was_finished_is_there(self) -> None:
        for number in range(self.finished):
            if self.damaged is None:
                assert store.is_closed(self.stage(number)) and "state" in store.verify_all(self.stage(number))
                kept = store.read_tensors(self.stage(number) / "state")["a"]
                assert kept.tolist() == [sum(range(number + 1))] * 2

    @invariant()
    def the_record_is_whole(self) -> None:
        if (self.run / LEDGER).exists():
            ends = [entry["number"] for entry in read(self.run / LEDGER) if entry["event"] == "end"]
            assert ends == list(range(len(ends))) and self.finished - len(ends) in (0, 1)

    @invariant()
    def the_result_is_of_all(self) -> None:
        if (self.run / "results.json").exists():
            assert self.finished == STAGES and (self.run / "adapter" / "w").exists() or self._between_names()

    def _between_names(self) -> bool:
        """Whether a kill has caught the last copy between two names, of which the next run takes care."""
        return any(path.name.endswith(REPLACED) for path in self.run.iterdir())

    @precondition(lambda self: self.damaged is None)
    @rule()
    def ends(self) -> None:
        self.go_on(STAGES)
        assert self.finished == STAGES
        left = {path.relative_to(self.run).as_posix() for path in self.run.rglob("*") if path.is_file()}
        stages = {f"tasks/{n:02d}-t/{name}" for n in range(STAGES) for name in ("adapter/w", "state", store.DONE)}
        assert left == stages | {LEDGER, LOCK, "adapter/w", "results.json"}
        assert not [path for path in self.run.rglob("*") if path.name.endswith((PARTIAL, REPLACED))]


@pytest.mark.slow
def test_a_run_killed_at_each_call_of_the_system_goes_on() -> None:
    """One kill after another, each a call later than the one before, until nothing is left to kill."""
    for after in itertools.count():
        life = Life()
        try:
            with contextlib.suppress(Kill), killed(after):
                life.go_on(STAGES)
                assert after > 50
                return
            life.what_was_finished_is_there()
            life.the_record_is_whole()
            life.ends()
        finally:
            life.teardown()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=8, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
