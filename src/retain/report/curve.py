"""The curve that a run is a point of, where ``retain sweep`` has left one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from retain import store
from retain.plots import style, svg

SWEPT, DEPTH = "sweep.json", 3  # folders above a run: seed, value, method

Found = Mapping[str, Any]


def curve(folder: Path) -> str | None:
    """The curves of the sweep that the run in ``folder`` belongs to, or that has its name; None if there is none.

    Raises:
        StoreError: the sweep's record is damaged.
    """
    here = folder.resolve()
    places = [*here.parents[:DEPTH], here.with_name(f"{here.name}-sweep")]
    file = next((place / SWEPT for place in places if (place / SWEPT).is_file()), None)
    if file is None:
        return None
    content = store.read_json(file)
    own = here.relative_to(file.parent) if file.parent in here.parents else None
    return svg(lambda ax: draw(ax, content, own), "What every point of the sweep learns and forgets", height=4.2)


def draw(ax: Axes, content: Found, own: Path | None = None) -> None:
    """The curves of a sweep; a hollow marker is a point that another dominates, a ring the knee.

    Args:
        ax: where.
        content: of ``sweep.json``.
        own: a run of the sweep, whose point is named.
    """
    for number, (label, found) in enumerate(content["curves"].items()):
        points = [point for point in found["points"] if point["complete"]]
        if not points:
            continue
        look = style(number)
        x, y = ([point[name]["mean"] for point in points] for name in ("forgetting", "learned"))
        wide, high = ([point[name]["std"] or 0.0 for point in points] for name in ("forgetting", "learned"))
        faces = [look["color"] if point["front"] else "none" for point in points]
        ax.errorbar(x, y, high, wide, fmt="none", ecolor=look["color"], elinewidth=0.7, alpha=0.6)
        ax.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=1)
        ax.plot([], [], label=label, **look)
        ax.scatter(x, y, s=36, marker=look["marker"], color=look["color"], facecolors=faces, zorder=3)
        for point, place in zip(points, zip(x, y, strict=True), strict=True):
            if own is not None and own.as_posix() in point["runs"].values():
                ax.annotate("this run", place, (8, -11), textcoords="offset points", fontsize=8, weight="bold")
            if point["value"] is None:
                continue
            ax.annotate(f"{point['value']:g}", place, (4, 4), textcoords="offset points", fontsize=7)
            if point["value"] == found["knee"]:
                ax.scatter(*place, s=160, facecolors="none", edgecolors=look["color"], zorder=2)
    ax.set_title("hollow: another point is better in both; ring: knee", loc="left", fontsize=8)
    ax.set_xlabel(f"forgetting, {content['unit']}")
    ax.set_ylabel(content["learned"])
