"""The demo's stream over several seeds: does EWC-LoRA keep what sequential fine-tuning loses, and at what price?

    python benchmarks/demo.py --seeds 0 1 2

Writes benchmarks/results/demo.json and prints its table; run again to continue.
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from retain import store
from retain.commands.demo import demo

KEYS = ("average_accuracy", "learning_accuracy", "forgetting")
RESULTS = Path(__file__).parent / "results" / "demo.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        folder = options.output / str(seed)
        demo(folder, seed=seed)
        for method, results in store.read_json(folder / "results.json")["runs"].items():
            runs.setdefault(method, []).append(results)
    summary = {
        "command": f"python benchmarks/demo.py --seeds {' '.join(map(str, options.seeds))}",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("retain", "torch", "transformers", "peft")},
        "methods": {method: summarise(results) for method, results in runs.items()},
    }
    store.write_json(RESULTS, summary)
    show(summary["methods"])


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and sample standard deviations over seeds, and the score matrix of every seed."""
    table = {}
    for key in KEYS:
        values = [r["accuracy"]["scores"][key] for r in results]
        if None not in values:
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            table[key] = {"mean": float(np.mean(values)), "std": spread, "by_seed": values}
    return table | {
        "matrices": [r["accuracy"]["matrix"] for r in results],
        "bytes": results[0]["bytes"],
        "seconds": [r["seconds"] for r in results],
    }


def show(methods: dict[str, Any]) -> None:
    """The table of the README."""
    table = Table("method", *(key.replace("_", " ") for key in KEYS), "adapter bytes", "state bytes", "seconds")
    for method, found in methods.items():
        cells = [f"{found[k]['mean']:.3f} ± {found[k]['std']:.3f}" if k in found else "" for k in KEYS]
        seconds = np.mean([sum(s.values()) for s in found["seconds"]])
        table.add_row(
            method, *cells, f"{found['bytes']['adapter']:,}", f"{found['bytes']['state']:,}", f"{seconds:.0f}"
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
