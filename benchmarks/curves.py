"""A panel a method: accuracy on the tasks learned so far, beside sequential training.

Draws docs/methods.png, and each panel alone for the method's own page.

    python -m benchmarks.curves

reads ``benchmarks/results/comparison-text-small.json``, which ``retain compare`` has written (docs/comparison.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from retain import store
from retain.plots import COLOURS

HERE = Path(__file__).parent
FOUND, PAGES = HERE / "results" / "comparison-text-small.json", HERE.parent / "docs"
BELOW, ABOVE = "sequential", "joint"


def draw(found: dict[str, Any], names: Sequence[str], columns: int = 4) -> plt.Figure:
    """Means over seeds with their standard deviation; the dotted line is where ``joint`` ends."""
    methods, tasks = found["methods"], found["tasks"]
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.6 * columns, 2.1 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    end = methods[ABOVE]["scores"]["average_accuracy"]["mean"]
    for ax, name in zip(axes.flat, names, strict=False):
        curve(ax, methods[BELOW]["curve"], COLOURS[6], "--")
        curve(ax, methods[name]["curve"], COLOURS[0], "-")
        ax.axhline(end, color=COLOURS[2], linestyle=":", linewidth=1.2)
        ax.set_title(name, fontsize=10)
        ax.set_xticks(range(1, len(tasks) + 1), tasks, rotation=45, ha="right", fontsize=7)
        ax.tick_params(labelbottom=True, labelsize=7)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supylabel("accuracy on the tasks learned so far", fontsize=9)
    return figure


def curve(ax: Axes, points: list[dict[str, float]], colour: str, line: str) -> None:
    """One line, with a band of a standard deviation."""
    means, spread = (np.array([point[key] for point in points]) for key in ("mean", "std"))
    steps = range(1, len(points) + 1)
    ax.fill_between(steps, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
    ax.plot(steps, means, color=colour, linestyle=line, linewidth=1.6)


def main() -> None:
    found = store.read_json(FOUND)
    names = [name for name in found["methods"] if name not in (BELOW, ABOVE)]
    draw(found, names).savefig(PAGES / "methods.png", dpi=110)
    for page in sorted((PAGES / "methods").glob("*.md")):
        figure = draw(found, [page.stem], columns=1)
        figure.set_size_inches(4.2, 3.0)
        figure.savefig(page.with_suffix(".png"), dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
