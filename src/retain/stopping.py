"""Ending when a signal asks for it: at the end of the optimizer step at hand, with what it came to saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from retain import ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE = 1.0  # seconds within which signals count as one: a terminal and a parent process may each send theirs


class Stopped(BaseException):
    """A signal has asked this process to end. It is no error: nobody is to catch it on its way up.

    Attributes:
        code: what the process is to exit with, 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int, saved: str = "what was finished is saved") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {saved}")
        self.code = 128 + number


class Stop(TrainerCallback):
    """Whether a signal has asked this process to end; while ``stepping``, its end waits for that of a step.

    Under ``listening`` alone: without it nothing is ever asked, and signals do what they do. Of several processes, all
    stop as soon as one is asked.
    """

    def __init__(self) -> None:
        self.asked, self.owner = 0, os.getpid()
        self._since, self._patient, self._cut, self._saved = 0.0, False, False, ""

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """The block hears SIGINT and SIGTERM: the first as this class says, a second ends the process at once.

        Raises:
            Stopped: in the block, once what was asked for can be done.
        """
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def stepping(self, name: str) -> Iterator[None]:
        """The block trains what is called ``name``, with this callback beside the Trainer.

        Raises:
            Stopped: after the block, if a signal has asked for it.
        """
        self._patient, self._cut, self._saved = True, False, f"the training of {name} is saved"
        try:
            yield
        finally:
            self._patient = False
        if self.asked:
            raise Stopped(self.asked, self._saved)

    @property
    def cut(self) -> bool:
        """Whether the latest training has ended before its last step."""
        return self._cut

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.asked = ranks.largest(self.asked, args.device)
        if self.asked and state.global_step < state.max_steps:
            self._cut = control.should_save = control.should_training_stop = True
            self._saved += f" at step {state.global_step} of {state.max_steps}"

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner or (self.asked and time.monotonic() - self._since > ONE):
            signal.signal(number, signal.SIG_DFL)  # of a data loader's process, or the second
            os.kill(os.getpid(), number)
        elif not self.asked:
            self.asked, self._since = number, time.monotonic()
            if not self._patient:
                raise Stopped(number)
