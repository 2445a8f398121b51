"""What each departure of a reference code from its paper costs: one switch at a time, on ten tasks.

    python -m benchmarks.ablations --seeds 0 1 2

Ten of the 45 pairs of Fashion-MNIST's classes, 100 training and 150 test rows each, a head each, on the small ViT of
``streams`` with LoRA on keys and values, as EWC-LoRA has it; the task is known. A cell differs from the one that it is
compared with by the keywords that ``CELLS`` shows and by nothing else. The strength of 1e3 was not searched for here:
of a diagonal Fisher of the update it is the best of four on validation rows of five such pairs, of one of the factors
the best of four on those of twenty (benchmarks/results/importance-fashion-*.json, long-strength.json). Writes
benchmarks/results/ablations.json; run again to continue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.parallel import cells_parser, continued, rows
from benchmarks.streams import LORA, Stream, pairs
from benchmarks.training import fit, outcome, share
from retain import METHODS, Method, Task

PATH = Path(__file__).parent / "results" / "ablations.json"
RANK, TARGETS = LORA["r"], r".*\.(key|value|k_proj|v_proj)"  # names differ between versions
BATCH = 16  # of the squared batch means
STRENGTH = 1e3
Cell = tuple[str, dict[str, Any]]


def but(cell: Cell, **more: Any) -> Cell:
    """``cell`` with other keywords."""
    return cell[0], cell[1] | more


def switched(name: str, cell: Cell, *references: str) -> dict[str, Cell]:
    """``cell`` as it is, and with each of the reference code's departures."""
    return {name: cell} | {f"{name}, {reference}": but(cell, reference=[reference]) for reference in references}


DIAGONAL: dict[str, Any] = {"form": "diagonal", "samples": None}
BATCHES = DIAGONAL | {"labels": "data", "squares": "batch", "batch_size": BATCH}
MERGE: Cell = ("ewc-lora", {"mode": "merge", "strength": STRENGTH, "fisher": DIAGONAL | {"labels": "data"}})
OF_SHARE = ("dropped temporaries", "centring")
OF_EBLORA = ("pretrained gradients", "rank scaling", "non-projector")
CELLS: dict[str, Cell] = {
    "plain LoRA": but(MERGE, strength=0.0),
    "plain LoRA, factors summed": but(MERGE, strength=0.0, accumulate="factors"),
    "EWC-LoRA": MERGE,
    "EWC-LoRA, factors summed": but(MERGE, accumulate="factors"),
    "EWC-LoRA, batch squares": but(MERGE, fisher=BATCHES),
    "EWC-LoRA, batch squares, strength times 16": but(MERGE, fisher=BATCHES, strength=BATCH * STRENGTH),
    "EWC-LoRA, batch squares of 50, strength times 16": but(
        MERGE, fisher=BATCHES | {"batch_size": 50}, strength=BATCH * STRENGTH
    ),
    "EWC-LoRA at 1e4": but(MERGE, strength=1e4),
    "EWC-LoRA at 1e4, factors summed": but(MERGE, strength=1e4, accumulate="factors"),
    **{f"EWC-LoRA, decay {decay:g}": but(MERGE, decay=decay) for decay in (0.9, 0.5, 0.0)},
    "F of the update": ("ewc-lora", {"strength": STRENGTH, "fisher": DIAGONAL}),
    "F of the factors": ("ewc", {"decay": 1.0, "strength": STRENGTH, "fisher": DIAGONAL}),
    **switched("Share", ("share", {}), *OF_SHARE),
    **switched("EBLoRA", ("eblora", {}), *OF_EBLORA),
}
# A cell, and the one that it is compared with: what stands before its first comma, unless it is here.
COMPARED = {"EWC-LoRA": "plain LoRA", "EWC-LoRA at 1e4": "plain LoRA", "F of the factors": "F of the update"}


def main() -> None:
    parser = cells_parser(__doc__, CELLS)
    parser.add_argument("--again", action="store_true", help="forget what has been run")
    options = parser.parse_args()
    if options.again:
        PATH.unlink(missing_ok=True)
    for row in continued(study, options, PATH, "python -m benchmarks.ablations"):
        means = {key: round(float(np.mean(row[key])), 3) for key in ("final", "learned")}
        print(row["seed"], row["cell"], means, row["seconds"], flush=True)
    show(rows(PATH))


@cache
def stream(seed: int) -> Stream:
    """The tasks under a seed."""
    return pairs(seed, count=10, rows=100, tested=150)


def study(cell: str, seed: int) -> dict[str, Any]:
    """One cell under one seed: accuracies (T,) of the tasks as each was trained and at the end."""
    begin, tasks = time.process_time(), stream(seed)
    name, keywords = CELLS[cell]
    model = tasks.model(seed, lora_alpha=5 * RANK if name == "eblora" else RANK, target_modules=TARGETS)
    method = METHODS[name](model, **keywords, seed=seed)
    learned = []
    for number, task in enumerate(tasks.tasks):
        method.activate(None)
        fit(model, tasks, number, [method], seed)
        learned.append(share(outcome(model, task, task.test[0])[1]))
        method.end_task(task)
    return {
        "cell": cell,
        "seed": seed,
        "method": name,
        "keywords": keywords,
        "learned": learned,
        "final": [accuracy(method, task) for task in tasks.tasks],
        "seconds": round(time.process_time() - begin, 1),
    }


def accuracy(method: Method, task: Task) -> float:
    """Of its test rows, the task known."""
    method.activate(task.name)
    return share(outcome(method.model, task, task.test[0])[1])


def by_task(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """What is shown of a run, for every task; a task's forgetting counts its own boundary too, the last has none."""
    learned, final = np.array(row["learned"]), np.array(row["final"])
    return {"final": final, "learned": learned, "forgetting": (learned - final)[:-1]}


def show(rows: list[dict[str, Any]], cells: Iterable[str] = CELLS) -> None:
    """Means and standard deviations over seeds, and differences in points, paired, with their standard errors."""
    columns = ("final", "learned", "forgetting")
    table = Table("", *columns, "seeds", "against", *(f"{column}, points" for column in columns))
    found = {(row["cell"], row["seed"]): by_task(row) for row in rows}
    for cell in [cell for cell in cells if any(row["cell"] == cell for row in rows)]:
        seeds = sorted(seed for name, seed in found if name == cell)
        values = [[float(found[cell, seed][key].mean()) for seed in seeds] for key in columns]
        other = COMPARED.get(cell, cell.split(",")[0])
        both = [seed for seed in seeds if other != cell and (other, seed) in found]
        differences = [[found[cell, s][key] - found[other, s][key] for s in both] for key in columns]
        shown = [compared(np.array(d)) for d in differences] if both else []
        table.add_row(cell, *map(spelled, values), str(len(seeds)), other if both else "", *shown)
    Console(width=190).print(table)


def spelled(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def compared(differences: np.ndarray) -> str:
    """The mean of (seeds, tasks) in points; its standard error over seeds, of one seed over tasks."""
    means = 100 * (differences.mean(1) if len(differences) > 1 else differences[0])
    return f"{means.mean():+.1f} ± {means.std(ddof=1) / len(means) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
