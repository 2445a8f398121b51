"""Twenty tasks: what drifts in a long stream, and what each part of DWD adds to Online EWC.

    python -m benchmarks.long --seeds 0 1 2

Twenty of the 45 pairs of Fashion-MNIST's classes, a head each, on the small ViT of ``streams``; the task is known. One
strength, chosen for Online EWC on validation rows under a seed of its own, holds for all its kin, DWD included, whose
penalties share their unit; DWD's groups are measured under one chosen for them, too. All other keywords are defaults.
After every task: accuracy on all tasks so far, bytes kept, the rank of the past, and what the boundary says (the
Fisher's trace, directions taken). Writes benchmarks/results/long-SEED.json; run again to continue.
"""

from __future__ import annotations

import itertools
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fisher import machine, versions
from benchmarks.parallel import cells_parser, spread
from benchmarks.streams import Stream, pairs
from benchmarks.training import fit, outcome, scores, share
from retain import METHODS, Method, store

RESULTS = Path(__file__).parent / "results"
STRENGTHS = (1e2, 1e3, 1e4, 1e5)
APART = 1000  # from the seeds that are reported to the one that chooses
ONLINE: dict[str, Any] = {"running": None, "groups": 1, "graph": None}  # DWD without its parts
PARTS: dict[str, dict[str, Any]] = {"running": {"running": 0.9}, "groups": {"groups": 4}, "graph": {"graph": "fisher"}}
ABLATION = {
    "DWD: " + (" + ".join(parts) or "none of its parts"): (
        "dwd",
        ONLINE | dict(_ for p in parts for _ in PARTS[p].items()),
    )
    for count in range(4)
    for parts in itertools.combinations(PARTS, count)
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "Online EWC": ("ewc", {"decay": 1.0}),
    **ABLATION,
    "sequential": ("sequential", {}),
    "EWC": ("ewc", {}),
    "EWC-LoRA": ("ewc-lora", {}),
    "EWC-LoRA, decay 0.9": ("ewc-lora", {"decay": 0.9}),
    "EBLoRA": ("eblora", {}),
    "InfLoRA": ("inflora", {}),
    "O-LoRA": ("olora", {}),
    "SD-LoRA": ("sdlora", {}),
    "Share": ("share", {}),
    "replay": ("replay", {}),
    "LwF": ("lwf", {}),
    "per-task": ("per-task", {}),
    "sequential, past of rank 32": ("sequential", {"mode": "merge", "rank": 32}),
    "DWD: groups, their own strength": ABLATION["DWD: groups"],
}


def main() -> None:
    options = cells_parser(__doc__, CELLS).parse_args()
    torch.set_num_threads(1)
    left = [(cell, seed) for seed in options.seeds for cell in options.cells if cell not in done(seed)]
    strengths = {like: chosen(like) for like in sorted({tuned_like(cell) for cell, _ in left})}
    pieces = [(cell, seed, strengths[tuned_like(cell)]) for cell, seed in left]
    for (_, seed, _), row in spread(study, pieces, options.jobs):
        keep(row, seed)
    show([row for path in sorted(RESULTS.glob("long-[0-9]*.json")) for row in store.read_json(path)["rows"]])


def tuned_like(cell: str) -> str:
    """The cell whose strength ``cell`` takes."""
    return "DWD: groups" if cell == "DWD: groups, their own strength" else "Online EWC"


def chosen(cell: str) -> float:
    """The strength under which ``cell`` ends highest on validation rows; of equal ones the weakest."""
    path = RESULTS / "long-strength.json"
    every = store.read_json(path)["accuracy"] if path.exists() else {}
    tried = {float(k): v for k, v in every.get(cell, {}).items()}
    name, keywords = CELLS[cell]
    for strength in [value for value in STRENGTHS if value not in tried]:
        stream = pairs(APART, scored="validation")
        tried[strength] = measure(stream, name, keywords | {"strength": strength}, APART)["scores"]["final"]
        print(f"{cell}, strength {strength:g}: {tried[strength]:.3f} of the validation rows", flush=True)
        every[cell] = {f"{k:g}": v for k, v in tried.items()}
        store.write_json(path, {"seed": APART, "accuracy": every})
    return max(STRENGTHS, key=lambda value: (tried[value], -value))


