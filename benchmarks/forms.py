"""What each form of importance keeps of the Fisher, per byte: value and gradients of the penalty along real directions.

    python -m benchmarks.forms
    python -m benchmarks.forms --streams text --rows 40

Five tasks are learned one after the other without protection, at width 384 (MiniLM on texts) and 768 (a ViT, trained
here on MNIST, on pairs of Fashion-MNIST classes). At every boundary a few layers' inputs and output gradients are
kept. The forms of the first task, and the sums of all five, are then compared along the steps from boundary to
boundary, (B, A) anchored at the last (B*, A*), with

- the diagonal E[G o G] in float64, which is what diagonal and factored forms stand for;
- the full Fisher of the same examples, E[<G, D>^2], from each example's slope along the step D;
- the full Fisher of other rows of the same task, which a form ought to foresee.

Writes benchmarks/results/forms.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fisher import machine
from benchmarks.importance import fit
from benchmarks.streams import LORA, Batch, Stream, fashion, text, vit
from retain import Sequential, Task, store
from retain.fisher.capture import capture
from retain.fisher.contract import along
from retain.fisher.forms import FORMS, Diagonal, Factored, Form
from retain.hf import load_model
from retain.lora import sites
from retain.task import Draws, evaluating, forward

RESULTS = Path(__file__).parent / "results" / "forms.json"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"diagonal {storage}": ("diagonal", {"storage": storage}) for storage in ("float32", "bfloat16", "uint8")},
    **{f"factored {m}": ("factored", {"components": m}) for m in (1, 2, 4, 8)},
    **{f"kronecker {rank or 'dense'}": ("kronecker", {"rank": rank}) for rank in (4, 8, 16, 32, 64, None)},
}
SITES_OF_A_SHAPE = 3
Pair = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Boundary:
    """After a task: every chosen layer's factors (B, A), and x, d of the task's own rows and of others."""

    factors: dict[str, Pair]
    own: dict[str, Pair]
    others: dict[str, Pair]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--rows", type=int, default=150, help="training rows of a task, and as many others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document = store.read_json(RESULTS) if RESULTS.exists() else {}
    for name in options.streams:
        boundaries = learn(STREAMS[name](options.seed, options.rows), options.seed)
        found = {scope: compare(boundaries, tasks) for scope, tasks in (("one task", 1), ("five tasks", 5))}
        show(name, found)
        document["command"] = "python -m benchmarks.forms"
        document.setdefault("streams", {})[name] = found | {
            "rows": options.rows,
            "layers": {site: [len(B), A.shape[1]] for site, (B, A) in boundaries[0].factors.items()},
            "seed": options.seed,
            "machine": machine(),
            "versions": {package: version(package) for package in ("retain", "torch", "transformers", "peft")},
        }
        store.write_json(RESULTS, document)


def learn(stream: Stream, seed: int) -> list[Boundary]:
    """Train the stream's tasks in turn and keep what importance is made of."""
    model, found = stream.model(seed), []
    layers = {name: site.layer for name, site in sites(model).items() if name in chosen(model)}
    for number, task in enumerate(stream.tasks):
        fit(model, stream, number, [Sequential(model)], seed)
        here = sites(model)
        factors = {name: (here[name].B.detach().clone(), here[name].A.detach().clone()) for name in layers}
        parts = (task.train[0], stream.validation[number])
        found.append(Boundary(factors, *(examples(model, layers, task, part, seed + number) for part in parts)))
    return found


def chosen(model: Any) -> list[str]:
    """A few layers of every shape, evenly through the model."""
    shapes = defaultdict(list)
    for name, site in sites(model).items():
        shapes[len(site.B), site.A.shape[1]].append(name)
    picks = [[names[int(i)] for i in np.linspace(0, len(names) - 1, SITES_OF_A_SHAPE)] for names in shapes.values()]
    return sorted({name for names in picks for name in names})


def examples(model: Any, layers: dict[str, Any], task: Task, rows: Batch, seed: int) -> dict[str, Pair]:
    """x (N, T, in) and d (N, T, out) of every layer, labels drawn as a mixture from the model."""
    kept: dict[str, list[Pair]] = defaultdict(list)
    with (
        evaluating(model),
        torch.enable_grad(),
        capture(model, layers, lambda name, x, d: kept[name].append((x, d))) as tape,
    ):
        for numbers in torch.arange(len(rows["labels"])).split(16):
            tape.start(len(numbers))
            outputs, targets = forward(model, {key: value[numbers] for key, value in rows.items()})
            for score in task.loss.scores("mixture", outputs, targets, Draws(numbers, seed)):
                outputs.backward(score)
                tape.finish()
    return {name: (torch.cat([x for x, _ in pairs]), torch.cat([d for _, d in pairs])) for name, pairs in kept.items()}


