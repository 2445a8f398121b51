"""The penalty at every step: time beside a plain LoRA step of one layer, extra memory, and error against float64.

    python -m benchmarks.penalty
    python -m benchmarks.penalty --widths 768 --repeats 1

A layer (width, width) under LoRA of rank r sees a batch of tokens: forward, backward to its input and both factors,
AdamW on the factors. Beside it every form of the penalty on the same factors: value and both gradients. One process,
contenders interleaved; CPU seconds, medians; fast ones are repeated within a round. Writes
benchmarks/results/penalty.json.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fisher import extra_memory, machine, ratio, timed
from retain import store
from retain.fisher.forms import Diagonal, Factored, Form, Kronecker
from retain.fisher.forms.factored import Fit
from retain.fisher.forms.factorise import Product
from retain.fisher.forms.kronecker import Side

RESULTS = Path(__file__).parent / "results" / "penalty.json"
PLAIN, DENSE = "plain LoRA step", "dense autograd"
ROUND = 0.1  # seconds that a contender runs for in a round, at least
Penalty = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for width, rank in itertools.product(options.widths, options.ranks):
        found = measure(width, rank, options.tokens, options.repeats)
        rows += [{"width": width, "rank": rank} | row for row in found]
        show(width, rank, found)
    document = {
        "command": "python -m benchmarks.penalty",
        "machine": machine(),
        "versions": {name: version(name) for name in ("retain", "torch")},
        "repeats": options.repeats,
        "rows": rows,
    }
    store.write_json(RESULTS, document)


def measure(width: int, rank: int, tokens: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row for each contender: seconds, shares of the plain steps, extra MiB, error."""
    torch.manual_seed(0)
    pair = torch.randn(width, rank) / rank, torch.randn(rank, width) / width
    anchor = tuple(x + 0.1 * x.std() * torch.randn_like(x) for x in pair)
    penalties = contenders(width, (anchor[0], anchor[1]))
    # What the oracle needs is not there any more when memory and time are measured.
    rows = {name: {"error": error(run, exact(width), *pair)} for name, (run, exact) in penalties.items()}
    runs = {name: step(run, *pair) for name, (run, _) in penalties.items()}
    for name, run in runs.items():
        rows[name]["extra_mib"] = extra_memory(run)
    plain = {f"{PLAIN}, {n} tokens": lora_step(width, n, *pair) for n in tokens}
    seconds: dict[str, list[float]] = {name: [] for name in (*plain, *runs)}
    loops = {name: max(1, round(ROUND / max(1e-5, timed(run)))) for name, run in (plain | runs).items()}
    for _ in range(repeats):
        for name, run in (plain | runs).items():
            seconds[name].append(timed(lambda run=run, n=loops[name]: [run() for _ in range(n)]) / loops[name])
    for name, row in rows.items():
        row |= {"faster_than_dense_autograd": ratio(seconds[DENSE], seconds[name])}
        row |= {"share": {str(n): ratio(seconds[name], seconds[f"{PLAIN}, {n} tokens"]) for n in tokens}}
    return [{"contender": name, "seconds": times} | rows.get(name, {}) for name, times in seconds.items()]


def contenders(width: int, anchor: Pair) -> dict[str, tuple[Penalty, Callable[[int], Penalty]]]:
    """Every way to the penalty, with a maker of its float64 twin."""
    forms: dict[str, Form] = {f"diagonal {kind}": diagonal(width, kind) for kind in ("float32", "bfloat16", "uint8")}
    forms |= {f"factored {m}": factored(width, m) for m in (1, 2, 4, 8)}
    forms |= {"kronecker dense": kronecker(width, None), "kronecker 16": kronecker(width, 16)}
    fisher = forms["diagonal float32"].state_dict()["fisher"]

    def dense(B: Tensor, A: Tensor) -> Tensor:
        return 0.5 * (fisher * (B @ A) ** 2).sum()

    found = {DENSE: (dense, lambda _: twin(forms["diagonal float32"], None))}
    for name, form in forms.items():
        found[name] = (form.quadratic, lambda _, form=form: twin(form, None))
        if name in ("diagonal float32", "factored 8", "kronecker dense", "kronecker 16"):
            anchored: Penalty = lambda B, A, form=form: form.quadratic(B, A, anchor)  # noqa: E731
            found[f"{name}, anchored"] = (anchored, lambda _, form=form: twin(form, anchor))
    return found


