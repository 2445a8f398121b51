"""``strength: auto`` beside the best of a sweep that was chosen on validation rows, and budgets beside what they cost.

    OMP_NUM_THREADS=1 python -m benchmarks.curve --seeds 3 --again 3
    python -m benchmarks.curve --stream language --train 256 --test 96 --jobs 10      # on a GPU

EWC-LoRA on a stream of ``benchmarks.comparison``, with few rows. Nine strengths are swept on validation rows; that of
the best final score there (accuracy, or nats a token), ``auto``, plain training and any budgets are then run and scored
on test rows, which have no part in the gauge, and compared with paired intervals; of budgets also what each boundary
cost. Run again to continue.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.budgets import limited, spent
from benchmarks.comparison import STREAMS
from retain import config as configuration
from retain.commands.compare import compare
from retain.commands.compare.measure import NATS
from retain.commands.sweep import sweep

RESULTS = Path(__file__).parent / "results"
AUTO, PLAIN = "ewc-lora:strength=auto", "sequential"


def measured(document: dict[str, Any], folder: Path, budgets: Sequence[float], **numbers: int) -> dict[str, Any]:
    """The sweep of so many ``points`` under ``seeds``, what it chooses, and the comparison on test rows, ``again``."""
    options: dict[str, Any] = {"jobs": numbers["jobs"]}
    apart = configuration.parse(document | {"evaluation": {"rows": "validation"}})
    counts = {key: numbers[key] for key in ("points", "seeds")}
    sweep(apart, ["ewc-lora"], **counts, output=folder / "validation", **options)
    swept = json.loads((folder / "validation" / "sweep.json").read_text())
    better = min if swept["unit"] == NATS.unit else max
    best = better(swept["curves"]["ewc-lora"]["points"], key=lambda point: point["final"]["mean"])
    chosen = f"ewc-lora:strength={best['value']:g}"
    asked = [chosen, AUTO, PLAIN, *map(limited, budgets)]
    options |= {"seeds": numbers["again"], "tries": 1, "against": chosen, "output": folder / "test"}
    compare(configuration.parse(document | {"evaluation": {"gauge": "validation"}}), asked, **options)
    compared = json.loads((folder / "test" / "comparison.json").read_text())
    return {
        "validation": {key: swept[key] for key in ("retain", "rows", "seeds", "learned", "unit", "steps", "curves")},
        "chosen": best["value"],
        "test": {key: compared[key] for key in ("seeds", "against", "methods", "verdict", "seconds", "machine")},
        "budgets": {f"{budget:g}": spent(folder / "test", budget) for budget in budgets},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="text", choices=list(STREAMS))
    parser.add_argument("--train", type=int, default=40, help="rows of a task")
    parser.add_argument("--test", type=int, default=100, help="rows of a task")
    parser.add_argument("--points", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=3, help="of the sweep")
    parser.add_argument("--again", type=int, default=3, help="seeds of the comparison on test rows")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budgets", type=float, nargs="*", default=[], help="nats")
    parser.add_argument("--folder", type=Path, default=Path("runs/curve"))
    parser.add_argument("--to", type=Path, help="benchmarks/results/curve-STREAM.json if not given")
    options = parser.parse_args()
    rows, folder = {"max_train": options.train, "max_test": options.test}, options.folder / options.stream
    document = STREAMS[options.stream]() | {"output": str(folder / "run")}
    document["tasks"] = [task | rows for task in document["tasks"]]
    numbers = {key: getattr(options, key) for key in ("points", "seeds", "again", "jobs")}
    content = {"stream": options.stream, "rows": rows} | measured(document, folder, options.budgets, **numbers)
    to = options.to or RESULTS / f"curve-{options.stream}.json"
    to.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
