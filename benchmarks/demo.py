"""The demo's stream over several seeds, with more rows: does EWC-LoRA keep what sequential fine-tuning loses?

    python benchmarks/demo.py --seeds 0 1 2

Writes benchmarks/results/demo.json and docs/demo.png, and prints the README's table; run again to continue.
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from retain import config, store
from retain.commands.demo import METHODS, stream
from retain.run import run

KEYS = ("average_accuracy", "learning_accuracy", "forgetting")
HERE = Path(__file__).parent
RESULTS, FIGURE = HERE / "results" / "demo.json", HERE.parent / "docs" / "demo.png"
SIZES = {"max_train": 200, "max_test": 150}  # the demo has fewer, to be done in minutes
COLOURS = {"sequential": "#c44e52", "ewc-lora": "#2a6f97"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="others are kept")
    parser.add_argument("--output", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        document = stream(seed=seed)
        document["tasks"] = [task | SIZES for task in document["tasks"]]
        for method in options.methods:
            settings = document | {"method": {"name": method}, "output": str(options.output / str(seed) / method)}
            runs.setdefault(method, []).append(run(config.parse(settings)))
    before = store.read_json(RESULTS)["methods"] if RESULTS.exists() else {}
    summary = {
        "command": f"python benchmarks/demo.py --seeds {' '.join(map(str, options.seeds))}",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("retain", "torch", "transformers", "peft")},
        "tasks": next(iter(runs.values()))[0]["tasks"],
        "methods": before | {method: summarise(results) for method, results in runs.items()},
    }
    store.write_json(RESULTS, summary)
    draw(summary["tasks"], summary["methods"])
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


def draw(tasks: list[str], methods: dict[str, Any]) -> None:
    """Each task's accuracy from the moment it was learned; lines are means over seeds, bands their range."""
    figure, panels = plt.subplots(1, len(tasks) - 1, figsize=(10, 3.2), sharey=True, layout="constrained")
    for i, panel in enumerate(panels):
        steps = np.arange(i + 1, len(tasks) + 1)
        for method, colour in COLOURS.items():
            values = np.array(methods[method]["matrices"], dtype=float)[:, i + 1 :, i]
            panel.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            panel.plot(steps, values.mean(0), "o-", color=colour, label=method, markersize=4)
        joint = np.array(methods["joint"]["matrices"], dtype=float)[:, -1, i].mean()
        panel.axhline(joint, color="#888888", linestyle=":", label="joint (keeps all data)")
        panel.set_title(f"test accuracy on {tasks[i]}", fontsize=10)
        panel.set_xticks(np.arange(1, len(tasks) + 1), tasks, rotation=25, fontsize=8)
        panel.set_xlabel("after learning", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
