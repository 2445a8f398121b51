"""What a person sees while a run works: one bar, whose remaining time is that of all that is left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class WorkBar:
    """A bar over an amount of work, in row passes (a forward of one row; a training step's rows count three)."""

    def __init__(self, console: Console, total: float) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            speed_estimate_period=120,
        )
        self.task = self.progress.add_task("", total=total)

    def __enter__(self) -> WorkBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, text: str) -> None:
        """Say what is being done."""
        self.progress.update(self.task, description=text)

    def advance(self, work: float) -> None:
        """Count work as done."""
        self.progress.advance(self.task, work)


class StepBar(TrainerCallback):
    """Counts ``work`` as done, evenly over the steps of a training."""

    def __init__(self, bar: WorkBar, work: float) -> None:
        self.bar, self.work = bar, work

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.advance(self.work / max(state.max_steps, 1))
