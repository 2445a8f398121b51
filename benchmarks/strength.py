"""Which strength, for which form, and which mode at equal bytes? EWC-LoRA on streams that nothing else is measured on.

    python benchmarks/strength.py --seeds 0 1 2
    python benchmarks/strength.py --streams wide --modes kronecker --strengths 30      # a cell more

Three validation streams made of training rows only, of Reuters R52 and 20 Newsgroups classes that the demo does not
use: "wide" has three hard tasks (4, 13 and 4 classes), the others have four easy ones (2 to 4 classes) each. Writes
benchmarks/results/strength.json and prints its table; run again to continue.
"""

from __future__ import annotations

import argparse
import itertools
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

STREAMS = {
    "wide": {"max_train": 200, "max_test": 150},
    "r52": {"max_train": 120, "max_test": 100},
    "newsgroups": {"max_train": 120, "max_test": 100},
}
DIAGONAL = {"name": "ewc-lora", "fisher": {"form": "diagonal"}}
MODES: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "kronecker": {"name": "ewc-lora"},
    "kronecker, temperature 1": {"name": "ewc-lora", "fisher": {"temperature": 1.0}},
    "diagonal": DIAGONAL,
    "diagonal, merge": DIAGONAL | {"mode": "merge", "rank": 8},  # a past of rank 8 instead of an anchor: the same bytes
}
KEYS = ("average_accuracy", "learning_accuracy", "forgetting")
CELL = ("stream", "mode", "strength", "seed")
RESULTS = Path(__file__).parent / "results" / "strength.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e3, 1e4, 1e5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/strength"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = store.read_json(RESULTS)["rows"] if RESULTS.exists() else []
    for stream_name, mode, seed in itertools.product(options.streams, options.modes, options.seeds):
        for strength in options.strengths if mode != "sequential" else [0.0]:
            row = measure(stream_name, mode, strength, seed, options.output)
            rows = [other for other in rows if any(other[key] != row[key] for key in CELL)] + [row]
            rows.sort(key=lambda r: tuple(r[key] for key in CELL))
            store.write_json(RESULTS, {"command": "python benchmarks/strength.py", "rows": rows})
    show(rows)


def measure(name: str, mode: str, strength: float, seed: int, output: Path) -> dict[str, Any]:
    """One run of one cell of the grid."""
    document = stream(seed=seed)
    document["tasks"] = [task | STREAMS[name] | {"max_length": 48} for task in validation_tasks(name)]
    document["method"] = MODES[mode] | ({"strength": strength} if strength else {})
    document["output"] = str(output / f"{name}-{mode}-{strength:g}-{seed}")
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
    """Means over seeds for each stream."""
    table = Table("stream", "mode", "strength", *(key.replace("_", " ") for key in KEYS), "state bytes")
    for cell in dict.fromkeys((row["stream"], row["mode"], row["strength"]) for row in rows):
        mine = [row for row in rows if (row["stream"], row["mode"], row["strength"]) == cell]
        values = [[row[key] for row in mine] for key in KEYS]
        cells = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else f"{v[0]:.3f}" for v in values]
        table.add_row(cell[0], cell[1], f"{cell[2]:g}", *cells, f"{mine[0]['bytes']:,}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
