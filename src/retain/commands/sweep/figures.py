"""The figure of a sweep: every method's curve, learned against forgotten, with its values, knee and spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from retain.commands.sweep.tables import FIGURE
from retain.report.curve import draw as curves


def draw(content: Mapping[str, Any], folder: Path) -> None:
    """Write the figure of ``content`` into ``folder``."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    curves(ax, content)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(folder / FIGURE, dpi=150)
