"""What all figures have in common: colours, markers, and a form for pages."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart, each with a marker; further rounds pair them otherwise.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080")
MARKERS, LINES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", ":")
INK = "#010203"  # stands for the colour of a page's text until the page says which it is


def style(number: int) -> dict[str, Any]:
    """Colour, marker and line of the series ``number``."""
    turn, colour = divmod(number, len(COLOURS))
    marker, line = MARKERS[(colour + turn) % len(MARKERS)], LINES[turn % len(LINES)]
    return {"color": COLOURS[colour], "marker": marker, "linestyle": line, "markersize": 5}


def named_ticks(ax: Axes, names: list[str]) -> None:
    """Task names along the x axis, one at each whole number from 1 on, slanted where they would touch."""
    ax.set_xticks(range(1, len(names) + 1), names, rotation=0 if sum(map(len, names)) < 60 else 30)


def svg(draw: Callable[[Axes], None], title: str, *, height: float = 3.4) -> str:
    """The figure that ``draw`` makes as inline SVG: text as text, lines in the page's own colour."""
    look: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10}
    look |= {key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    look |= {f"{part}.facecolor": "none" for part in ("figure", "axes", "savefig")}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(8, height), layout="constrained")
        ax = figure.subplots()
        draw(ax)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        handles, labels = ax.get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    body = content.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    size = re.compile(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt"|width="[\d.]+pt"')
    head, rest = body.split(">", 1)
    return f'{size.sub("", head)} role="img" aria-label="{_quoted(title)}">{rest}'


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