def compare(boundaries: list[Boundary], tasks: int) -> dict[str, dict[str, Any]]:
    """Every form of the sum of the first ``tasks`` tasks, over layers and steps."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for site in boundaries[0].factors:
        own = [boundary.own[site] for boundary in boundaries[:tasks]]
        others = [boundary.others[site] for boundary in boundaries[:tasks]]
        path = [boundary.factors[site] for boundary in boundaries]
        steps = list(zip(path[1:], path, strict=False))
        oracles = {
            "diagonal": [along_step(summed("diagonal", own, torch.float64)[0].quadratic, *s) for s in steps],
            "full": [along_step(full(own), *step) for step in steps],
            "other rows": [along_step(full(others), *step) for step in steps],
        }
        for name, (form, settings) in SETTINGS.items():
            kept, seconds = summed(form, own, **settings)
            ours = [along_step(kept.quadratic, *step) for step in steps]
            errors = {
                kind: [distance(a, b) for a, b in zip(ours, exact, strict=True)] for kind, exact in oracles.items()
            }
            dense = isinstance(kept, Factored) and isinstance(kept.kept, Diagonal)
            size = kept.nbytes / (kept.shape[0] * kept.shape[1])
            rows[name].append({"bytes": size, "seconds": seconds, "fell back": dense, **errors})
    return {name: summary(found) for name, found in rows.items()}


def summed(form: str, parts: list[Pair], dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Form, float]:
    """The form of all tasks, each collected and then accumulated, and the seconds that it took to make, not collect."""
    total: Form | None = None
    seconds = 0.0
    for x, d in parts:
        collector = FORMS[form].collector(d.shape[2], x.shape[2], x.device, dtype, **settings)
        collector.add(x.to(dtype), d.to(dtype))
        begin = time.process_time()
        new = collector.done(len(x))
        if total is None:
            total = new
        else:
            total.accumulate(new)
        seconds += time.process_time() - begin
    assert total is not None
    return total, seconds / len(parts)


def full(parts: list[Pair]) -> Callable[[Tensor, Tensor, Pair], Tensor]:
    """1/2 <D, F D> with the Fisher of whole examples, summed over tasks, in float64."""

    def quadratic(B: Tensor, A: Tensor, anchor: Pair) -> Tensor:
        left, right = torch.cat([B - anchor[0], anchor[0]], 1), torch.cat([A, A - anchor[1]])
        return sum(0.5 * along(x.double(), d.double(), left, right).square().mean() for x, d in parts)

    return quadratic


def along_step(quadratic: Callable[[Tensor, Tensor, Pair], Tensor], now: Pair, before: Pair) -> tuple[float, Tensor]:
    """Value and gradients in both factors of a step from ``before`` to ``now``."""
    B, A = (factor.double().requires_grad_() for factor in now)
    value = quadratic(B, A, (before[0].double(), before[1].double()))
    return float(value.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(value, (B, A))])


def distance(ours: tuple[float, Tensor], exact: tuple[float, Tensor]) -> tuple[float, float]:
    """Ratio of the values, cosine of the gradients."""
    return ours[0] / exact[0], float(torch.nn.functional.cosine_similarity(ours[1], exact[1], 0))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over layers and steps: ratios and cosines, in the median and at the end that is worse."""
    found: dict[str, Any] = {
        "bytes_per_entry": float(np.mean([row["bytes"] for row in rows])),
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "fell_back": sum(row["fell back"] for row in rows) / len(rows),
    }
    for kind in ("diagonal", "full", "other rows"):
        ratios, cosines = (np.array(x) for x in zip(*(pair for row in rows for pair in row[kind]), strict=True))
        found[kind] = {
            "ratio": float(np.median(ratios)),
            "spread": float(np.exp(np.std(np.log(ratios)))),
            "error": float(np.median(np.abs(ratios - 1))),
            "worst_error": float(np.max(np.abs(ratios - 1))),
            "cosine": float(np.median(cosines)),
            "worst_cosine": float(np.min(cosines)),
        }
    return found


def wide(seed: int, rows: int) -> Stream:
    """Pairs of Fashion-MNIST classes on a ViT (28 pixels, patches of 7, 2 layers, width 768) that knows MNIST."""
    folder = vit("wide-vit-mnist", 2, 768, 12, rows=2000, epochs=3, batch_size=32, learning_rate=3e-4)
    stream = fashion(seed, rows, rows)
    return dataclasses.replace(
        stream, model=lambda seed: load_model(str(folder), "image", [2] * 5, LORA, seed=seed), learning_rate=5e-4
    )


STREAMS: dict[str, Callable[[int, int], Stream]] = {"text": lambda seed, rows: text(seed, rows, rows), "wide": wide}


def show(name: str, found: dict[str, dict[str, Any]]) -> None:
    """One stream's tables."""
    for scope, forms in found.items():
        columns = ("bytes/entry", "diagonal: error", "worst", "cosine", "worst", "full: ratio", "spread", "cosine")
        columns = (*columns, "other rows: ratio", "spread", "cosine", "fell back", "seconds")
        table = Table("form", *columns, title=f"{name}, {scope}")
        for form, row in forms.items():
            exact = row["diagonal"]
            cells = [f"{row['bytes_per_entry']:.3f}", f"{exact['error']:.4f}", f"{exact['worst_error']:.4f}"]
            cells += [f"{exact['cosine']:.5f}", f"{exact['worst_cosine']:.4f}"]
            for kind in ("full", "other rows"):
                cells += [f"{row[kind]['ratio']:.3f}", f"x {row[kind]['spread']:.2f}", f"{row[kind]['cosine']:.3f}"]
            table.add_row(form, *cells, f"{row['fell_back']:.2f}", f"{row['seconds']:.2f}")
        Console(width=200).print(table)


if __name__ == "__main__":
    main()
