"""Strengths, `auto` and budgets where a rise is measured well: what each boundary was foreseen to cost, and cost.

    python -m benchmarks.rises --seeds 0 1 2

EWC-LoRA on five pairs of Fashion-MNIST's classes and the small ViT of ``streams``, the task known, 500 training rows a
task. 600 validation rows a task calibrate the gauge and measure the rises; of the nine strengths they choose the one
that `auto` is held against on 2000 test rows a task. Writes benchmarks/results/rises.json; run again to continue.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.budgets import JUDGED
from benchmarks.gauge import summary
from benchmarks.parallel import cells_parser, continued, rows
from benchmarks.streams import Stream, fashion
from benchmarks.training import fit, interval, outcome, packed, share, unpacked
from retain import EWCLoRA
from retain.calibration import CLEAR, calibrate, note

PATH = Path(__file__).parent / "results" / "rises.json"
STRENGTHS = [float(f"{x:.3g}") for x in np.logspace(0, 2, 9)]
BUDGETS = [0.05, 0.2, 0.5]  # nats
CELLS: dict[str, Any] = {
    **{f"{x:g}": x for x in STRENGTHS},
    "auto": "auto",
    **{f"budget {x:g}": {"budget": x} for x in BUDGETS},
    "plain": 0.0,
}


def main() -> None:
    options = cells_parser(__doc__, CELLS).parse_args()
    for row in continued(study, options, PATH, "python -m benchmarks.rises"):
        print(row["seed"], row["cell"], [round(np.mean(row[key]), 3) for key in ("final", "learned")], flush=True)
    show(rows(PATH))


@cache
def stream(seed: int) -> Stream:
    """The tasks under a seed."""
    return fashion(seed)


def study(cell: str, seed: int) -> dict[str, Any]:
    """One cell under one seed: accuracies (T,) when learned and at the end, and what the boundaries cost.

    "final" is of test rows, "learned" and "validation" of validation rows.
    """
    begin, found = time.process_time(), stream(seed)
    model = found.model(seed)
    method = EWCLoRA(model, strength=CELLS[cell], seed=seed)
    learned, boundaries, before = [], [], {}
    for number, task in enumerate(found.tasks):
        fit(model, found, number, [method], seed)
        foreseen, remembered = method.predicted_rise(), method.remembered
        method.end_task(task)
        names = found.tasks[: number + 1]
        told = {t.name: outcome(model, t, found.validation[i]) for i, t in enumerate(names)}
        after = {name: losses for name, (losses, _) in told.items()}
        learned.append(share(told[task.name][1]))
        if number:
            cost = calibrate(foreseen, remembered, before, after)["total"]
            used = {"boundary": number, "used": method.boundary.get("budget_used")}
            boundaries.append(used | cost | note(method, task.name, cost))
        before = after
    right = [outcome(model, task, task.test[0])[1] for task in found.tasks]
    return {
        "cell": cell,
        "seed": seed,
        "learned": learned,
        "final": [share(x) for x in right],
        "validation": [share(right) for _, right in told.values()],
        "right": [packed(x) for x in right],
        "tested": [len(x) for x in right],
        "boundaries": boundaries,
        "seconds": round(time.process_time() - begin, 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The curve; `auto` beside the best on validation rows; what budgets cost; how well the gauge foresaw."""
    console, table = Console(width=150), Table("", "final", "of validation rows", "learned", "forgetting", "seeds")
    found = {cell: [row for row in rows if row["cell"] == cell] for cell in CELLS}
    of = {cell: mine for cell, mine in found.items() if mine}
    for cell, mine in of.items():
        lost = [np.mean(np.subtract(row["learned"], row["validation"])[:-1]) for row in mine]
        columns = [[float(np.mean(row[key])) for row in mine] for key in ("final", "validation", "learned")]
        table.add_row(cell, *(f"{np.mean(x):.4f} ± {np.std(x, ddof=1):.4f}" for x in [*columns, lost]), str(len(mine)))
    console.print(table)
    swept = [f"{x:g}" for x in STRENGTHS if f"{x:g}" in of]
    best = max(swept, key=lambda cell: np.mean([row["validation"] for row in of[cell]]))
    pairs = list(zip(of["auto"], of[best], strict=True))
    apart = [100 * d for a, b in pairs for d in by_row(a, b)]
    console.print(f"auto - {best}, points: %.2f (%.2f to %.2f over test rows)" % interval(apart))
    console.print("by seed:", [round(float(np.mean([d.mean() for d in by_row(a, b)])) * 100, 2) for a, b in pairs])
    for budget in BUDGETS:
        told = [boundary for row in of[f"budget {budget:g}"] for boundary in row["boundaries"]]
        judging = [b for b in told if b["standard_error"] < JUDGED * budget]
        all_of_them, late = ([b["measured"] / budget for b in judging if b["boundary"] > first] for first in (0, 1))
        console.print(
            f"budget {budget:g}: {len(judging)} of {len(told)} boundaries judge it; measured / budget, medians: "
            f"{np.median(all_of_them):.2f}, after the first boundary {np.median(late):.2f}"
        )
    every = [boundary for cell, mine in of.items() if cell != "plain" for row in mine for boundary in row["boundaries"]]
    clear = [point | {"clear": point["measured"] > CLEAR * point["standard_error"]} for point in every]
    console.print("gauge:", summary([{"calibrated": None} | point for point in clear]))


def by_row(one: dict[str, Any], other: dict[str, Any]) -> list[np.ndarray]:
    """By task, what is right in ``one`` minus what is in ``other`` (n,)."""
    triples = zip(one["right"], other["right"], one["tested"], strict=True)
    return [unpacked(a, n) - unpacked(b, n) for a, b, n in triples]


if __name__ == "__main__":
    main()
