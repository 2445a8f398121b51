"""Methods side by side at one rank: does EBLoRA forget less, which of its parts helps, and what does Share lose?

    python -m benchmarks.methods --streams fashion
    python -m benchmarks.methods --streams text --cells EBLoRA sequential O-LoRA per-task Share "balance alone"

Every cell trains the five tasks of a stream from the same pretrained model, under the settings of its authors where
they give some. Beside accuracies each run records the spectrum of every task's weight change dW_j, how much the input
directions of tasks overlap, and the first-order leakage <G_i, dW_j> of later changes into the mean gradient G_i of an
earlier task's end. Writes benchmarks/results/methods-STREAM-SEED.json; run again to continue.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks.fisher import machine, versions
from benchmarks.methods_report import draw, show
from benchmarks.streams import LORA, STREAMS, Batch, Stream
from benchmarks.training import fit, outcome, packed, share
from retain import METHODS, Method, Task, store
from retain.linalg import effective_rank, energy_concentration
from retain.methods.eblora import Quirk
from retain.subspace import statistics

RESULTS = Path(__file__).parent / "results"
RANK = LORA["r"]
TEST_ROWS = 600  # of a task
GRADIENT_ROWS = 100
Matrices = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """A method with its keywords, and LoRA's alpha."""

    method: str
    keywords: dict[str, Any] = field(default_factory=dict)
    alpha: float = RANK


def eblora(**keywords: Any) -> Cell:
    """EBLoRA at the paper's c = alpha/r = 5."""
    return Cell("eblora", keywords, 5 * RANK)


