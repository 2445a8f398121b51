"""The figure of a sweep: every method's curve, learned against forgotten, with its values, knee and spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retain.commands.sweep.tables import FIGURE
from retain.plots import style

Found = Mapping[str, Any]


def draw(content: Found, folder: Path) -> None:
    """Write the figure of ``content`` into ``folder``."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    curves(ax, content)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(folder / FIGURE, dpi=150)


def curves(ax: Axes, content: Found) -> None:
    """The curves; a hollow marker is a point that another dominates, a ring the knee."""
    for number, (label, curve) in enumerate(content["curves"].items()):
        points = [point for point in curve["points"] if point["complete"]]
        if not points:
            continue
        look = style(number)
        x, y = ([point[name]["mean"] for point in points] for name in ("forgetting", "learned"))
        wide, high = ([point[name]["std"] or 0.0 for point in points] for name in ("forgetting", "learned"))
        faces = [look["color"] if point["front"] else "none" for point in points]
        ax.errorbar(x, y, high, wide, fmt="none", ecolor=look["color"], elinewidth=0.7, alpha=0.6)
        ax.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=1)
        ax.scatter(x, y, s=36, marker=look["marker"], color=look["color"], facecolors=faces, label=label, zorder=3)
        for point, here in zip(points, zip(x, y, strict=True), strict=True):
            if point["value"] is not None:
                ax.annotate(f"{point['value']:g}", here, (4, 4), textcoords="offset points", fontsize=7)
            if point["value"] is not None and point["value"] == curve["knee"]:
                ax.scatter(*here, s=160, facecolors="none", edgecolors=look["color"], zorder=2)
    ax.set_title("hollow: another point is better in both; ring: knee", loc="left", fontsize=8)
    ax.set_xlabel(f"forgetting, {content['unit']}")
    ax.set_ylabel(f"{content['learned']}")
