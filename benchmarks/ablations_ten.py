"""The switches of ``benchmarks.ablations`` on a pretrained model, where nobody says the task.

    python -m benchmarks.ablations_ten --seeds 0 1

The stream ``ten`` of ``benchmarks.comparison``: digits in pairs, then clothes in pairs, DINOv2 ViT-S/14, 24 training
rows a task, which differ from seed to seed. Every run is what `retain run` does with a YAML file. Where the task is not
said, how heads compare hides what the adapter holds, so the same runs are also scored with the task said. Writes
benchmarks/results/ablations-ten.json; run again to continue.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.ablations import BATCHES, DIAGONAL, OF_EBLORA, OF_SHARE, Cell, but, show, switched
from benchmarks.comparison import STREAMS
from benchmarks.parallel import cells_parser, continued, rows
from retain.config import parse
from retain.run import run

PATH = Path(__file__).parent / "results" / "ablations-ten.json"
BATCH, STRENGTH = 8, 1e4  # of training; a diagonal's default
MERGE: Cell = ("ewc-lora", {"mode": "merge", "strength": STRENGTH, "fisher": DIAGONAL | {"labels": "data"}})
SQUARED = BATCHES | {"batch_size": BATCH}
CELLS: dict[str, Cell] = {
    "EWC-LoRA": MERGE,
    "EWC-LoRA, factors summed": but(MERGE, accumulate="factors"),
    "EWC-LoRA, batch squares": but(MERGE, fisher=SQUARED),
    "EWC-LoRA, batch squares, strength times 8": but(MERGE, fisher=SQUARED, strength=BATCH * STRENGTH),
    **switched("Share", ("share", {"components": 16}), *OF_SHARE),
    **switched("EBLoRA", ("eblora", {"energy": 0.99}), *OF_EBLORA),
}


def main() -> None:
    options = cells_parser(__doc__, CELLS).parse_args()
    for row in continued(study, options, PATH, "python -m benchmarks.ablations_ten"):
        means = {key: round(float(np.mean(row[key])), 3) for key in ("final", "unknown")}
        print(row["seed"], row["cell"], means, row["seconds"], flush=True)
    show(found := rows(PATH), CELLS)
    print("nobody says the task:")
    show([row | dict.fromkeys(("final", "learned"), row["unknown"]) for row in found], CELLS)


def study(cell: str, seed: int) -> dict[str, Any]:
    """One cell under one seed: accuracies (T,) when a task was learned and at the end, the task said, and unsaid."""
    begin, (name, keywords), document = time.process_time(), CELLS[cell], STREAMS["ten"]()
    if name == "eblora":
        document["lora"] |= {"lora_alpha": 5 * document["lora"]["r"]}  # the paper's scale
    with tempfile.TemporaryDirectory() as folder:
        own = {"method": {"name": name, **keywords}, "seed": seed, "output": f"{folder}/run"}
        results = run(parse(document | own), Console(quiet=True))
    said = np.array(results["accuracy_task_known"]["matrix"])[1:]  # of the stages after a task
    return {
        "cell": cell,
        "seed": seed,
        "method": name,
        "keywords": keywords,
        "learned": said.diagonal().tolist(),
        "final": said[-1].tolist(),
        "unknown": results["accuracy"]["matrix"][-1],
        "seconds": round(time.process_time() - begin, 1),
    }


if __name__ == "__main__":
    main()
