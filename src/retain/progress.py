"""What a person sees while a run works: one bar, and how much time the stage and the whole stream have left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Column
from transformers import TrainerCallback

KEPT = ("step", "loss", "extra_loss", "strength", "left_out")  # of what Trainer logs, beside the rises


class WorkBar:
    """A bar over an amount of work, in forwards of one token (or image); a training step's rows count three times.

    The time that is left is that of the work, at the mean speed of this sitting, and of the boundaries, which do work
    of their own, as long as those before have taken. It is not known before there was some work.

    Args:
        console: where it is shown, if that is a terminal.
        total: the work of all stages.
        boundaries: how many there are.
        clock: seconds.
    """

    def __init__(
        self, console: Console, total: float, boundaries: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("", total=total, left="")
        self.clock, self.last = clock, clock()
        self.total, self.done, self.seconds, self.end = total, 0.0, 0.0, total
        self.boundaries, self.own, self.measured = boundaries, 0, list[float]()

    def __enter__(self) -> WorkBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def stage(self, work: float, boundaries: int) -> None:
        """Begin a stage of so much work, with a boundary or none."""
        self.end, self.own = self.done + work, boundaries
        self.last = self.clock()

    def show(self, text: str) -> None:
        """Say what is being done."""
        self.progress.update(self.task, description=text, left=self.left())

    def advance(self, rows: float, each: float = 1.0) -> None:
        """Count as done the work of so many rows, each of which is so much."""
        now = self.clock()
        self.done, self.seconds, self.last = self.done + rows * each, self.seconds + now - self.last, now
        self.progress.update(self.task, completed=self.done, left=self.left())

    @contextmanager
    def boundary(self) -> Iterator[None]:
        """The block is a boundary: its time is that of no work."""
        start = self.clock()
        yield
        self.last = self.clock()
        self.measured.append(self.last - start)
        self.boundaries, self.own = self.boundaries - 1, 0

    def left(self) -> str:
        """The time that the stage has left, of that of the stream."""
        stage = self.remaining(self.end - self.done, self.own)
        stream = self.remaining(self.total - self.done, self.boundaries)
        return "" if stage is None or stream is None else f"{_clock(stage)} of {_clock(stream)} left"

    def remaining(self, work: float, boundaries: int) -> float | None:
        """Seconds of ``work`` and so many boundaries; None before there was any work."""
        if not self.done or not self.seconds:
            return None
        each = sum(self.measured) / len(self.measured) if self.measured else 0.0
        return max(work, 0.0) * self.seconds / self.done + boundaries * each


class StepBar(TrainerCallback):
    """Counts ``work`` as done, evenly over the steps of a training, and shows its loss and what the gauge says.

    Attributes:
        history: what Trainer has logged of the training, in earlier sittings too.
    """

    def __init__(self, bar: WorkBar, name: str, work: float) -> None:
        self.bar, self.name, self.work = bar, name, work
        self.history: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **_: Any) -> None:
        self.bar.show(f"{self.name}{in_short(logs)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.history = [{k: v for k, v in entry.items() if k in KEPT or "_rise" in k} for entry in state.log_history]
        self.history = [entry for entry in self.history if len(entry) > 1]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.advance(self.work / max(state.max_steps, 1))


def in_short(logs: Mapping[str, float]) -> str:
    """The loss with the method's extra term, and what a gauge says, as far as ``logs`` have them."""
    text = f": loss {logs['loss']:.3g}" if "loss" in logs else ": training"
    if "extra_loss" in logs:
        text += f" + {logs['extra_loss']:.2g}"
    if (foreseen := logs.get("calibrated_rise", logs.get("foreseen_rise"))) is not None:
        text += f", rise {foreseen:.2g}"
    return text + (f", strength {logs['strength']:.2g}" if "strength" in logs else "")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
