"""The figures of a report, each as inline SVG; None where there is nothing to draw."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes

from retain.collection import Adapter
from retain.linalg import squared_norm, thin_svd
from retain.plots import COLOURS, named_ticks, style, svg
from retain.report.read import Run


def accuracy(run: Run) -> str | None:
    """The score of each task from the moment it was learned."""
    if not run.in_turn:
        return None

    def draw(ax: Axes) -> None:
        for i, name in enumerate(run.tasks):
            ax.plot(range(i + 1, len(run.tasks) + 1), run.matrix[i + 1 :, i], label=name, **style(i))
        named_ticks(ax, run.tasks)
        ax.set_xlabel("after learning")
        ax.set_ylabel(run.unit)

    return svg(draw, f"{run.unit.capitalize()} of each task of {run.name} from the moment it was learned")


def together(runs: list[Run]) -> str:
    """Mean score of the tasks learned so far, one line a run."""

    def draw(ax: Axes) -> None:
        for number, run in enumerate(runs):
            there = [t for t in range(1, len(run.tasks) + 1) if not np.isnan(run.matrix[t, :t]).any()]
            label = f"{run.name} ({run.folder.name})"
            ax.plot(there, [run.matrix[t, :t].mean() for t in there], label=label, **style(number))
        named_ticks(ax, runs[0].tasks)
        ax.set_xlabel("after learning")
        ax.set_ylabel(f"{runs[0].unit}, tasks so far")

    return svg(draw, f"Mean {runs[0].unit} of the tasks learned so far, of every run")


def rises(run: Run) -> str | None:
    """What each boundary did to the earlier tasks' loss, foreseen against measured."""
    totals = [entry["total"] for entry in run.results["calibration"]]
    points = [(t["foreseen"], t["measured"], t["standard_error"] or 0.0) for t in totals]
    if not (points := [p for p in points if p[0] and p[0] > 0 and p[1] > 0]):
        return None
    foreseen, measured, errors = map(np.array, zip(*points, strict=True))

    def draw(ax: Axes) -> None:
        ends = [min(foreseen.min(), measured.min()) / 2, max(foreseen.max(), measured.max()) * 2]
        ax.plot(ends, ends, color=COLOURS[6], linestyle="--", label="as foreseen")
        below = np.minimum(errors, 0.9 * measured)
        look = style(0) | {"linestyle": "none", "markersize": 7}
        ax.errorbar(foreseen, measured, yerr=[below, errors], elinewidth=0.8, label="a boundary", **look)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("foreseen rise, nats an example")
        ax.set_ylabel("measured rise")

    return svg(draw, "Rise of the earlier tasks' loss at every boundary, foreseen against measured")


def growth(run: Run) -> str | None:
    """MiB kept after every task, beside what an adapter for each task would take."""
    sizes = [record["bytes"] for record in run.records[1:] if record.get("bytes")]
    if len(sizes) < 2:
        return None
    steps = range(1, len(sizes) + 1)
    adapters, kept = ([size[k] / 2**20 for size in sizes] for k in ("adapter", "state"))

    def draw(ax: Axes) -> None:
        ax.bar(steps, adapters, width=0.5, color=COLOURS[0], label="adapter")
        ax.bar(steps, kept, width=0.5, bottom=adapters, color=COLOURS[4], hatch="//", label="kept beside it")
        each = [adapters[0] * t for t in steps]
        ax.plot(steps, each, **style(6) | {"linestyle": "--"}, label="an adapter a task")
        named_ticks(ax, run.tasks[: len(sizes)])
        ax.set_ylabel("MiB")

    return svg(draw, "MiB kept after every task, against an adapter for each", height=2.8)


def spectrum(adapters: list[Adapter]) -> str | None:
    """Singular values of the whole weight change, as shares of each layer's largest."""
    if not adapters:
        return None
    found = [thin_svd(B, A)[1] for B, A in adapters[-1].changes.values()]
    values = [(S / S[0]).numpy() for S in found if S[0] > 0]
    if not values:
        return None
    rank = min(map(len, values))
    shares = np.stack([S[:rank] for S in values])

    def draw(ax: Axes) -> None:
        steps = range(1, rank + 1)
        low, middle, high = np.quantile(shares, [0.1, 0.5, 0.9], axis=0)
        ax.fill_between(steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="10 to 90 % of layers")
        ax.plot(steps, middle, **style(0), label="median layer")
        ax.set_ylim(0, 1.05)
        ax.set_xlabel("singular value")
        ax.set_ylabel("share of the largest")

    return svg(draw, "Singular values of the weight change after the last task", height=2.8)


def drift(run: Run, adapters: list[Adapter]) -> str | None:
    """How far each task moved each layer: the norm of its change of the weight."""
    if len(adapters) < 2:
        return None
    layers = list(adapters[0].changes)
    moved, before = [], None
    for adapter in adapters:
        moved.append([_moved(adapter.changes[name], before.changes[name] if before else None) for name in layers])
        before = adapter

    def draw(ax: Axes) -> None:
        for i, norms in enumerate(moved):
            ax.plot(range(1, len(layers) + 1), norms, label=run.tasks[i], **style(i) | {"markersize": 3})
        ax.set_xlabel("adapted layer, from the input up")
        ax.set_ylabel("norm of the change")

    return svg(draw, "How far each task moved the weight of each adapted layer")


def _moved(now: tuple[torch.Tensor, torch.Tensor], before: tuple[torch.Tensor, torch.Tensor] | None) -> float:
    """||B A - B' A'||, from the stacked factors."""
    if before is None:
        return float(squared_norm(*now).clamp(min=0).sqrt())
    B, A = torch.cat([now[0], -before[0]], 1), torch.cat([now[1], before[1]])
    return float(squared_norm(B, A).clamp(min=0).sqrt())