def diagonal(width: int, storage: str) -> Diagonal:
    product = profiles(width, 8)
    matrix = (product.rows.T @ product.columns) * torch.rand(width, width)
    return Diagonal.of(matrix, (width, width), storage, matrix)


def factored(width: int, components: int) -> Factored:
    return Factored(profiles(width, components), Fit(0.0, 1.0), components)


def profiles(width: int, components: int) -> Product:
    """Non-negative factors over several decades."""
    rows, columns = (10 ** (2 * torch.rand(components, width) - 4) for _ in range(2))
    return Product(rows, columns)


def kronecker(width: int, rank: int | None) -> Kronecker:
    def side() -> Side:
        factor = torch.randn(width, rank or 64) / width
        return Side(factor @ factor.T) if rank is None else Side(factor, torch.rand(width) / width)

    return Kronecker(side(), side())


def twin(form: Form, anchor: Pair | None) -> Penalty:
    """The penalty of what ``form`` keeps, by plain autograd in float64."""
    state = {name: tensor.double() for name, tensor in form.state_dict().items()}
    held = None if anchor is None else [x.double() for x in anchor]

    def change(B: Tensor, A: Tensor) -> Tensor:
        return B @ A if held is None else B @ A - held[0] @ held[1]

    def times(name: str, X: Tensor) -> Tensor:
        if f"{name}.rest" not in state:
            return state[name] @ X
        return state[name] @ (state[name].T @ X) + state[f"{name}.rest"][:, None] * X

    def penalty(B: Tensor, A: Tensor) -> Tensor:
        D = change(B, A)
        if "left" in state:
            trace = state["left"].trace() if "left.rest" not in state else trace_of(state, "left")
            return 0.5 * (times("left", D) * times("right", D.T).T).sum() / trace
        if "rows" in state:
            return 0.5 * (state["rows"].T @ state["columns"] * D**2).sum()
        entries = (state["scale"][:, None] * state["fisher"]) ** 2 if "scale" in state else state["fisher"]
        return 0.5 * (entries * D**2).sum()

    return penalty


def trace_of(state: dict[str, Tensor], name: str) -> Tensor:
    return state[name].square().sum() + state[f"{name}.rest"].sum()


def error(run: Penalty, exact: Penalty, B: Tensor, A: Tensor) -> float:
    """The larger relative error of the value and of the gradients, in their norm."""
    (value, ours), (true, theirs) = (gradients(f, x, y) for f, x, y in ((run, B, A), (exact, B.double(), A.double())))
    return max(abs(value - true) / true, float((ours - theirs).norm() / theirs.norm()))


def gradients(run: Penalty, B: Tensor, A: Tensor) -> tuple[float, Tensor]:
    B, A = (x.clone().requires_grad_() for x in (B, A))
    value = run(B, A)
    return float(value.detach()), torch.cat([g.flatten().double() for g in torch.autograd.grad(value, (B, A))])


def step(run: Penalty, B: Tensor, A: Tensor) -> Callable[[], dict[str, Tensor]]:
    """Value and gradients into ``.grad``, as a training step has them."""
    B, A = (x.clone().requires_grad_() for x in (B, A))
    B.grad, A.grad = torch.zeros_like(B), torch.zeros_like(A)

    def once() -> dict[str, Tensor]:
        run(B, A).backward()
        return {}

    return once


def lora_step(width: int, tokens: int, B: Tensor, A: Tensor) -> Callable[[], dict[str, Tensor]]:
    """A frozen layer under LoRA: forward, backward to input and factors, AdamW on the factors."""
    weight = torch.randn(width, width) / width**0.5
    x, pull = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    B, A = (f.clone().requires_grad_() for f in (B, A))
    optimizer = torch.optim.AdamW([B, A])

    def once() -> dict[str, Tensor]:
        (x @ weight.T + x @ A.T @ B.T).backward(pull)
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None
        return {}

    return once


def show(width: int, rank: int, rows: list[dict[str, Any]]) -> None:
    """One width and rank."""
    shares = list(rows[-1]["share"])
    columns = (*(f"% of a step, {n} tokens" for n in shares), "faster than dense", "extra MiB", "error")
    table = Table("contender", "ms", *columns, title=f"width {width}, rank {rank}")
    for row in rows:
        cells = [row["contender"], f"{1e3 * median(row['seconds']):.2f}"]
        if "share" in row:
            cells += [f"{100 * row['share'][n]:.2f}" for n in shares]
            cells += [f"{row['faster_than_dense_autograd']:.1f}", f"{row['extra_mib']:.1f}", f"{row['error']:.0e}"]
        table.add_row(*cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
