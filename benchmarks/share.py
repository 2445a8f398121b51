"""Hundreds of adapters on shared bases: seconds, memory, what is lost, and what is stored, bases included.

    python -m benchmarks.share
    python -m benchmarks.share --counts 10 --kinds structured      # a glance

Rank-16 adapters of 24 layers (1024, 1024) are written as stock LoRA folders and absorbed one at a time by the code
behind ``retain share add-adapter``. "structured": all B and A lie in common subspaces of dimension 64, but for noise of
2 % of their norm; "random": nothing in common. Each task is then written back and compared with the file that it came
from. Writes benchmarks/results/share.json and docs/share-growth.png.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fisher import machine, versions
from retain import collection as shared
from retain import store
from retain.collection import Adapter

RESULTS = Path(__file__).parent / "results" / "share.json"
FIGURE = Path(__file__).parents[1] / "docs" / "share-growth.png"
KINDS = ("structured", "random")
WIDTH, RANK, LAYERS, COMMON, NOISE, COMPONENTS = 1024, 16, 24, 64, 0.02, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 500])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        for count in options.counts if kind == "structured" else [min(100, max(options.counts))]:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # so that each has a peak of its own
                found = alone.submit(absorb, kind, count, options.threads).result()
            rows.append({"kind": kind, "adapters": count} | found)
            print(rows[-1], flush=True)
    show(rows)
    if options.counts == parser.get_default("counts") and len(options.kinds) == len(KINDS):
        draw(rows)
        shape = {"width": WIDTH, "rank": RANK, "layers": LAYERS, "common": COMMON, "components": COMPONENTS}
        document = {"command": "python -m benchmarks.share", "machine": machine(), "versions": versions()}
        store.write_json(RESULTS, document | {"shape": shape, "rows": rows})


def absorb(kind: str, count: int, threads: int) -> dict[str, Any]:
    """Write ``count`` adapters to disk, take them in one after the other, and compare what comes back."""
    torch.set_num_threads(threads)
    common = subspaces()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"task{i:03d}") for i in range(count)]
        for i, path in enumerate(paths):
            shared.write_adapter(path, made(kind, i, common))
        begin, worked = time.perf_counter(), time.process_time()
        found = shared.extended(None, ((path.name, shared.read_adapter(path)) for path in paths), COMPONENTS)
        seconds, worked = time.perf_counter() - begin, time.process_time() - worked
        reported = found.residuals
        errors = {path.name: error(found, path) for path in paths[:: max(1, count // 20)]}
    sizes, adapters = found.bytes(), count * 4 * RANK * 2 * WIDTH * LAYERS
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(worked, 1),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "worst_reported": max(reported.values()),
        "worst_true_minus_reported": max(true - reported[name] for name, true in errors.items()),
        "worst_true": max(errors.values()),
        "bytes": sizes,
        "adapter_bytes": adapters,
        "smaller": adapters / (sizes["bases"] + sizes["cores"]),
        "smaller_by_cores_alone": adapters / sizes["cores"],
    }


def subspaces() -> list[tuple[Tensor, Tensor]]:
    """The common columns of all B and rows of all A, of every layer."""
    generator = torch.Generator().manual_seed(1000)
    draws = (torch.randn(WIDTH, COMMON, generator=generator) for _ in range(2 * LAYERS))
    bases = [torch.linalg.qr(draw).Q for draw in draws]
    return list(zip(bases[::2], bases[1::2], strict=True))


def made(kind: str, number: int, common: list[tuple[Tensor, Tensor]]) -> Adapter:
    """The adapter of that number."""
    generator = torch.Generator().manual_seed(number)
    changes = {}
    for layer, (U, V) in enumerate(common):
        B, A = (torch.randn(WIDTH, RANK, generator=generator) / WIDTH**0.5 for _ in range(2))
        if kind == "structured":
            inside = [F @ torch.randn(COMMON, RANK, generator=generator) / COMMON**0.5 for F in (U, V)]
            B, A = (x + NOISE * noise for x, noise in zip(inside, (B, A), strict=True))
        changes[f"layers.{layer}.proj"] = (B, A.T.contiguous())
    return Adapter({"peft_type": "LORA", "base_model_name_or_path": "base", "lora_alpha": RANK}, changes)


def error(found: shared.Collection, path: Path) -> float:
    """||dW as it came - dW as it is kept|| / ||dW as it came|| over all layers."""
    lost = whole = 0.0
    for name, (B, A) in shared.read_adapter(path).changes.items():
        left, right = found.bases[name].factors(path.name)
        dW = B @ A
        lost += float((dW - left @ right).square().sum())
        whole += float(dW.square().sum())
    return (lost / whole) ** 0.5


def show(rows: list[dict[str, Any]]) -> None:
    columns = (
        "adapters",
        "seconds",
        "of a core",
        "peak",
        "lost, worst",
        "stored",
        "as adapters",
        "smaller",
        "by cores alone",
    )
    table = Table("kind", *columns)
    for row in rows:
        stored = sum(row["bytes"].values())
        megabytes = (f"{n / 2**20:,.0f} MiB" for n in (row["peak_bytes"], stored, row["adapter_bytes"]))
        peak, kept, apart = megabytes
        times = (f"x {row[key]:.1f}" for key in ("smaller", "smaller_by_cores_alone"))
        lost = f"{row['worst_reported']:.1%}"
        table.add_row(
            row["kind"],
            str(row["adapters"]),
            f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}",
            peak,
            lost,
            kept,
            apart,
            *times,
        )
    Console(width=130).print(table)


def draw(rows: list[dict[str, Any]]) -> None:
    """Bytes against adapters: an adapter each, and shared."""
    rows = [row for row in rows if row["kind"] == "structured"]
    kept = {"an adapter each": [row["adapter_bytes"] for row in rows]}
    kept |= {"shared: bases and cores": [row["bytes"]["bases"] + row["bytes"]["cores"] for row in rows]}
    kept |= {"cores alone": [row["bytes"]["cores"] for row in rows]}
    figure, axes = plt.subplots(figsize=(6.5, 4))
    for (label, sizes), colour, style in zip(
        kept.items(), ("#c44e52", "#2a6f97", "#2a6f97"), ("-", "-", ":"), strict=True
    ):
        axes.plot(
            [row["adapters"] for row in rows], [n / 2**20 for n in sizes], style, color=colour, marker="o", label=label
        )
    axes.set(xscale="log", yscale="log", xlabel="adapters", ylabel="MiB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