def done(seed: int) -> list[str]:
    """The cells that have been run under ``seed``."""
    path = RESULTS / f"long-{seed}.json"
    return [row["cell"] for row in store.read_json(path)["rows"]] if path.exists() else []


def study(cell: str, seed: int, strength: float) -> dict[str, Any]:
    """One cell under one seed."""
    name, keywords = CELLS[cell]
    given = keywords | ({"strength": strength} if name in ("ewc", "dwd") else {})
    return {"cell": cell, "seed": seed, "method": name, "keywords": given} | measure(pairs(seed), name, given, seed)


def keep(row: dict[str, Any], seed: int) -> None:
    """Write ``row`` behind those that there are."""
    path = RESULTS / f"long-{seed}.json"
    rows = [*(store.read_json(path)["rows"] if path.exists() else []), row]
    document = {"command": "python -m benchmarks.long", "machine": machine(), "versions": versions()}
    store.write_json(path, document | {"tasks": names(), "rows": rows})
    print(seed, row["cell"], {k: round(v, 3) for k, v in row["scores"].items()}, row["seconds"], flush=True)


@cache
def names() -> list[str]:
    """The tasks, which are the same for all seeds."""
    return [task.name for task in pairs(0).tasks]


def measure(stream: Stream, name: str, keywords: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run through all tasks."""
    begin = time.process_time()
    model = stream.model(seed)
    method = METHODS[name](model, **keywords, seed=seed)
    table, after, boundary_seconds = [], [], []
    for number, task in enumerate(stream.tasks):
        method.activate(None)
        fit(model, stream, number, [method], seed)
        start = time.process_time()
        method.end_task(task)
        boundary_seconds.append(time.process_time() - start)
        table.append(accuracies(method, stream, number + 1))
        after.append(dict(method.boundary) | kept(method))
    whole = [row + [float("nan")] * (len(stream.tasks) - len(row)) for row in table]
    return {
        "scores": scores(whole),
        "table": table,
        "after": after,
        "seconds": round(time.process_time() - begin, 1),
        "seconds_per_boundary": round(float(np.mean(boundary_seconds)), 2),
    }


def accuracies(method: Method, stream: Stream, learned: int) -> list[float]:
    """On the test rows of the tasks learned so far, the task known."""
    found = []
    for task in stream.tasks[:learned]:
        method.activate(task.name)
        found.append(share(outcome(method.model, task, task.test[0])[1]))
    return found


def kept(method: Method) -> dict[str, float]:
    """Bytes beyond the adapter, and the rank of the past (the largest over layers)."""
    return {
        "state_bytes": sum(t.nbytes for t in method.state_dict().values()),
        "past_rank": max(len(site.past[1]) for site in method.sites.values()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Means and standard deviations over seeds; what is kept, of the first seed."""
    columns = ("final", "learned", "forgetting", "trace after 1, 5, 10, 20 tasks", "KiB kept", "past rank", "seeds")
    table = Table("", *columns)
    for cell in [cell for cell in CELLS if any(row["cell"] == cell for row in rows)]:
        mine = [row for row in rows if row["cell"] == cell]
        found = [[row["scores"][key] for row in mine] for key in columns[:3]]
        numbers = [f"{np.mean(f):.3f}" + (f" ± {np.std(f, ddof=1):.3f}" if len(f) > 1 else "") for f in found]
        after = [mine[0]["after"][i] for i in (0, 4, 9, 19)]
        traces = " ".join(f"{one['trace']:.3g}" for one in after if "trace" in one)
        sizes = [" ".join(f"{one['state_bytes'] / 1024:.0f}" for one in after), str(after[-1]["past_rank"])]
        table.add_row(cell, *numbers, traces, *sizes, str(len(mine)))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
