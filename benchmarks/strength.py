"""Which strength, and which mode at equal bytes? EWC-LoRA on streams that nothing else is measured on.

    python benchmarks/strength.py --seeds 0 1 2 --output runs/strength

Two validation streams of four tasks each, made of training rows only: Reuters R52 classes and 20 Newsgroups classes
that the demo does not use. Writes benchmarks/results/strength.json and prints its table; run again to continue.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from retain import config, store
from retain.commands.corpora import validation_tasks
from retain.commands.demo import stream
from retain.run import run

STREAMS = ("r52", "newsgroups")
MODES: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "shared": {"name": "ewc-lora", "mode": "shared"},
    "merge, past capped at rank 8": {"name": "ewc-lora", "mode": "merge", "rank": 8},
}
STRENGTHS = {"sequential": [0.0], "shared": [1e1, 1e2, 1e3, 1e4, 1e5, 1e6], "merge, past capped at rank 8": [1e4, 1e5]}
KEYS = ("average_accuracy", "learning_accuracy", "forgetting")
RESULTS = Path(__file__).parent / "results" / "strength.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--streams", nargs="+", default=STREAMS, choices=STREAMS)
    parser.add_argument("--output", type=Path, default=Path("runs/strength"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for seed in options.seeds:
        for name in options.streams:
            for mode, method in MODES.items():
                for strength in STRENGTHS[mode]:
                    rows.append(measure(name, mode, method, strength, seed, options.output))
                    store.write_json(RESULTS, {"command": "python benchmarks/strength.py", "rows": rows})
    show(rows)


def measure(name: str, mode: str, method: dict[str, Any], strength: float, seed: int, output: Path) -> dict[str, Any]:
    """One run of one cell of the grid."""
    document = stream(seed=seed)
    sizes = {"max_train": 120, "max_test": 100, "max_length": 48}
    document["tasks"] = [task | sizes for task in validation_tasks(name)]
    document["method"] = method | ({"strength": strength} if strength else {})
    document["output"] = str(output / f"{name}-{mode.split(',')[0]}-{strength:g}-{seed}")
    results = run(config.parse(document), Console(quiet=True))
    scores = {key: results["accuracy"]["scores"][key] for key in KEYS}
    row = {
        "stream": name,
        "mode": mode,
        "strength": strength,
        "seed": seed,
        **scores,
        "bytes": results["bytes"]["state"],
    }
    print(row, flush=True)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Means over streams and seeds, with the spread over seeds of the mean over streams."""
    table = Table("mode", "strength", *(key.replace("_", " ") for key in KEYS), "state bytes")
    for mode, strength in dict.fromkeys((row["mode"], row["strength"]) for row in rows):
        mine = [row for row in rows if (row["mode"], row["strength"]) == (mode, strength)]
        cells = []
        for key in KEYS:
            by_seed = [np.mean([r[key] for r in mine if r["seed"] == s]) for s in {r["seed"] for r in mine}]
            cells.append(f"{np.mean(by_seed):.3f} ± {np.std(by_seed):.3f}")
        table.add_row(mode, f"{strength:g}", *cells, f"{mine[0]['bytes']:,}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
