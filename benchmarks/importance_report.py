"""Tables and figures of benchmarks.importance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.training import interval, unpacked

Row = dict[str, Any]
DOCS = Path(__file__).parents[1] / "docs"
COLOURS = {
    "none": "#c44e52",
    "diagonal": "#8c8c8c",
    "diagonal uint8": "#c9a227",
    "factored 4": "#dd8452",
    "kronecker dense": "#55a868",
    "kronecker 16": "#2a6f97",
    "kronecker 4": "#8172b3",
    "kronecker 16, temperature 3": "#64b5cd",
}


def show(rows: list[Row], forms: list[str], default: tuple[str, float]) -> None:
    """All tables: accuracies, the default cell against the best of every form, and the foresight of forms."""
    console = Console(width=150)
    console.print(accuracies(rows))
    for name in dict.fromkeys(row["stream"] for row in rows):
        mine = [row for row in rows if row["stream"] == name]
        console.print(against(mine, forms, default))
        console.print(foresight(mine, forms))


def accuracies(rows: list[Row]) -> Table:
    """Means and spread over seeds of every cell."""
    table = Table("stream", "form", "strength", "final", "learned", "forgetting", "bytes", "seeds")
    for stream, form, strength in sorted(
        {(r["stream"], r["form"], r["strength"]) for r in rows if r["form"] != "estimates"}
    ):
        mine = [r for r in rows if r["stream"] == stream and (r["form"], r["strength"]) == (form, strength)]
        numbers = [[row[key] for row in mine] for key in ("final", "learned", "forgetting")]
        cells = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else f"{v[0]:.3f}" for v in numbers]
        kept = mine[0]["bytes"].get(form, 0)
        table.add_row(stream, form, f"{strength:g}", *cells, f"{kept:,}", str(len(mine)))
    return table


def against(rows: list[Row], forms: list[str], default: tuple[str, float]) -> Table:
    """Final accuracy of the default cell minus that of every form's best strength, chosen on validation rows."""
    title = f"{rows[0]['stream']}: {default[0]}, strength {default[1]:g}, minus"
    table = Table("form", "best strength", "seeds", "difference", "95 % interval", title=title)
    ours = {row["seed"]: row for row in rows if (row["form"], row["strength"]) == default}
    for form in ("none", *forms):
        if not (mine := [row for row in rows if row["form"] == form and row["seed"] in ours]):
            continue
        strengths = {row["strength"] for row in mine}
        best = max(strengths, key=lambda s: np.mean([r["validation"]["final"] for r in mine if r["strength"] == s]))
        pairs = [(ours[row["seed"]], row) for row in mine if row["strength"] == best]
        middle, low, high = (100 * x for x in paired(pairs))
        table.add_row(form, f"{best:g}", str(len(pairs)), f"{middle:+.1f}", f"{low:+.1f} to {high:+.1f} points")
    return table


def paired(pairs: list[tuple[Row, Row]]) -> tuple[float, float, float]:
    """Mean difference of final accuracy and its 95 % interval over test rows, all seeds redrawn alike."""
    tasks = range(len(pairs[0][0]["rows"]))
    return interval([np.mean([right(a, task) - right(b, task) for a, b in pairs], 0) for task in tasks])


def right(row: Row, task: int) -> np.ndarray:
    """Whether each test row of ``task`` is classified right after the last task, as 0 and 1."""
    return unpacked(row["right"][task], row["rows"][task])


def foresight(rows: list[Row], forms: list[str]) -> Table:
    """Measured rise over what was foreseen, at the boundaries where it is clear."""
    columns = ("trained", "clear boundaries", "median rise / foreseen", "quartiles", "calibrated on earlier ones")
    table = Table("form", *columns, title=rows[0]["stream"])
    for trained, protected in (("without protection", False), ("under its own", True)):
        for form in forms:
            runs = foresights([row for row in rows if bool(row["strength"]) == protected], form)
            if ratios := [ratio for run in runs for ratio in run]:
                low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
                errors = [max(r / c, c / r) for run in runs for r, c in calibrated(run)]
                last = f"within x {np.median(errors):.2f}" if errors else ""
                table.add_row(form, trained, str(len(ratios)), f"{middle:.1f}", f"{low:.1f} to {high:.1f}", last)
    return table


def foresights(rows: list[Row], form: str) -> list[list[float]]:
    """Rise / foreseen at every boundary, run by run, whose measured rise exceeds two standard errors."""
    runs = []
    for row in rows:
        clear = [b for b in row["boundaries"] if b["rise"] > 2 * b["standard_error"] and form in b["foreseen"]]
        runs.append([b["rise"] / b["foreseen"][form] for b in clear])
    return runs


def calibrated(run: list[float]) -> list[tuple[float, float]]:
    """Every ratio but the first beside the geometric mean of those before it in the same run."""
    return [(run[i], float(np.exp(np.mean(np.log(run[:i]))))) for i in range(1, len(run))]


def draw(rows: list[Row]) -> None:
    """Two figures: stability against plasticity per form, and what was foreseen against what was measured."""
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    for file, panel in (("importance.png", _frontier), ("foresight.png", _foresight)):
        figure, panels = plt.subplots(1, len(streams), figsize=(5.5 * len(streams), 4.2), layout="constrained")
        for ax, name in zip(np.atleast_1d(panels), streams, strict=True):
            panel(ax, [row for row in rows if row["stream"] == name])
            ax.set_title(name)
            ax.spines[["top", "right"]].set_visible(False)
        legend = np.atleast_1d(panels)[0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside right center", frameon=False, fontsize=8)
        figure.savefig(DOCS / file, dpi=150)
        plt.close(figure)


def _frontier(ax: Any, rows: list[Row]) -> None:
    for form, colour in COLOURS.items():
        cells: dict[float, list[Row]] = {}
        for row in rows:
            if row["form"] == form:
                cells.setdefault(row["strength"], []).append(row)
        if cells:
            order = [cells[strength] for strength in sorted(cells)]
            means = [[np.mean([r[key] for r in c]) for c in order] for key in ("forgetting", "learned")]
            ax.plot(*means, "o-", color=colour, label=form, markersize=5)
    ax.set(xlabel="forgetting", ylabel="learning accuracy")


def _foresight(ax: Any, rows: list[Row]) -> None:
    for form, colour in COLOURS.items():
        seen = [(b["foreseen"][form], b["rise"]) for r in rows for b in r["boundaries"] if form in b["foreseen"]]
        if clear := [(f, rise) for f, rise in seen if rise > 0 and f > 0]:
            ax.plot(*zip(*clear, strict=True), "o", color=colour, label=form, markersize=4, alpha=0.7)
    line = np.array([1e-3, 10])
    for factor, style in ((1, "-"), (10, ":")):
        ax.plot(line, factor * line, style, color="#888888", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="rise foreseen (nats)", ylabel="rise measured (nats)")
