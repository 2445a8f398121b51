"""Whole runs: every scenario, what they leave, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaModel

from models import bare_llama
from retain import run as running
from retain import scoring
from retain.commands.export import export
from retain.heads import heads_of
from retain.run import run
from retain.store import StoreError
from retain.task import rows_of
from retain.workshop import prepare
from runs import LEARNING, TRAINING, document, left_by, quiet, settings, stock
from streams import jsonl, rows, word_tokenizer

pytestmark = pytest.mark.usefixtures("fast_runs")


def heads_after(output: str, stage: str) -> dict[str, torch.Tensor]:
    """Weight and bias of the classifier that a stage left."""
    tensors = load_file(Path(output, "tasks", stage, "adapter", "adapter_model.safetensors"))
    return {key.rpartition(".")[2]: t for key, t in tensors.items() if ".classifier." in key}


@torch.no_grad()
def stock_outcomes(model: Any, shop: Any) -> dict[str, list[float]]:
    """Accuracies of a stock model on each task's test rows by the definitions, row after row."""
    found: dict[str, list[float]] = {"known": [], "unknown": [], "task_found": []}
    for i, task in enumerate(shop.stream.tasks):
        own = (shop.stream.groups == i).nonzero()[:, 0]
        data, collate = rows_of(task.test, task.collate)
        hits: dict[str, list[bool]] = {key: [] for key in found}
        for row in data:
            batch = dict(collate([row]))
            label, logits = int(batch.pop("labels")), model(**batch).logits[0]
            hits["known"].append(int(own[logits[own].argmax()]) == label)
            hits["unknown"].append(int(logits.argmax()) == label)
            hits["task_found"].append(int(logits.argmax()) in own.tolist())
        for key, value in hits.items():
            found[key].append(round(sum(value) / len(value), 6))
    return found


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_heads_of_other_tasks_stay_bit_identical_and_scores_are_those_of_the_stock_adapter(
    scenario: str, bert: str, tmp_path: Path
) -> None:
    config = settings(bert, tmp_path, "mood sport", scenario=scenario, training=LEARNING | {"weight_decay": 0.5})
    fresh = prepare(config)
    start = {key: t.clone() for key, t in heads_of(fresh.model).state_dict().items()}
    results = run(config, quiet())

    first, second = (heads_after(config.output, stage) for stage in ("00-mood", "01-sport"))
    for key in ("weight", "bias"):
        assert torch.equal(first[key][2:], start[key][2:]) and torch.equal(second[key][:2], first[key][:2])
        assert not torch.equal(first[key][:2], start[key][:2]) and not torch.equal(second[key][2:], first[key][2:])

    stocked = stock_outcomes(stock(bert, Path(config.output, "adapter"), 4), fresh)
    kind, other = ("known", "unknown") if scenario == "task" else ("unknown", "known")
    assert results["accuracy"]["matrix"][-1] == stocked[kind]
    assert results[f"accuracy_task_{other}"]["matrix"][-1] == stocked[other]
    assert results["task_found"]["matrix"][-1] == stocked["task_found"]
    assert results["accuracy_task_known" if scenario == "class" else "accuracy"]["matrix"][1][0] == 1.0  # it learns


def test_row_0_is_the_untouched_model_and_every_task_is_scored_after_every_task(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, scenario="class")
    results = run(config, quiet())
    known, loss = results["accuracy_task_known"]["matrix"], results["loss"]["matrix"]
    assert [len(row) for row in known] == [3] * 4 and None not in sum(known, [])
    assert results["accuracy"]["matrix"][0] == [0, 0, 0]  # no class has been seen
    assert results["accuracy"]["matrix"][1][1:] == [0, 0]  # nor has any of the second and third tasks yet
    shop = prepare(config)
    assert known[0] == stock_outcomes(shop.model.eval(), shop)["known"]
    for task, value in zip(shop.stream.tasks, loss[0], strict=True):
        data, collate = rows_of(task.test, task.collate)
        batch = dict(collate(list(data)))
        with torch.no_grad():
            logits = shop.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        assert value == pytest.approx(float(task.loss.nll(logits, batch["labels"]).mean()), abs=2e-6)


