"""What does Share lose where nobody says which task a row belongs to? Nearest class means, against knowing the task.

    python -m benchmarks.unknown --streams fashion text --seeds 0 1 2

After the last task of a stream every test row is routed by ``Share.guess`` and runs under its task's core, in batches
that mix tasks (``retain.serving``); its label is then the best of all classes of that task. Beside it: the task known,
and one merged core, the mean of all tasks' weight changes with all classes competing. Also seconds to switch tasks.
Writes benchmarks/results/unknown.json; run again to continue.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fisher import machine, versions
from benchmarks.streams import STREAMS, Batch, Stream
from benchmarks.training import fit, logits
from retain import Share, store
from retain.serving import Serving

RESULTS = Path(__file__).parent / "results" / "unknown.json"
TEST_ROWS, ROWS = 300, 50  # of a task; of a batch
KEYS = ("known", "guessed", "right_task", "merged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = store.read_json(RESULTS)["rows"] if RESULTS.exists() else []
    for name in options.streams:
        for seed in options.seeds:
            if all((row["stream"], row["seed"]) != (name, seed) for row in rows):
                rows.append({"stream": name, "seed": seed} | measure(STREAMS[name](seed), seed))
                print(rows[-1], flush=True)
                document = {"command": "python -m benchmarks.unknown", "machine": machine(), "versions": versions()}
                store.write_json(RESULTS, document | {"rows": rows})
    show(rows)


def measure(stream: Stream, seed: int) -> dict[str, Any]:
    """One stream, learned, and four ways to answer."""
    model = stream.model(seed)
    method = Share(model, route=True, seed=seed)
    for number, task in enumerate(stream.tasks):
        fit(model, stream, number, [method], seed)
        method.end_task(task)
    groups = stream.tasks[0].loss.groups
    classes = {task.name: (groups == i).nonzero()[:, 0] for i, task in enumerate(stream.tasks)}
    batches = mixed(stream)
    found = {"known": [], "guessed": [], "right_task": []}
    with Serving(method.sites, method.bases) as server, torch.no_grad():
        for batch, truth in batches:
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            with server.aside():
                guessed = method.guess(inputs)
            found["right_task"] += [a == b for a, b in zip(guessed, truth, strict=True)]
            for way, names in (("known", truth), ("guessed", guessed)):
                server.select(names)
                found[way] += right(logits(model, batch), batch["labels"], [classes[name] for name in names])
        switching = [clock(lambda name=name: server.select(name)) for name in [*classes] * 20]
    activating = [clock(lambda name=name: method.activate(name)) for name in [*classes] * 4]
    return {key: float(np.mean(values)) for key, values in found.items()} | {
        "merged": merged(method, model, batches, torch.arange(len(groups))),
        "select_seconds": median(switching),
        "activate_seconds": median(activating),
        "layers": len(method.sites),
    }


def mixed(stream: Stream) -> list[tuple[Batch, list[str]]]:
    """Test rows of all tasks, shuffled into batches, with the tasks that they belong to."""
    parts = [{k: v[:TEST_ROWS] for k, v in task.test[0].items()} for task in stream.tasks]
    names = [task.name for task, part in zip(stream.tasks, parts, strict=True) for _ in part["labels"]]
    rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return [({k: v[i] for k, v in rows.items()}, [names[j] for j in i]) for i in order.split(ROWS)]


def right(outputs: Tensor, labels: Tensor, classes: list[Tensor]) -> list[bool]:
    """Whether the best of a row's own ``classes`` is its label."""
    best = [own[row[own].argmax()] for row, own in zip(outputs, classes, strict=True)]
    return [bool(one == label) for one, label in zip(best, labels, strict=True)]


@torch.no_grad()
def merged(method: Share, model: Any, batches: list[tuple[Batch, list[str]]], classes: Tensor) -> float:
    """The accuracy of the mean of all weight changes, as one core, with all ``classes`` competing."""
    tasks = method.tasks
    for name, site in method.sites.items():
        factors = [method.bases[name].factors(task) for task in tasks]
        B, A = torch.cat([B for B, _ in factors], 1) / len(tasks), torch.cat([A for _, A in factors])
        site.set_factors(B[:, : len(site.A)], A[: len(site.A)])
        site.set_past(B[:, len(site.A) :], A[len(site.A) :])
    found = [
        x
        for batch, _ in batches
        for x in right(logits(model, batch), batch["labels"], [classes] * len(batch["labels"]))
    ]
    return float(np.mean(found))


def clock(action: Any) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("stream", *(key.replace("_", " ") for key in KEYS), "select", "activate", "seeds")
    for name in dict.fromkeys(row["stream"] for row in rows):
        mine = [row for row in rows if row["stream"] == name]
        cells = [f"{np.mean([r[k] for r in mine]):.3f} ± {np.std([r[k] for r in mine]):.3f}" for k in KEYS]
        times = [f"{1e6 * np.median([r[f'{k}_seconds'] for r in mine]):.0f} µs" for k in ("select", "activate")]
        table.add_row(name, *cells, *times, str(len(mine)))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
