"""What a person sees while a run works: one bar, whose remaining time is that of all that is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

KEPT = ("step", "loss", "strength", "left_out")  # of what Trainer logs, beside the rises


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
    """Counts ``work`` as done, evenly over the steps of a training, and shows what the method's gauge says.

    Attributes:
        history: what Trainer has logged of the training, in earlier sittings too.
    """

    def __init__(self, bar: WorkBar, name: str, work: float) -> None:
        self.bar, self.name, self.work = bar, name, work
        self.history: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **_: Any) -> None:
        self.bar.show(f"{self.name}: training{in_short(logs)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.history = [{k: v for k, v in entry.items() if k in KEPT or "_rise" in k} for entry in state.log_history]
        self.history = [entry for entry in self.history if len(entry) > 1]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.advance(self.work / max(state.max_steps, 1))


def in_short(logs: Mapping[str, float]) -> str:
    """What a gauge says among ``logs``; nothing if there is none."""
    if (foreseen := logs.get("foreseen_rise")) is None:
        return ""
    text = f", foreseen rise {foreseen:.2g} nats"
    if (calibrated := logs.get("calibrated_rise")) is not None:
        text += f", calibrated {calibrated:.2g}"
    return text + (f", strength {logs['strength']:.2g}" if "strength" in logs else "")
