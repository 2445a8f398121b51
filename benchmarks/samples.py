"""How many examples the Fisher needs: drawn by their scores, and all alike.

    python -m benchmarks.samples
    python -m benchmarks.samples --streams text --rows 400

A model learns the first task of a stream until it fits its rows. 1/2 <D, F D> along what the adapter has learned (D =
s B A, every site's own F, summed) from a share of the rows and mixture labels stands beside that of all rows and all
labels, seed after seed, as does the standard error that the estimate gives for itself. Writes
benchmarks/results/samples.json.
"""

from __future__ import annotations

import argparse
from math import inf
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fisher import machine, versions
from benchmarks.importance import fit
from benchmarks.streams import STREAMS
from retain import Sequential, store
from retain.fisher import measure, sweep
from retain.fisher.sampling import concentration
from retain.lora import Site, sites
from retain.task import Task

RESULTS = Path(__file__).parent / "results" / "samples.json"
SHARES = (0.025, 0.05, 0.1, 0.2, 0.4, 1.0)
WAYS = ("by their scores", "all alike")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--rows", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    document = store.read_json(RESULTS) if RESULTS.exists() else {"streams": {}}
    for name in options.streams:
        found = study(name, options.rows, options.seeds)
        document["streams"][name] = found
        document |= {"command": "python -m benchmarks.samples", "machine": machine(), "versions": versions()}
        store.write_json(RESULTS, document)
        show(name, found)


def study(name: str, rows: int, seeds: int) -> dict[str, Any]:
    """Errors of every share and way on one stream's first task."""
    stream = STREAMS[name](0, rows)
    model, task = stream.model(0), stream.tasks[0]
    fit(model, stream, 0, [Sequential(model)], 0)
    adapted = sites(model)
    exact, _, _ = along(model, adapted, task, labels="exact", samples=None)
    found: dict[str, Any] = {"rows": rows, "seeds": seeds, "exact": exact, "concentration": concentrated(model, task)}
    for way in WAYS:
        for share in SHARES if way == WAYS[1] else SHARES[:-1]:
            draws = [drawn(model, adapted, task, way, round(share * rows), seed) for seed in range(seeds)]
            errors = [value / exact - 1 for value, _, _ in draws]
            found.setdefault(way, {})[str(share)] = {
                "errors": errors,
                "root mean square": fmean(e * e for e in errors) ** 0.5,
                "foreseen": median(error for _, error, _ in draws),
                "examples": fmean(examples for _, _, examples in draws),
            }
            print(name, way, share, found[way][str(share)], flush=True)
    return found


def drawn(
    model: Any, adapted: dict[str, Site], task: Task, way: str, samples: int, seed: int
) -> tuple[float, float, int]:
    """``along`` from a share of the rows: importance sampling always pays, or never."""
    with mock.patch.object(sweep, "WORTH", inf if way == "all alike" else 0.0):
        return along(model, adapted, task, labels="mixture", samples=samples, seed=seed)


def along(model: Any, adapted: dict[str, Site], task: Task, **options: Any) -> tuple[float, float, int]:
    """1/2 <D, F D> along the present adapter, its relative standard error, and the examples that ran backward."""
    factors = {name: (site.scale * site.B.detach(), site.A.detach()) for name, site in adapted.items()}
    layers = {name: site.layer for name, site in adapted.items()}
    found = measure(model, layers, task, form="kronecker", rank=None, directions=factors, **options)
    value = sum(float(form.quadratic(*factors[name])) for name, form in found.forms.items())
    return value, found.error, found.examples


def concentrated(model: Any, task: Task) -> float:
    """E[e^2] / E[e]^2 of the rows' squared scores: as many times fewer examples importance sampling may need."""
    order = task.order(0)
    return concentration(sweep.Sweep(model, task)._look(order))


def show(name: str, found: dict[str, Any]) -> None:
    table = Table("share of the rows", *[f"{way}: {k}" for way in WAYS for k in ("error", "foreseen")])
    table.title = f"{name}: {found['rows']} rows, concentration {found['concentration']:.1f}"
    for share in SHARES:
        rows = [found[way].get(str(share)) for way in WAYS]
        cells = [f"{r[k]:.3f}" if r else "" for r in rows for k in ("root mean square", "foreseen")]
        table.add_row(f"{share:.1%}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