def test_results_say_everything(bert: str, tmp_path: Path) -> None:
    training = TRAINING | {"save_strategy": "steps", "save_steps": 1}
    config = settings(bert, tmp_path, "mood sport", seed=3, training=training)
    results = run(config, quiet())
    assert json.loads(Path(config.output, "results.json").read_text()) == results
    assert (results["method"], results["scenario"], results["seed"]) == ({"name": "sequential"}, "task", 3)
    assert results["tasks"] == ["mood", "sport"] and results["loss"]["unit"] == "nats per example"
    assert set(results["accuracy"]) == {"matrix", "scores", "intervals_95"}
    assert {"average_accuracy", "forgetting", "backward_transfer"} <= set(results["accuracy"]["scores"])
    low, high = results["accuracy"]["intervals_95"]["average_accuracy"]
    assert low <= results["accuracy"]["scores"]["average_accuracy"] <= high
    adapter = Path(config.output, "tasks", "01-sport", "adapter")
    assert results["bytes"]["adapter"] == sum(p.stat().st_size for p in adapter.iterdir()) > 0
    kinds = results["bytes"]["kinds"]
    assert kinds == {"learned": 16} and results["bytes"]["state"] > sum(kinds.values())
    assert (results["steps"], results["rows"]) == (2 * 3, "test")
    assert set(results["seconds"]) == {"train", "boundary", "evaluate"}
    labels = json.loads(Path(config.output, "adapter", "labels.json").read_text())
    assert labels["sport"] == {"first_output": 2, "labels": ["loss", "win"]}
    left = {p.relative_to(config.output).as_posix() for p in Path(config.output).rglob("*") if p.is_file()}
    assert not [
        name for name in left if "trainer" in name or "partial" in name or name.startswith("tasks/00-mood/state")
    ]
    assert {"config.yaml", "results.json", "base/done", "tasks/01-sport/state/method.safetensors"} <= left


@pytest.mark.slow
def test_a_domain_stream_has_one_linear_head_that_every_task_trains(bert: str, tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"{i}.jsonl", rows(["sad", "glad"])) for i in range(2)]
    tasks = [{"name": f"d{i}", "path": "json", "data_files": file} for i, file in enumerate(files)]
    for method in ({"name": "sequential"}, {"name": "ewc-lora", "fisher": {"samples": 8}}):
        output = str(tmp_path / method["name"])
        config = settings(bert, tmp_path, tasks=tasks, scenario="domain", method=method, output=output)
        shop = prepare(config)
        assert heads_of(shop.model) is None
        assert type(shop.model.base_model.model.classifier.modules_to_save["default"]) is nn.Linear
        results = run(config, quiet())
        first, second = (heads_after(output, stage) for stage in ("00-d0", "01-d1"))
        assert first["weight"].shape == (2, 32)
        assert all((first[key] != second[key]).all() for key in ("weight", "bias"))
        assert "accuracy_task_unknown" not in results and "task_found" not in results
        labels = json.loads(Path(output, "adapter", "labels.json").read_text())
        assert labels["d0"] == labels["d1"] == {"first_output": 0, "labels": ["glad", "sad"]}
    assert any(key.startswith("springs/") for key in state_of(output, "01-d1"))


def state_of(output: str, stage: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output, "tasks", stage, "state", "method.safetensors"))


@pytest.mark.slow
def test_a_stream_of_images_split_by_class(vit: str, tmp_path: Path) -> None:
    for number, colour in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]):
        folder = tmp_path / "pictures" / f"c{number}"
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), tuple(max(v - 5 * i, 0) for v in colour)).save(folder / f"{i}.png")
    task = {"name": "colours", "path": "imagefolder", "data_dir": str(tmp_path / "pictures"), "split_by_class": 2}
    sections = {"model": {"path": vit, "kind": "image"}, "lora": {"r": 2}, "tasks": [task], "scenario": "class"}
    config = settings(vit, tmp_path, training=LEARNING, **sections)
    results = run(config, quiet())
    assert results["tasks"] == ["colours-0", "colours-1"]
    assert [results["accuracy_task_known"]["matrix"][i + 1][i] for i in range(2)] == [1, 1]
    assert heads_after(config.output, "01-colours-1")["weight"].shape == (4, 32)


