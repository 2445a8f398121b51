"""``strength: auto`` beside the best of a sweep that was chosen on validation rows: EWC-LoRA on five tasks of texts.

    OMP_NUM_THREADS=1 python -m benchmarks.curve --seeds 3 --again 3

The stream is ``text`` of ``benchmarks.comparison`` with few rows. Nine strengths are swept on validation rows; that of
the highest final average accuracy there, ``auto`` and plain training are then run and scored on test rows, and compared
with paired intervals. Runs are forked from this process, one at a time.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.comparison import text
from retain import config as configuration
from retain.commands.compare import compare
from retain.commands.many.cells import Cell
from retain.commands.sweep import sweep
from retain.run import run

AUTO, PLAIN = "ewc-lora:strength=auto", "sequential"


class Forked:
    """A run in a process that is a copy of this one."""

    def __init__(self, cell: Cell) -> None:
        self.process = get_context("fork").Process(target=_work, args=(cell,))
        self.process.start()

    def poll(self) -> int | None:
        return None if self.process.is_alive() else self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        return self.process.exitcode or 0

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _work(cell: Cell) -> None:
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("a") as log:
        run(cell.config, Console(file=log, width=120), cell.tasks)


def measured(folder: Path, rows: dict[str, int], points: int, seeds: int, again: int) -> dict[str, Any]:
    """The sweep under so many ``seeds``, what it chooses, and the comparison on test rows, under ``again``."""
    document = text() | {"output": str(folder / "text")}
    document["tasks"] = [task | rows for task in document["tasks"]]
    options: dict[str, Any] = {"jobs": 1, "start": Forked}
    apart = configuration.parse(document | {"evaluation": {"rows": "validation"}})
    sweep(apart, ["ewc-lora"], points=points, seeds=seeds, output=folder / "validation", **options)
    swept = json.loads((folder / "validation" / "sweep.json").read_text())
    best = max(swept["curves"]["ewc-lora"]["points"], key=lambda point: point["final"]["mean"])
    chosen = f"ewc-lora:strength={best['value']:g}"
    asked = [chosen, AUTO, PLAIN]
    options |= {"seeds": again, "tries": 1, "against": chosen, "output": folder / "test"}
    compare(configuration.parse(document), asked, **options)
    compared = json.loads((folder / "test" / "comparison.json").read_text())
    return {
        "rows": rows,
        "validation": {key: swept[key] for key in ("retain", "rows", "seeds", "learned", "unit", "steps", "curves")},
        "chosen": best["value"],
        "test": {key: compared[key] for key in ("seeds", "against", "methods", "verdict", "seconds", "machine")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=20, help="rows of a task")
    parser.add_argument("--test", type=int, default=50, help="rows of a task")
    parser.add_argument("--points", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=3, help="of the sweep")
    parser.add_argument("--again", type=int, default=3, help="seeds of the comparison on test rows")
    parser.add_argument("--folder", type=Path, default=Path("runs/curve"))
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/curve.json"))
    options = parser.parse_args()
    rows = {"max_train": options.train, "max_test": options.test}
    content = measured(options.folder, rows, options.points, options.seeds, options.again)
    options.to.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
