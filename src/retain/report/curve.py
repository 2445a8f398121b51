"""The curve that a run is a point of, where ``retain sweep`` has left one beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from retain import store
from retain.plots import style, svg

SWEPT, DEPTH = "sweep.json", 3  # folders above a run: seed, value, method
COLUMNS = ("learned", "forgetting", "final")

Found = Mapping[str, Any]
Row = tuple[str, list[tuple[float | None, float | None]], str]


@dataclass(frozen=True)
class Swept:
    """A sweep as a page shows it.

    Attributes:
        figure: inline SVG.
        rows: of every point its name, mean and standard deviation over seeds of ``COLUMNS``, and what is to be said.
        taken: optimizer steps of all runs.
        apart: those that as many runs would take that share nothing.
    """

    figure: str
    rows: list[Row]
    seeds: int
    taken: int
    apart: int


def curve(folder: Path) -> Swept | None:
    """The sweep that the run in ``folder`` belongs to, or that has its name; None if there is none.

    Raises:
        StoreError: the sweep's record is damaged.
    """
    here = folder.resolve()
    places = [*here.parents[:DEPTH], here.with_name(f"{here.name}-sweep")]
    file = next((place / SWEPT for place in places if (place / SWEPT).is_file()), None)
    if file is None:
        return None
    content = store.read_json(file)
    own = here.relative_to(file.parent).as_posix() if file.parent in here.parents else ""
    figure = svg(lambda ax: draw(ax, content, own), "What every point of the sweep learns and forgets", height=4.2)
    return Swept(
        figure, list(rows(content, own)), len(content["seeds"]), content["steps"]["taken"], content["steps"]["apart"]
    )


def rows(content: Found, own: str = "") -> Iterator[Row]:
    """A row for every point of a sweep's ``content``; ``own`` is the run that is looked at."""
    for label, found in content["curves"].items():
        for point in found["points"]:
            value = point["value"]
            name = label if value is None else f"{label}, {found['keyword']} {value:g}"
            said = {
                "not all seeds": not point["complete"],
                "nothing better in both": point["front"],
                "knee": value is not None and value == found["knee"],
                "this run": own in point["runs"].values(),
            }
            cells = [(point[column]["mean"], point[column]["std"]) for column in COLUMNS]
            yield name, cells, ", ".join(word for word, so in said.items() if so)


def draw(ax: Axes, content: Found, own: str = "") -> None:
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
            if own in point["runs"].values():
                ax.annotate("this run", place, (8, -11), textcoords="offset points", fontsize=8, weight="bold")
            if point["value"] is None:
                continue
            ax.annotate(f"{point['value']:g}", place, (4, 4), textcoords="offset points", fontsize=7)
            if point["value"] == found["knee"]:
                ax.scatter(*place, s=160, facecolors="none", edgecolors=look["color"], zorder=2)
    ax.set_title("hollow: another point is better in both; ring: knee", loc="left", fontsize=8)
    ax.set_xlabel(f"forgetting, {content['unit']}")
    ax.set_ylabel(content["learned"])
