"""Three figures of a comparison: accuracy after each task, stability against plasticity, bytes against tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; a second round of them has other markers and lines.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS, LINES = ("o", "s", "^"), ("-", "--", ":")

Found = Mapping[str, Any]


def draw(comparison: Found, folder: Path) -> None:
    """Write the figures of ``comparison`` into ``folder``."""
    parts = {"accuracy.png": _accuracy, "stability.png": _stability, "bytes.png": _bytes}
    for file, part in parts.items():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        ax = figure.subplots()
        part(ax, comparison)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        figure.savefig(folder / file, dpi=150)


def _style(number: int) -> dict[str, Any]:
    turn = number // len(COLOURS) % len(MARKERS)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[turn], "linestyle": LINES[turn]}


def _accuracy(ax: Axes, comparison: Found) -> None:
    for number, (label, found) in enumerate(comparison["methods"].items()):
        there = [(t, point) for t, point in enumerate(found["curve"], 1) if point is not None]
        steps, means = [t for t, _ in there], np.array([point["mean"] for _, point in there])
        spread = np.array([point["std"] or 0.0 for _, point in there])
        ax.plot(steps, means, label=label, markersize=5, **_style(number))
        ax.fill_between(steps, means - spread, means + spread, color=_style(number)["color"], alpha=0.12, linewidth=0)
    _tasks(ax, comparison)
    ax.set_ylabel("accuracy on the tasks learned so far")


def _stability(ax: Axes, comparison: Found) -> None:
    for number, (label, found) in enumerate(comparison["methods"].items()):
        learned, kept = (found["scores"][name] for name in ("learning_accuracy", "stability"))
        if learned is not None and kept is not None:
            style = _style(number) | {"linestyle": "none", "markersize": 8, "elinewidth": 1}
            bars = {"xerr": learned["std"], "yerr": kept["std"]}
            ax.errorbar(learned["mean"], kept["mean"], **bars, label=label, **style)
    ax.set_xlabel("plasticity: accuracy on each task just learned")
    ax.set_ylabel("stability: share of it kept to the end")


def _bytes(ax: Axes, comparison: Found) -> None:
    for number, (label, found) in enumerate(comparison["methods"].items()):
        after = {int(t): size / 2**20 for t, size in found["bytes"]["after"].items()}
        ax.plot(list(after), list(after.values()), label=label, markersize=5, **_style(number))
    _tasks(ax, comparison)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("MiB kept, adapter included")


def _tasks(ax: Axes, comparison: Found) -> None:
    names = comparison["tasks"]
    ax.set_xticks(range(1, len(names) + 1), names, rotation=0 if sum(map(len, names)) < 60 else 30)
    ax.set_xlabel("after learning")
