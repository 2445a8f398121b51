"""What budgets cost: how far the earlier tasks' loss rose where it was allowed to rise by so many nats.

    OMP_NUM_THREADS=1 python -m benchmarks.budgets --stream text --jobs 2

EWC-LoRA on a stream of ``benchmarks.comparison``, with few rows to train on and many to measure. Of each boundary: what
was foreseen, calibrated by the boundaries before it, and measured. Writes benchmarks/results/budgets-STREAM.json; run
again to continue.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import STREAMS
from benchmarks.fisher import machine, versions
from retain import config as configuration
from retain import store
from retain.commands.compare import compare

RESULTS = Path(__file__).parent / "results"
COST = ("foreseen", "calibrated", "measured", "standard_error")
JUDGED = 0.25  # of a budget: what was measured with a larger standard error does not judge it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="text", choices=list(STREAMS))
    parser.add_argument("--train", type=int, default=40, help="rows of a task")
    parser.add_argument("--test", type=int, default=150, help="rows of a task")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.2, 0.5], help="nats")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/budgets"))
    options = parser.parse_args()
    rows, folder = {"max_train": options.train, "max_test": options.test}, options.folder / options.stream
    document = STREAMS[options.stream]() | {"output": str(folder / "run")}
    document["tasks"] = [task | rows for task in document["tasks"]]
    asked = list(map(limited, options.budgets))
    compare(configuration.parse(document), asked, seeds=options.seeds, tries=1, jobs=options.jobs, output=folder)
    compared = json.loads((folder / "comparison.json").read_text())
    content = {
        "command": f"python -m benchmarks.budgets --stream {options.stream} --seeds {options.seeds}",
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
        "compared": {key: compared[key] for key in ("seeds", "against", "methods", "verdict")},
        "budgets": {f"{budget:g}": spent(folder, budget) for budget in options.budgets},
    }
    store.write_json(RESULTS / f"budgets-{options.stream}.json", content)
    for budget, found in content["budgets"].items():
        print(budget, {key: value for key, value in found.items() if key != "rows"})


def limited(budget: float) -> str:
    """The variant that keeps to ``budget``."""
    return f"ewc-lora:strength={{budget: {budget:g}}}"


def spent(folder: Path, budget: float) -> dict[str, Any]:
    """What the boundaries of the runs under ``budget`` cost, and the median of what judges it."""
    rows = []
    for path in sorted(folder.rglob("results.json")):
        found = json.loads(path.read_text())
        if found["method"].get("strength") == {"budget": budget}:
            for entry in found["calibration"]:
                used = found["boundary"][f"after {entry['after']}"]["budget_used"]
                cost = {key: entry["total"].get(key) for key in COST}
                rows.append({"seed": found["seed"], "after": entry["after"], "used": used} | cost)
    judging = [row["measured"] / budget for row in rows if row["standard_error"] < JUDGED * budget]
    every = float(np.median([row["measured"] for row in rows]))
    median = float(np.median(judging)) if judging else None
    return {"judging": len(judging), "median_of_measured_over_budget": median, "median_measured": every, "rows": rows}


if __name__ == "__main__":
    main()
