"""Three figures of a comparison: scores after each task, stability against plasticity, bytes against tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retain.commands.compare.measure import measure_in
from retain.plots import named_ticks, style

APART = 0.3  # of the distance between two tasks: the width over which the methods' points are spread
WIDE = 30  # a ratio of bytes from which on small ones would lie on the axis

Found = Mapping[str, Any]


def draw(comparison: Found, folder: Path) -> None:
    """Write the figures of ``comparison`` into ``folder``."""
    by = measure_in(comparison["unit"])
    parts = dict(zip(by.figures, (_curve, _plane, _bytes), strict=True))
    for file, part in parts.items():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        ax = figure.subplots()
        part(ax, comparison)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        figure.savefig(folder / file, dpi=150)


def _curve(ax: Axes, comparison: Found) -> None:
    methods = comparison["methods"]
    for number, (label, found) in enumerate(methods.items()):
        there = [(t, point) for t, point in enumerate(found["curve"], 1) if point is not None]
        aside = APART * ((number + 0.5) / len(methods) - 0.5)
        steps, means = [t + aside for t, _ in there], [point["mean"] for _, point in there]
        bars = [point["std"] or 0.0 for _, point in there]
        ax.errorbar(steps, means, yerr=bars, elinewidth=0.8, label=label, **style(number))
    _tasks(ax, comparison)
    ax.set_ylabel(measure_in(comparison["unit"]).curve[2])


def _plane(ax: Axes, comparison: Found) -> None:
    plane = measure_in(comparison["unit"]).plane
    for number, (label, found) in enumerate(comparison["methods"].items()):
        learned, kept = (found["scores"][name] for name in (plane.learned, plane.kept))
        if learned is not None and kept is not None:
            look = style(number) | {"linestyle": "none", "markersize": 8, "elinewidth": 0.8}
            bars = {"xerr": learned["std"], "yerr": kept["std"]}
            ax.errorbar(learned["mean"], kept["mean"], **bars, label=label, **look)
    ax.set_xlabel(plane.learned_label)
    ax.set_ylabel(plane.kept_label)


def _bytes(ax: Axes, comparison: Found) -> None:
    sizes = [size for found in comparison["methods"].values() for size in found["bytes"]["after"].values()]
    for number, (label, found) in enumerate(comparison["methods"].items()):
        after = {int(t): size / 2**20 for t, size in found["bytes"]["after"].items()}
        ax.plot(list(after), list(after.values()), label=label, **style(number))
    _tasks(ax, comparison)
    if max(sizes) > WIDE * min(sizes):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_ylabel("MiB kept, adapter included")


def _tasks(ax: Axes, comparison: Found) -> None:
    named_ticks(ax, comparison["tasks"])
    ax.set_xlabel("after learning")
