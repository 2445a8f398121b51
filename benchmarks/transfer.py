"""Do tasks learn faster on bases that they share? Share against a fresh LoRA for each task, over several task orders.

    python -m benchmarks.transfer

Fashion-MNIST, five pairs of classes in five orders (each pair first once). Every ten steps of a task the accuracy on
its validation rows is measured; "steps" is when it first reaches what the fresh adapter has at the end, less one point.
Beside the seconds of a task stand those of full fine-tuning, in the first order.
Writes benchmarks/results/transfer.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fisher import machine, versions
from benchmarks.streams import STREAMS, Stream
from benchmarks.training import fit, outcome, share
from retain import METHODS, Method, store
from retain.heads import heads_of

RESULTS = Path(__file__).parent / "results" / "transfer.json"
EVERY, SLACK = 10, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="fashion", choices=list(STREAMS))
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, full = [], full_seconds(options.stream)
    for shift in range(options.orders):
        curves = {name: learned(options.stream, shift, name) for name in ("per-task", "share")}
        for place, pair in enumerate(zip(*curves.values(), strict=True)):
            rows.append({"order": shift, "place": place} | compare(*pair))
            print(rows[-1], flush=True)
    show(rows)
    print(f"full fine-tuning: {full:.1f} s a task")
    document = {"command": "python -m benchmarks.transfer", "machine": machine(), "versions": versions()}
    store.write_json(RESULTS, document | {"stream": options.stream, "full_seconds": full, "rows": rows})


def learned(name: str, shift: int, method_name: str) -> list[dict[str, Any]]:
    """What every task went through, in an order that begins with the one numbered ``shift``."""
    stream = STREAMS[name](0)
    model, count = stream.model(0), len(stream.tasks)
    method = METHODS[method_name](model, seed=0)
    found = []
    for number in [(shift + i) % count for i in range(count)]:
        watch = Watch(model, stream, number)
        seconds = fit(model, stream, number, [method], 0, watch) - watch.seconds
        begin = time.perf_counter()
        method.end_task(stream.tasks[number])
        boundary = time.perf_counter() - begin
        found.append({"accuracies": watch.accuracies, "seconds": seconds, "boundary": boundary})
    return found


class Full(Method):
    """All weights train, the heads at their own rate."""

    needs_adapter = False

    def param_groups(self) -> list[dict[str, Any]]:
        heads = {id(p) for p in heads_of(self.model).parameters()}
        parts = [p for p in self.model.parameters() if p.requires_grad]
        return [{"params": [p for p in parts if (id(p) in heads) == own]} for own in (False, True)]


def full_seconds(name: str) -> float:
    """Seconds of a task, mean over all but the first."""
    stream = STREAMS[name](0)
    model = stream.model(0).merge_and_unload().requires_grad_(True)
    gentle = replace(stream, learning_rate=stream.learning_rate / 10)
    times = [fit(model, gentle, number, [Full(model)], 0) for number in range(len(stream.tasks))]
    return round(float(np.mean(times[1:])), 2)


class Watch:
    """The accuracy on a task's validation rows after every ten steps."""

    def __init__(self, model: Any, stream: Stream, number: int) -> None:
        self.model, self.task, self.rows = model, stream.tasks[number], stream.validation[number]
        self.accuracies: list[float] = []
        self.seconds = 0.0

    def __call__(self, step: int) -> None:
        if step % EVERY == 0:
            begin = time.perf_counter()
            self.accuracies.append(share(outcome(self.model, self.task, self.rows)[1]))
            self.model.train()
            self.seconds += time.perf_counter() - begin


def compare(fresh: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Steps to the accuracy that the fresh adapter ends with, less a point; None if never."""
    goal = fresh["accuracies"][-1] - SLACK

    def steps(run: dict[str, Any]) -> int | None:
        return next((EVERY * i for i, accuracy in enumerate(run["accuracies"], 1) if accuracy >= goal), None)

    return {
        "goal": goal,
        "fresh_steps": steps(fresh),
        "shared_steps": steps(shared),
        "fresh_final": fresh["accuracies"][-1],
        "shared_final": shared["accuracies"][-1],
        "fresh_seconds": round(fresh["seconds"] + fresh["boundary"], 2),
        "shared_seconds": round(shared["seconds"] + shared["boundary"], 2),
        "shared_boundary": round(shared["boundary"], 2),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """By the place of a task in its order."""
    table = Table("place", "fresh steps", "shared steps", "faster", "final, fresh", "final, shared", "seconds")
    for place in sorted({row["place"] for row in rows}):
        mine = [row for row in rows if row["place"] == place]
        most = max(row["fresh_steps"] for row in mine)
        pairs = [(row["fresh_steps"], row["shared_steps"] or 10 * most) for row in mine]
        faster = sum(s < f for f, s in pairs)
        finals = [f"{np.mean([row[key] for row in mine]):.3f}" for key in ("fresh_final", "shared_final")]
        seconds = " / ".join(
            f"{np.mean([row[key] for row in mine]):.1f}" for key in ("fresh_seconds", "shared_seconds")
        )
        medians = [f"{np.median([p[i] for p in pairs]):.0f}" for i in range(2)]
        table.add_row(str(place + 1), *medians, f"{faster} of {len(mine)}", *finals, seconds)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
