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
import torch
from rich.console import Console

from benchmarks.ablations import DIAGONAL, Cell, but, show, spelled
from benchmarks.comparison import STREAMS
from benchmarks.fisher import machine, versions
from benchmarks.parallel import cells_parser, spread
from retain import store
from retain.config import parse
from retain.run import run

PATH = Path(__file__).parent / "results" / "ablations-ten.json"
BATCH, STRENGTH = 8, 1e4  # of training; a diagonal's default
MERGE: Cell = ("ewc-lora", {"mode": "merge", "strength": STRENGTH, "fisher": DIAGONAL | {"labels": "data"}})
BATCHES = DIAGONAL | {"labels": "data", "squares": "batch", "batch_size": BATCH}
EB: Cell = ("eblora", {"energy": 0.99})
SHARE: Cell = ("share", {"components": 16})
CELLS: dict[str, Cell] = {
    "EWC-LoRA": MERGE,
    "EWC-LoRA, factors summed": but(MERGE, accumulate="factors"),
    "EWC-LoRA, batch squares": but(MERGE, fisher=BATCHES),
    "EWC-LoRA, batch squares, strength times 8": but(MERGE, fisher=BATCHES, strength=BATCH * STRENGTH),
    "Share": SHARE,
    "Share, dropped temporaries": but(SHARE, reference=["dropped temporaries"]),
    "Share, centring": but(SHARE, reference=["centring"]),
    "EBLoRA": EB,
    "EBLoRA, pretrained gradients": but(EB, reference=["pretrained gradients"]),
    "EBLoRA, rank scaling": but(EB, reference=["rank scaling"]),
    "EBLoRA, non-projector": but(EB, reference=["non-projector"]),
}


def main() -> None:
    options = cells_parser(__doc__, CELLS).parse_args()
    torch.set_num_threads(1)
    done = {(row["cell"], row["seed"]) for row in rows()}
    left = [(cell, seed) for seed in options.seeds for cell in options.cells if (cell, seed) not in done]
    for _, row in spread(study, left, options.jobs):
        document = {"command": "python -m benchmarks.ablations_ten", "machine": machine(), "versions": versions()}
        store.write_json(PATH, document | {"rows": [*rows(), row]})
        print(
            row["seed"], row["cell"], [round(float(np.mean(row[key])), 3) for key in ("final", "unknown")], flush=True
        )
    show(rows(), CELLS)
    for cell in CELLS:
        found = [float(np.mean(row["unknown"])) for row in rows() if row["cell"] == cell]
        print(f"{cell}, nobody says the task: {spelled(found)}") if found else None


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


def rows() -> list[dict[str, Any]]:
    """All that has been run."""
    return store.read_json(PATH)["rows"] if PATH.exists() else []


if __name__ == "__main__":
    main()