def test_a_joint_run_trains_once_on_all_rows(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, fit = [], running.fit
    monkeypatch.setattr(running, "fit", lambda *a, **k: (trained.append(len(a[1].train)), fit(*a, **k))[1])
    config = settings(bert, tmp_path, "mood sport", method={"name": "joint"})
    results = run(config, quiet())
    assert trained == [32]
    assert results["accuracy"]["matrix"][1] == [None, None] and None not in results["accuracy"]["matrix"][2]
    assert results["accuracy"]["scores"]["average_accuracy"] is not None
    assert results["accuracy"]["scores"]["forgetting"] is None
    heads, fresh = heads_after(config.output, "01-joint"), heads_of(prepare(config).model)
    assert (heads["weight"] != fresh.state_dict()["weight"]).any(1).all()


@pytest.mark.slow
def test_per_task_adapters_are_put_in_place_for_scoring(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood sport", method={"name": "per-task"}, training=LEARNING)
    results = run(config, quiet())
    matrix, loss = results["accuracy"]["matrix"], results["loss"]["matrix"]
    assert loss[2][0] == loss[1][0] and matrix[2][0] == matrix[1][0] == 1  # learning sport did nothing to mood
    assert loss[1][1] == loss[0][1]  # sport before it was learned: the untouched model
    assert results["accuracy"]["scores"]["forgetting"] == 0
    assert len([k for k in state_of(config.output, "01-sport") if k.startswith("adapters/")]) == 2 * 2 * 4


def test_training_arguments_of_a_task_reach_its_trainer(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(running, "fit", lambda model, task, method, arguments, **k: seen.append((arguments, k)) or 0)
    content = document(bert, tmp_path, "mood sport")
    content["tasks"][1]["training"] = {"learning_rate": 0.5, "num_train_epochs": 2}
    run(running.configuration.parse(content), quiet())
    (first, options), (second, _) = seen
    assert (first.learning_rate, second.learning_rate) == (0.02, 0.5)
    assert (first.num_train_epochs, second.num_train_epochs, second.max_steps) == (3, 2, 3)
    assert first.seed != second.seed and options["head_learning_rate"] == 0.05
    assert first.output_dir != second.output_dir


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(bert: str, tmp_path: Path) -> None:
    one, two, other = (
        settings(bert, tmp_path, "mood", output=str(tmp_path / name), seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    runs = [run(config, quiet())["loss"]["matrix"] for config in (one, two, other)]
    assert runs[0] == runs[1] != runs[2]


def test_a_finished_run_run_again_trains_nothing(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(bert, tmp_path, "mood sport")
    results = run(config, quiet())
    before = left_by(config.output)
    monkeypatch.setattr(running, "fit", None)
    monkeypatch.setattr(scoring, "evaluate", None)
    assert run(config, quiet()) == results
    assert left_by(config.output) == before


def test_a_folder_of_another_configuration_is_refused(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood")
    run(config, quiet())
    before = left_by(config.output)
    with pytest.raises(StoreError, match=r"training.max_steps is 3 there and 9 here; choose another `output`"):
        run(settings(bert, tmp_path, "mood", training=TRAINING | {"max_steps": 9}), quiet())
    assert left_by(config.output) == before


def test_a_foreign_folder_is_refused(bert: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="out is not empty and holds no run"):
        run(settings(bert, tmp_path), quiet())
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="thesis.tex is not empty and holds no run"):
        run(settings(bert, tmp_path, output=str(folder / "thesis.tex")), quiet())


def test_a_mistake_in_the_data_does_not_take_the_folder(bert: str, tmp_path: Path) -> None:
    content = document(bert, tmp_path, "mood")
    wrong = content | {"tasks": [content["tasks"][0] | {"data_files": "moood.jsonl"}]}
    with pytest.raises(ValueError, match="no such file"):
        run(running.configuration.parse(wrong), quiet())
    assert not Path(content["output"]).exists()
    run(running.configuration.parse(content | {"training": {"max_steps": 1}}), quiet())


@pytest.mark.slow
def test_a_language_model_without_a_padding_token_can_be_a_classifier(tmp_path: Path, in_process: list) -> None:
    tokenizer = word_tokenizer()
    LlamaModel(bare_llama(vocab_size=len(tokenizer), pad_token_id=None).config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lora = {"r": 2, "target_modules": ["q_proj"]}
    config = settings(str(tmp_path / "base"), tmp_path, "mood sport", lora=lora, scenario="class")
    run(config, quiet())
    assert export(Path(config.output), console=quiet()) <= 1e-5
