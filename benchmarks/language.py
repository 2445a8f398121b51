"""A small language model on three kinds of text, one after the other: what it learns, and what it loses of the rest.

    scripts/fetch_optional_data.sh smollm2                     # SmolLM2-135M-Instruct, once
    python -m benchmarks.language                              # run again to continue

Tasks: newswire stories, film reviews, and the sources of Python's standard library. Every run is what `retain run`
does with a YAML file. Writes benchmarks/results/language.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.fisher import machine, versions
from benchmarks.streams import CACHE
from retain import store, yamls
from retain.commands.corpora import corpus
from retain.config import parse
from retain.run import run

RESULTS = Path(__file__).parent / "results" / "language.json"
TRAIN, TEST, LENGTH = 32, 16, 48  # rows of a task, and their tokens
MODULES = ["argparse", "tarfile", "inspect", "typing", "ast", "difflib", "pathlib", "subprocess", "zipfile"]
Rows = list[dict[str, str]]
CELLS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "EWC-LoRA": {"name": "ewc-lora"},
}
TRAINING = {
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "linear",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=CACHE / "language-benchmark", help="where runs are kept meanwhile")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides; nothing is written then")
    options = parser.parse_args()
    rows = store.read_json(RESULTS)["rows"] if RESULTS.exists() and not options.set else []
    for seed in options.seeds:
        for cell in options.cells:
            if any((row["cell"], row["seed"]) == (cell, seed) for row in rows):
                continue
            rows.append({"cell": cell, "seed": seed} | measure(cell, seed, options.work, options.set))
            if not options.set:
                head = {"command": "python -m benchmarks.language", "machine": machine(), "versions": versions()}
                store.write_json(RESULTS, head | {"settings": settings(), "rows": rows})
    show(rows)


def settings() -> dict[str, Any]:
    return {"train": TRAIN, "test": TEST, "tokens": LENGTH, "training": TRAINING}


def measure(cell: str, seed: int, work: Path, overrides: list[str]) -> dict[str, Any]:
    """One run through all tasks: matrices, scores and costs."""
    output = work / f"{cell}-{seed}"
    document = stream(work / f"rows-{seed}", seed) | {"method": dict(CELLS[cell]), "output": str(output)}
    for override in overrides:
        yamls.override(document, override)
    results = run(parse(document), Console())
    shutil.rmtree(output)
    keys = ("tasks", "nats_per_token", "calibration", "bytes", "seconds", "warnings")
    return {"method": results["method"]} | {key: results[key] for key in keys if key in results}


def stream(folder: Path, seed: int) -> dict[str, Any]:
    """The configuration but for method and output; its rows are written under ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for name, rows in texts(seed).items():
        for split, part in zip(("train", "test"), rows, strict=True):
            store.write(folder / f"{name}-{split}.jsonl", "\n".join(map(json.dumps, part)))
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": name, "path": "json", "data_files": files, "max_length": LENGTH})
    return {
        "model": {"path": str(CACHE / "smollm2"), "kind": "causal-lm", "dtype": "float32"},
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "training": TRAINING,
        "tasks": tasks,
        "seed": seed,
    }


def texts(seed: int) -> dict[str, tuple[Rows, Rows]]:
    """Training and test rows of each task; the test rows are the same for all seeds."""
    news, reviews = (
        [[row["text"] for row in _rows(corpus(name) / f"{split}.jsonl")] for split in ("train", "test")]
        for name in ("reuters-r8", "rotten-tomatoes")
    )
    code = python_sources()
    splits = {"newswire": news, "reviews": reviews, "python": [code[::2], code[1::2]]}
    return {name: _chosen(train, test, seed) for name, (train, test) in splits.items()}


def python_sources() -> list[str]:
    """Stretches of the standard library's own sources (PSF licence)."""
    folder, found = Path(sysconfig.get_paths()["stdlib"]), []
    for module in MODULES:
        lines = (folder / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()
        found += ["\n".join(lines[i : i + 12]) for i in range(100, len(lines) - 12, 12)]
    return [text for text in found if len(text) > 200]


def _chosen(train: list[str], test: list[str], seed: int) -> tuple[Rows, Rows]:
    chosen = random.Random(seed).sample(train, TRAIN), random.Random(0).sample(test, TEST)
    return tuple([{"text": text} for text in part] for part in chosen)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def show(rows: list[dict[str, Any]]) -> None:
    """Means and standard deviations over seeds."""
    for cell in dict.fromkeys(row["cell"] for row in rows):
        mine = [row for row in rows if row["cell"] == cell]
        for name in ("untouched", "just_learned", "final", "gained", "forgetting"):
            values = [row["nats_per_token"]["scores"][name] for row in mine]
            print(f"{cell:<12} {name:<13} {np.mean(values):.3f} ± {np.std(values):.3f} nats per token")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
