"""Streams of a causal language model from a configuration to an adapter."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from compared import Ended
from retain.commands.compare import compare, summary
from retain.commands.export import export
from retain.commands.many.cells import Cell
from retain.commands.plan import plan
from retain.commands.table import print_scores
from retain.config import load, parse
from retain.run import run
from runs import quiet
from streams import WORDS, jsonl

pytestmark = pytest.mark.usefixtures("fast_runs")

TRAINING = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.02}


def document(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Three tasks of as many formats, each of which names another word for the one it is asked about."""
    folder.mkdir(exist_ok=True)
    tasks = []
    for shift, name in enumerate(["greek", "letters", "prose"], 1):
        pairs = [(WORDS[i % 8], WORDS[(i + shift) % 8]) for i in range(20)]
        rows: list[dict[str, Any]] = {
            "greek": [{"prompt": asked, "completion": answer} for asked, answer in pairs],
            "letters": [{"instruction": asked, "input": "", "output": answer} for asked, answer in pairs],
            "prose": [{"text": f"word {asked} {answer}"} for asked, answer in pairs],
        }[name]
        tasks.append({"name": name, "path": "json", "data_files": jsonl(folder / f"{name}.jsonl", rows)})
    fixed = {
        "model": {"path": base, "kind": "causal-lm"},
        "lora": {"r": 4},
        "training": TRAINING,
        "tasks": tasks,
        "output": str(folder / "out"),
    }
    return fixed | sections


def test_a_stream_of_language_is_learned_scored_and_exported(llama: str, tmp_path: Path) -> None:
    console = Console(file=(told := io.StringIO()), width=90)
    results = run(parse(document(llama, tmp_path, method={"name": "ewc-lora"})), console)
    found, written = results["nats_per_token"], json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == results and "accuracy" not in results
    matrix = np.array(found["matrix"])
    assert matrix.shape == (4, 3) and found["better"] == "lower"
    assert np.allclose(found["perplexity"], np.exp(matrix), atol=1e-4)
    learned = np.diagonal(matrix[1:])
    assert found["scores"]["gained"] == pytest.approx(np.mean(matrix[0] - learned), abs=1e-5)
    assert found["scores"]["gained"] > 0
    lost = [matrix[-1, i] - matrix[i + 1 :, i].min() for i in range(2)]
    assert found["scores"]["forgetting"] == pytest.approx(np.mean(lost), abs=1e-5)
    entry = json.loads((tmp_path / "out" / "base" / "scores.json").read_text())["tasks"]["greek"]
    assert entry["tokens"] == [2] * 4 and sum(entry["losses"]) == pytest.approx(4 * entry["loss"], rel=1e-3)
    print_scores(console, results)
    assert "nats a token" in told.getvalue() and "nats a token, lower is better" in told.getvalue()
    assert "above zero is worse" in told.getvalue()
    assert not (tmp_path / "out" / "adapter" / "labels.json").exists()


@pytest.mark.slow
def test_its_adapter_gives_the_same_logits_anywhere(llama: str, tmp_path: Path) -> None:
    run(parse(document(llama, tmp_path, method={"name": "ewc-lora", "mode": "merge"})), quiet())
    assert export(tmp_path / "out", console=quiet()) < 1e-4


@pytest.mark.slow
def test_the_example_runs_on_any_causal_model(llama: str, tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "examples" / "language.yaml"
    overrides = [f"model.path={llama}", f"output={tmp_path / 'run'}", "training.max_steps=2", "method.name=sequential"]
    results = run(load(example, overrides), quiet())
    assert results["tasks"] == ["faq", "manners", "notes"]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_plan_is_made_without_weights(llama: str, tmp_path: Path) -> None:
    made = plan(parse(document(llama, tmp_path, method={"name": "ewc-lora"})), quiet())
    assert [(task.rows, task.classes) for task in made.tasks] == [(16, None)] * 3
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_methods_are_compared_by_their_nats(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "REPLICATES", 20)

    def start(cell: Cell) -> Ended:
        run(cell.config, quiet())
        return Ended()

    content = document(llama, tmp_path)
    content["tasks"] = content["tasks"][:2]
    content["guard"] = {"path": "json", "data_files": content["tasks"][0]["data_files"]}
    asked = ["sequential", "ewc-lora"]
    assert compare(parse(content), asked, seeds=1, tries=2, console=quiet(), start=start, jobs=1)
    found = json.loads((tmp_path / "out-compare" / "comparison.json").read_text())
    assert found["unit"] == "nats a token" and list(found["methods"]) == asked
    assert {"final", "forgetting", "guard_rise"} <= found["methods"]["ewc-lora"]["difference"].keys()
    assert found["tuning"]["ewc-lora"]["scores"] and (tmp_path / "out-compare" / "nats.png").exists()


@pytest.mark.slow
def test_packing_changes_nothing_but_the_padding(llama: str, tmp_path: Path) -> None:
    plain, tight = (
        run(parse(document(llama, tmp_path / name, language={"packing": name == "tight"})), quiet())
        for name in ("plain", "tight")
    )
    assert np.allclose(plain["nats_per_token"]["matrix"], tight["nats_per_token"]["matrix"], atol=1e-4)


def test_a_method_with_coefficients_for_each_task_is_scored_with_the_task_known(llama: str, tmp_path: Path) -> None:
    config = document(llama, tmp_path, method={"name": "per-task"})
    matrix = np.array(run(parse(config | {"tasks": config["tasks"][:2]}), quiet())["nats_per_token"]["matrix"])
    assert matrix[2, 0] == matrix[1, 0] < matrix[0, 0] and matrix[1, 1] == matrix[0, 1] > matrix[2, 1]