LEVEL = {"s_min": 0.005, "s_max": 0.005}  # the mean of what the depths start at
QUIRKS = get_args(Quirk)
CELLS: dict[str, Cell] = {
    "sequential": Cell("sequential", {"mode": "merge"}),
    "sequential, one adapter": Cell("sequential"),
    "sequential, c = 5": Cell("sequential", {"mode": "merge"}, 5 * RANK),
    "per-task": Cell("per-task"),
    "O-LoRA": Cell("olora"),
    "O-LoRA, c = 5": Cell("olora", {}, 5 * RANK),
    "O-LoRA, 0.1": Cell("olora", {"orthogonality": 0.1}),
    "O-LoRA, 2": Cell("olora", {"orthogonality": 2.0}),
    "EWC-LoRA": Cell("ewc-lora"),
    "EBLoRA": eblora(),
    "EBLoRA, c = 2": replace(eblora(), alpha=2 * RANK),
    "balance alone": eblora(energy=0.0, **LEVEL),
    "balance, orthogonal": eblora(**LEVEL),
    "second moment": eblora(subspace="second moment"),
    "features": eblora(subspace="features"),
    **{quirk: eblora(reference=[quirk]) for quirk in QUIRKS},
    "all quirks": eblora(reference=QUIRKS),
    "Share": Cell("share"),
    "Share, k = 24": Cell("share", {"components": 24}),
    "Share, 2 temporary": Cell("share", {"temporary": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.streams:
        for seed in options.seeds:
            study(name, seed, {cell: CELLS[cell] for cell in options.cells}, RESULTS / f"methods-{name}-{seed}.json")
    rows = [row for path in sorted(RESULTS.glob("methods-*-*.json")) for row in store.read_json(path)["rows"]]
    show(rows, list(CELLS))
    draw(rows)


def study(name: str, seed: int, cells: dict[str, Cell], path: Path) -> None:
    """The cells of one stream and seed that ``path`` lacks, each written when it is done."""
    rows = store.read_json(path)["rows"] if path.exists() else []
    done = {row["cell"] for row in rows}
    stream = STREAMS[name](seed)
    for cell in [cell for cell in cells if cell not in done]:
        row = {"stream": name, "seed": seed, "cell": cell} | measure(stream, cells[cell], seed)
        rows.append(row)
        document = {"command": "python -m benchmarks.methods", "machine": machine(), "versions": versions()}
        store.write_json(path, document | {"rows": rows})
        print(
            name,
            seed,
            cell,
            {k: row[k] for k in ("final", "learned", "forgetting", "seconds")},
            flush=True,
        )


def measure(stream: Stream, cell: Cell, seed: int) -> dict[str, Any]:
    """One run through all tasks: its accuracies, and what its weight changes look like."""
    begin = time.perf_counter()
    model = stream.model(seed, lora_alpha=cell.alpha)
    method = METHODS[cell.method](model, **cell.keywords, seed=seed)
    one_function = type(method).activate is Method.activate  # else a task's change is from the pretrained weights
    first, gradients, changes, boundaries = [], [], [], []
    for number, task in enumerate(stream.tasks):
        method.activate(None)
        before = weights(method) if one_function else {}
        fit(model, stream, number, [method], seed)
        first.append(outcome(model, task, head(task.test[0], TEST_ROWS))[1])
        changes.append({name: W - before.get(name, 0) for name, W in weights(method).items()})
        layers = {name: site.layer for name, site in method.sites.items()}
        gradients.append(statistics(model, layers, task, "mean gradient", samples=GRADIENT_ROWS))
        method.end_task(task)
        boundaries.append(dict(method.boundary))
    last = after(method, stream.tasks)
    lost = [share(one) - share(other) for one, other in zip(first, last, strict=True)]
    return {
        "final": float(np.mean([share(right) for right in last])),
        "learned": float(np.mean([share(right) for right in first])),
        "forgetting": float(np.mean(lost[:-1])),
        "rows": [len(right) for right in last],
        "right": {"learned": [packed(right) for right in first], "final": [packed(right) for right in last]},
        "changes": [shape(change) for change in changes],
        "overlap": [[overlap(one, other) for other in changes] for one in changes],
        "leakage": [[leakage(G, change) for change in changes] for G in gradients],
        "boundaries": boundaries,
        "bytes": sum(t.nbytes for t in method.state_dict().values()),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def weights(method: Method) -> Matrices:
    return {name: site.delta() for name, site in method.sites.items()}


def head(batch: Batch, rows: int) -> Batch:
    """The first ``rows``."""
    return {key: values[:rows] for key, values in batch.items()}


def after(method: Method, tasks: list[Task]) -> list[Tensor]:
    """Which test rows of each task are classified right now."""
    found = []
    for task in tasks:
        method.activate(task.name)
        found.append(outcome(method.model, task, head(task.test[0], TEST_ROWS))[1])
    return found


def shape(change: Matrices) -> dict[str, Any]:
    """Means over layers of the singular values by the largest, and of what they amount to."""
    spectra = [torch.linalg.svdvals(dW)[: 2 * RANK] for dW in change.values()]
    return {
        "spectrum": torch.stack([S / S[0].clamp(min=1e-30) for S in spectra]).mean(0).tolist(),
        "norm": float(sum(S.square().sum() for S in spectra)) ** 0.5,
        "effective_rank": float(np.mean([effective_rank(S) for S in spectra])),
        "first": float(np.mean([energy_concentration(S, 1) for S in spectra])),
    }


def overlap(one: Matrices, other: Matrices) -> float:
    """||V_i'V_j||^2 / r, a mean over layers, V (in, r) the leading input directions of a change; 1 for the same."""
    directions = [[torch.svd_lowrank(c[name], 2 * RANK)[2][:, :RANK] for name in one] for c in (one, other)]
    return float(np.mean([float((V.T @ W).square().sum()) / RANK for V, W in zip(*directions, strict=True)]))


def leakage(gradient: Matrices, change: Matrices) -> dict[str, float]:
    """<G, dW> over all layers in nats, and by the norms of both."""
    rise = sum(float((gradient[name] * change[name]).sum()) for name in gradient)
    sizes = [sum(float(m.square().sum()) for m in both.values()) ** 0.5 for both in (gradient, change)]
    return {"nats": rise, "cosine": rise / max(sizes[0] * sizes[1], 1e-30)}


if __name__ == "__main__":
    main()
