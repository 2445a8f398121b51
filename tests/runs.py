"""Configurations of tiny runs on a saved model, and what to compare of what they leave."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForSequenceClassification

from retain import yamls
from retain.config import RunConfig, parse
from streams import jsonl, rows

LABELS = {"mood": ["glad", "sad"], "sport": ["loss", "win"], "greek": ["alpha", "beta"]}
TRAINING = {"max_steps": 3, "per_device_train_batch_size": 6, "learning_rate": 0.02}
LEARNING = {"max_steps": 16, "per_device_train_batch_size": 8, "learning_rate": 0.05}  # enough for accuracy 1


def document(base: str, folder: Path, names: str = "mood sport greek", each: int = 10, **sections: Any) -> dict:
    """What a YAML file would hold: tasks of 2 classes with ``each`` rows, a fifth of them for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for name in names.split():
        file = jsonl(folder / f"{name}.jsonl", rows(LABELS[name], each))
        tasks.append({"name": name, "path": "json", "data_files": file})
    fixed = {
        "model": {"path": base},
        "lora": {"r": 2, "target_modules": ["query", "value"]},
        "heads": {"learning_rate": 0.05},
        "method": {"name": "sequential"},
        "training": TRAINING,
        "tasks": tasks,
        "output": str(folder / "out"),
    }
    return fixed | sections


def settings(base: str, folder: Path, names: str = "mood sport greek", **sections: Any) -> RunConfig:
    return parse(document(base, folder, names, **sections))


def yaml_file(document: dict[str, Any], path: Path) -> str:
    path.write_text(yamls.write(document))
    return str(path)


def slow_but(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of a test that runs with the slow ones for all ``names`` but ``quick``."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in names]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def untimed(value: Any) -> Any:
    """``value`` without what may differ between two runs of the same: seconds, and the steps that they are of."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in ("seconds", "steps")}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def left_by(output: str | Path) -> dict[str, Any]:
    """What a run has come to, by path: results and scores without seconds, adapters, states; not the record of how."""
    folder, found = Path(output), {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("done", "ledger.jsonl")):
        name = path.relative_to(folder).as_posix()
        try:
            found[name] = untimed(json.loads(path.read_text()))
        except ValueError:  # not JSON, or no longer
            found[name] = path.read_bytes()
    for value in found.values():
        if isinstance(value, dict) and isinstance(value.get("target_modules"), list):
            value["target_modules"].sort()
    return found


def stock(base: str, adapter: Path, outputs: int) -> Any:
    """The adapter in ``adapter`` as anybody loads it, without a line of ours."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
    return PeftModel.from_pretrained(model, str(adapter)).eval()
