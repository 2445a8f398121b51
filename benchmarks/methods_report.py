"""Tables and figures of benchmarks.methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.streams import LORA
from benchmarks.training import interval, unpacked

Row = dict[str, Any]
DOCS = Path(__file__).parents[1] / "docs"
RANK = LORA["r"]
RIVALS = ("sequential", "sequential, c = 5", "O-LoRA", "O-LoRA, c = 5")
DRAWN = {"sequential": "#c44e52", "O-LoRA": "#8172b3", "balance alone": "#dd8452", "EBLoRA": "#2a6f97"}


def show(rows: list[Row], order: list[str]) -> None:
    """Accuracies of every cell, and what each gains on the rivals, stream by stream."""
    console = Console(width=150)
    for name in dict.fromkeys(row["stream"] for row in rows):
        cells = {cell: [r for r in rows if r["stream"] == name and r["cell"] == cell] for cell in order}
        cells = {cell: found for cell, found in cells.items() if found}
        console.print(accuracies(name, cells))
        for rival in RIVALS:
            if rival in cells:
                console.print(against(name, cells, rival))


def accuracies(name: str, cells: dict[str, list[Row]]) -> Table:
    """Means and spread over seeds; "forward" is learning accuracy minus that of a fresh adapter for each task."""
    columns = ("cell", "final", "learned", "forgetting", "forward", "leakage", "overlap", "eff. rank", "bytes", "seeds")
    table = Table(*columns, title=name)
    fresh = {row["seed"]: accuracy(row, "learned") for row in cells.get("per-task", [])}
    for cell, found in cells.items():
        numbers = [[row[key] for row in found] for key in ("final", "learned", "forgetting")]
        gains = [accuracy(r, "learned")[1:] - fresh[r["seed"]][1:] for r in found if r["seed"] in fresh]
        numbers.append([float(gain.mean()) for gain in gains])
        texts = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else f"{sum(v):.3f}" for v in numbers]
        if not gains:
            texts[-1] = ""
        last = (np.mean([interference(row)[i] for row in found]) for i in range(2))
        rank = np.mean([change["effective_rank"] for row in found for change in row["changes"]])
        size = f"{np.mean([row['bytes'] for row in found]):,.0f}"
        table.add_row(cell, *texts, *(f"{x:.3f}" for x in last), f"{rank:.1f}", size, str(len(found)))
    return table


def against(name: str, cells: dict[str, list[Row]], rival: str) -> Table:
    """Differences to ``rival`` in points, paired by seed and test row."""
    table = Table("cell", "final", "learned", "forgetting", title=f"{name}: minus {rival}, 95 % intervals")
    theirs = {row["seed"]: row for row in cells[rival]}
    for cell, found in cells.items():
        if pairs := [(row, theirs[row["seed"]]) for row in found if row["seed"] in theirs and cell != rival]:
            table.add_row(cell, *(points(pairs, kind) for kind in ("final", "learned", "forgetting")))
    return table


def points(pairs: list[tuple[Row, Row]], kind: str) -> str:
    """Mean difference and its interval, in points."""
    tasks = range(len(pairs[0][0]["rows"]) - (kind == "forgetting"))
    found = interval([np.mean([right(a, kind, i) - right(b, kind, i) for a, b in pairs], 0) for i in tasks])
    middle, low, high = (100 * x for x in found)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def right(row: Row, kind: str, task: int) -> np.ndarray:
    """Of every test row of a task: right at the end, right when learned, or the latter minus the former."""
    if kind == "forgetting":
        return right(row, "learned", task) - right(row, "final", task)
    return unpacked(row["right"][kind][task], row["rows"][task])


def accuracy(row: Row, kind: str) -> np.ndarray:
    """Of every task."""
    return np.array([right(row, kind, i).mean() for i in range(len(row["rows"]))])


def interference(row: Row) -> tuple[float, float]:
    """Means over pairs of tasks, i before j: 1000 |cos(G_i, dW_j)|, and the overlap of dW_i's and dW_j's inputs."""
    pairs = [(i, j) for j in range(len(row["rows"])) for i in range(j)]
    leaks = [1000 * abs(row["leakage"][i][j]["cosine"]) for i, j in pairs]
    return float(np.mean(leaks)), float(np.mean([row["overlap"][i][j] for i, j in pairs]))


def draw(rows: list[Row]) -> None:
    """Two figures: spectra of weight changes, and the interference between tasks."""
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    for file, panel in (("eblora-spectra.png", _spectra), ("eblora-interference.png", _interference)):
        figure, panels = plt.subplots(1, len(streams), figsize=(5.5 * len(streams), 3.8), layout="constrained")
        for ax, name in zip(np.atleast_1d(panels), streams, strict=True):
            panel(ax, {c: [r for r in rows if r["stream"] == name and r["cell"] == c] for c in DRAWN})
            ax.set_title(name)
            ax.spines[["top", "right"]].set_visible(False)
        np.atleast_1d(panels)[0].legend(frameon=False, fontsize=8)
        figure.savefig(DOCS / file, dpi=150)
        plt.close(figure)


def _spectra(ax: Any, cells: dict[str, list[Row]]) -> None:
    for cell, found in cells.items():
        spectra = [change["spectrum"] for row in found for change in row["changes"]]
        if spectra:
            values = np.array(spectra)[:, :RANK]
            ax.plot(range(1, values.shape[1] + 1), values.mean(0), "o-", color=DRAWN[cell], label=cell, markersize=4)
    ax.set(xlabel="singular value of a task's weight change", ylabel="of the largest", ylim=(0, 1.05))


def _interference(ax: Any, cells: dict[str, list[Row]]) -> None:
    """Leakage of every later change into every earlier gradient, against the forgetting of that run."""
    for cell, found in cells.items():
        where = [(interference(row)[0], 100 * row["forgetting"]) for row in found]
        if where:
            ax.plot(*zip(*where, strict=True), "o", color=DRAWN[cell], label=cell)
    ax.set(
        xscale="log", xlim=(0.3, 60), xlabel="first-order leakage, 1000 |cos(G_i, dW_j)|", ylabel="forgetting, points"
    )
    ax.xaxis.set_major_formatter("{x:g}")
