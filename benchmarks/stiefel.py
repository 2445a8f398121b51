"""What staying on the manifold costs a step: projections and retractions beside a plain LoRA step of the same layers.

    python -m benchmarks.stiefel
    python -m benchmarks.stiefel --widths 768 --repeats 1

A stack of layers (width, width) under LoRA of rank r sees a batch of tokens: forward, backward to its input and the
factors, AdamW on the factors. Beside it what EBLoRA adds: gradients projected before, steps projected and retracted
after, with and without a basis of earlier tasks; and the retractions alone, QR among them. One process, contenders
interleaved; CPU seconds, medians. Writes benchmarks/results/stiefel.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.fisher import machine, ratio, timed
from retain import store
from retain.stiefel import Points, retract

RESULTS = Path(__file__).parent / "results" / "stiefel.json"
PLAIN = "plain LoRA step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768, 1536])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for width in options.widths:
        found = measure(width, options.rank, options.layers, options.tokens, options.repeats)
        rows += [{"width": width} | row for row in found]
        show(width, found)
    document = {
        "command": "python -m benchmarks.stiefel",
        "machine": machine(),
        "versions": {name: version(name) for name in ("retain", "torch")},
        "shape": {"rank": options.rank, "layers": options.layers, "tokens": options.tokens},
        "rows": rows,
    }
    store.write_json(RESULTS, document)


def measure(width: int, rank: int, layers: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each contender: seconds, and the share of the plain step."""
    torch.manual_seed(0)
    runs: dict[str, Callable[[], Any]] = {PLAIN: lora_step(width, rank, layers, tokens)}
    for taken in (0, width // 8, width // 2):
        runs[f"around the step, {taken} directions taken"] = around(width, rank, layers, taken)
    Y = torch.linalg.qr(torch.randn(2 * layers, width, rank)).Q
    Y = Y + 0.01 * torch.randn_like(Y) / width**0.5
    for method in ("eigh", "svd", "newton-schulz"):
        runs[f"retraction alone, {method}"] = lambda method=method: retract(Y, method)
    runs["retraction alone, qr"] = lambda: torch.linalg.qr(Y)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return [
        {"contender": name, "seconds": times, "share": ratio(times, seconds[PLAIN])} for name, times in seconds.items()
    ]


def lora_step(width: int, rank: int, layers: int, tokens: int) -> Callable[[], None]:
    """Forward, backward and AdamW of a stack under LoRA, as stock LoRA computes it."""
    W = [torch.randn(width, width) / width**0.5 for _ in range(layers)]
    A, B = ([nn.Parameter(torch.randn(*s) / width**0.5) for _ in W] for s in ((rank, width), (width, rank)))
    optimizer = torch.optim.AdamW([*A, *B], lr=1e-4)
    inputs = torch.randn(tokens, width, requires_grad=True)

    def step() -> None:
        x: Tensor = inputs
        for w, a, b in zip(W, A, B, strict=True):
            x = (x @ w.T + 2 * (x @ a.T) @ b.T).tanh()
        x.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def around(width: int, rank: int, layers: int, taken: int) -> Callable[[], None]:
    """What EBLoRA does before and after the optimizer, for the A and B of all layers."""
    bases = torch.linalg.qr(torch.randn(layers, width, taken + rank)).Q
    A = [nn.Parameter(Q[:, taken:].T.contiguous()) for Q in bases]
    B = [nn.Parameter(torch.linalg.qr(torch.randn(width, rank)).Q.contiguous()) for _ in A]
    groups = [Points(A, turned=True, F=bases[:, :, :taken].contiguous() if taken else None), Points(B)]
    gradients = [torch.randn_like(p) for p in (*A, *B)]

    @torch.no_grad()
    def step() -> None:
        for p, g in zip((*A, *B), gradients, strict=True):
            p.grad = g.clone()
        for points in groups:
            points.project_gradients("euclidean")
        for p in (*A, *B):
            p.sub_(p.grad, alpha=1e-3 / width**0.5)
        for points in groups:
            points.retract((4096 / width) ** 0.5, "euclidean")

    return step


def show(width: int, rows: list[dict[str, Any]]) -> None:
    """One width's table."""
    table = Table("", "ms", "share of the step", title=f"layers of {width} x {width}")
    for row in rows:
        table.add_row(row["contender"], f"{1e3 * median(row['seconds']):.2f}", f"{row['share']:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
