"""Score matrices and comparisons as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = "·"


def print_scores(console: Console, results: Mapping[str, Any]) -> None:
    """The score matrix of a run, rows = what was learned so far, and the scores that follow from it."""
    accuracy, names = results["accuracy"], results["tasks"]
    kind = {"task": "task known", "class": "task unknown", "domain": "one shared head"}[results["scenario"]]
    table = Table(title=f"{results['method']['name']}: test accuracy ({kind})", title_justify="left")
    table.add_column("after learning")
    for name in names:
        table.add_column(name, justify="right")
    for t, row in enumerate(accuracy["matrix"]):
        if all(value is None for value in row):
            continue
        label = "nothing" if t == 0 else names[t - 1]
        table.add_row(label, *[_cell(value, i, t) for i, value in enumerate(row)])
    console.print(table)
    scores, intervals = accuracy["scores"], accuracy["intervals_95"]
    for name in ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer"):
        if scores[name] is not None:
            low, high = intervals[name]
            interval = f"[dim](95% over test rows: {low:+.3f} to {high:+.3f})[/]"
            console.print(f"  {name.replace('_', ' '):<18} {scores[name]:+.3f}  {interval}")


def print_comparison(console: Console, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a run: what it ended with, what it forgot, and what it cost."""
    table = Table(title="after the last task", title_justify="left")
    for title in ("method", "final accuracy", "forgetting", "learned", "adapter", "state beyond it", "seconds"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for name, results in runs.items():
        scores, size = results["accuracy"]["scores"], results["bytes"]
        table.add_row(
            name,
            *[_number(scores[key]) for key in ("average_accuracy", "forgetting", "learning_accuracy")],
            human(size["adapter"]),
            human(size["state"]),
            f"{sum(results['seconds'].values()):.0f}",
        )
    console.print(table)


def human(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _cell(value: float | None, task: int, learned: int) -> Text:
    """A task not learned yet is dim, the one just learned is bold."""
    style = "bold" if task == learned - 1 else "" if task < learned else "dim"
    return Text(_number(value), style)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
