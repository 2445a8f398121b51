"""Runs whose tasks are not all scored by accuracy: regressions beside classes, and everything that reads them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from rich.console import Console
from scipy.stats import pearsonr
from sklearn.metrics import matthews_corrcoef
from transformers import AutoModelForImageClassification, ViTImageProcessor

from retain import store
from retain.commands.check import Bound, check
from retain.commands.table import print_scores
from retain.config import ConfigError, load, parse
from retain.data import DataError, load_stream
from retain.regressions import check_shared
from retain.report.page import page
from retain.report.read import read_run
from retain.results import row_scores
from retain.run import run
from retain.summaries import read_results
from retain.task import CrossEntropy, SquaredError
from retain.trackers import reading
from runs import LEARNING, document, quiet
from streams import WORDS, jsonl, labels_of, stream, word_tokenizer

pytestmark = pytest.mark.usefixtures("fast_runs", "in_process")


def sizes(folder: Path) -> str:
    """Rows whose label is the number that they name, less one half."""
    rows = [{"text": f"{WORDS[i % 8]} {i % 3}", "label": i % 3 - 0.5} for i in range(40)]
    return jsonl(folder / "sizes.jsonl", rows)


def mixed(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Classes by Matthews correlation, numbers, classes by accuracy."""
    made = document(base, folder, "mood sport", **sections)
    number = {"name": "size", "path": "json", "data_files": sizes(folder), "metric": "pearson"}
    return made | {"tasks": [made["tasks"][0] | {"metric": "matthews"}, number, made["tasks"][1]]}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"name": "ewc-lora", "strength": {"budget": "5%"}}),
        *(
            pytest.param({"name": name} | more, marks=pytest.mark.slow)
            for name, more in (("replay", {"match": 0.5}), ("lwf", {}), ("per-task", {}))
        ),
    ],
    ids=lambda method: method["name"],
)
def test_numbers_beside_classes(method: dict[str, Any], bert: str, tmp_path: Path) -> None:
    results = run(parse(mixed(bert, tmp_path, method=method, training=LEARNING)), quiet())
    output = tmp_path / "out"
    assert results["metric"] == {"mood": "matthews", "size": "pearson", "sport": "accuracy"}
    assert not results.keys() & {"accuracy", "accuracy_task_unknown", "task_found"}
    assert read_results(output / "results.json")["score"] == results["score"]
    records = [store.read_json(stage / "scores.json") for stage in store.stage_folders(output)]
    mood, size, sport = records[-1]["tasks"].values()
    wanted = [
        matthews_corrcoef(mood["wanted"], mood["said"]),
        pearsonr(size["wanted"], size["said"]).statistic,
        sport["known"].count("1") / sport["rows"],
    ]
    assert results["score"]["matrix"][-1] == pytest.approx(wanted, abs=1e-6)
    assert results["score"]["matrix"][2][1] > 0.8, "the numbers were not learned"
    assert size["loss"] == pytest.approx(np.mean((np.array(size["said"]) - size["wanted"]) ** 2) / 2, rel=1e-4)
    means = {name: rows.mean() for name, rows in row_scores(records[-1]["tasks"]).items()}
    assert [*means.values()] == pytest.approx(wanted, abs=1e-6)
    told = reading(records, "task")
    assert told["pearson/size"] == pytest.approx(wanted[1]) and told["average_score"] == pytest.approx(np.mean(wanted))
    _shown(output, results)


def _shown(output: Path, results: dict[str, Any]) -> None:
    """In the terminal, the model card, the report and a check."""
    console = Console(file=io.StringIO(), width=120)
    print_scores(console, results)
    text = console.file.getvalue()
    assert "test score (task known)" in text and "mood: Matthews correlation" in text and "average score" in text
    assert "size: Pearson correlation" in (output / "adapter" / "README.md").read_text()
    whole = page([read_run(output)], 0)
    assert "sport: accuracy" in whole and "nan" not in re.sub(r"<svg.*?</svg>", "", whole, flags=re.DOTALL)
    assert re.search(r"Lost -?\d\.\d{3} \(-?\d\.\d{3} to -?\d\.\d{3}\) of its score on mood and size", whole)
    console = Console(file=io.StringIO(), width=200)
    check(output, Bound.parse("0.1"), console)
    lines = console.file.getvalue().splitlines()
    then, now = (results["score"]["matrix"][t][1] for t in (2, 3))
    assert len(lines) == 3 and f"size: {then:.3f} -> {now:.3f}, lost {then - now:.3f}" in lines[1]
    check(output, Bound.parse("0.1nats"), console)


def test_regressions_that_share_a_head(bert: str, tmp_path: Path) -> None:
    made = mixed(bert, tmp_path, scenario="domain", method={"name": "joint"}, training=LEARNING)
    first = made["tasks"][1] | {"metric": "neg_mean_absolute_error"}
    made["tasks"] = [first, first | {"name": "again", "metric": "spearman"}]
    results = run(parse(made), quiet())
    error, ranks = results["score"]["matrix"][-1]
    assert -0.6 < error < 0 and 0.8 < ranks <= 1  # of what is untrained, 0.83 and 0


def bodies(path: Path, seed: int, count: int = 24) -> dict[str, Any]:
    """Pictures of one grey and, in millimetres, two joints that it says; a fifth of them for testing."""
    rows = []
    for grey in np.random.default_rng(seed).integers(0, 3, count) * 127:
        picture = Image.fromarray(np.full((8, 8, 3), grey, dtype=np.uint8))
        joints = np.array([[1, 1, 1], [-1, 1, 0.5]]) * 4 * (float(grey) - 127)
        rows.append({"image": datasets.Image().encode_example(picture), "pose": joints.tolist()})
    numbers = datasets.List(datasets.List(datasets.Value("float32")))
    features = datasets.Features({"image": datasets.Image(), "pose": numbers})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    entry = {"name": path.stem, "path": "parquet", "data_files": str(path), "label": "pose"}
    return entry | {"metric": "neg_mpjpe", "unit": 300}


def posing(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Poses of two actions, by one head."""
    fixed = {"model": {"path": base, "kind": "image"}, "scenario": "domain", "lora": {"target_modules": "all-linear"}}
    made = document(base, folder, "", **(fixed | sections))
    return made | {"tasks": [bodies(folder / f"{name}.parquet", seed) for seed, name in enumerate(("walk", "sit"))]}


@pytest.mark.parametrize(
    ("scenario", "method"),
    [
        ("domain", {"name": "ewc-lora", "strength": 1.0}),
        pytest.param("domain", {"name": "per-task"}, marks=pytest.mark.slow),
        pytest.param("task", {"name": "replay", "match": 0.5}, marks=pytest.mark.slow),
        pytest.param("task", {"name": "lwf"}, marks=pytest.mark.slow),
    ],
)
def test_poses_are_scored_in_the_unit_of_their_labels(
    scenario: str, method: dict[str, Any], vit: str, tmp_path: Path
) -> None:
    training = LEARNING | {"learning_rate": 0.02}
    made = posing(vit, tmp_path, scenario=scenario, method=method, training=training)
    results = run(parse(made), quiet())
    output = tmp_path / "out"
    assert results["metric"] == {"walk": "neg_mpjpe", "sit": "neg_mpjpe"}
    record = store.read_json(output / "base" / "scores.json")["tasks"]["walk"]
    assert results["score"]["matrix"][0][0] == pytest.approx(-np.mean(record["errors"]), rel=1e-5)
    assert -800 < results["score"]["matrix"][0][0] < -400  # of joints up to 890 mm away, by a head that says nothing
    assert results["score"]["matrix"][2][1] > -250, "the poses were not learned"
    assert results["loss"]["matrix"][2][1] < results["loss"]["matrix"][0][1] / 3
    first = 0 if scenario == "domain" else 6
    names = [f"number {i} of 6, times 300" for i in range(1, 7)]
    assert store.read_json(output / "adapter" / "labels.json")["sit"] == {"first_output": first, "labels": names}
    assert stock_score(output, vit, first) == pytest.approx(results["score"]["matrix"][-1][1], rel=1e-4)
    console = Console(file=io.StringIO(), width=200)
    assert check(output, Bound.parse("5%"), console) in (True, False) and "walk: -" in console.file.getvalue()
    whole = page([read_run(output)], 0)
    assert "mean per joint position error" in whole and "nan" not in re.sub(r"<svg.*?</svg>", "", whole, flags=re.S)


def stock_score(output: Path, base: str, first: int) -> float:
    """That of the last task, of the exported adapter on a stock model, whose outputs from ``first`` on are read."""
    model = AutoModelForImageClassification.from_pretrained(base, num_labels=first + 6)
    model = PeftModel.from_pretrained(model, str(output / "adapter")).eval()
    task = load_stream(load(output / "config.yaml"), ViTImageProcessor.from_pretrained(base)).tasks[1]
    batch = task.collate([task.test[i] for i in range(len(task.test))])
    with torch.no_grad():
        apart = 300 * (model(batch["pixel_values"]).logits[:, first:] - batch["labels"])
    return -float(apart.reshape(-1, 2, 3).norm(dim=-1).mean())


def test_a_regression_owns_one_output(tmp_path: Path) -> None:
    classes = [{"text": f"{WORDS[i]} {label}", "label": label} for i in range(8) for label in ("win", "loss")]
    entry = {"data_files": sizes(tmp_path), "metric": "spearman", "max_train": 20}
    made = stream(word_tokenizer(), {"data_files": jsonl(tmp_path / "c.jsonl", classes)}, entry)
    assert made.groups is not None and made.groups.tolist() == [0, 0, 1] and made.sizes == [2, 1] and not made.guessed
    first, second = made.tasks
    assert isinstance(first.loss, CrossEntropy) and isinstance(second.loss, SquaredError)
    batch = second.collate([second.train[i] for i in range(4)])
    assert batch["labels"].dtype == torch.float32 and len(second.train) == 20 and second.metric == "spearman"
    outputs = torch.randn(4, 3)
    assert torch.equal(second.loss.own(outputs, batch["labels"]), outputs[:, 2])


def test_numbers_on_a_scale_that_a_nat_does_not_fit_are_warned_of(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [{"text": "alpha", "label": 1000.0 * i} for i in range(10)])
    entry = {"data_files": file, "metric": "pearson"}
    with pytest.warns(UserWarning, match="task 't0': the standard deviation of its numbers is .*e.03.*`unit: .*does"):
        stream(word_tokenizer(), entry)
    made = stream(word_tokenizer(), entry | {"unit": 1000})
    assert sorted(labels_of([*made.tasks[0].train, *made.tasks[0].test])) == pytest.approx(range(10))
    assert made.labels == [["number, times 1000"]] and made.tasks[0].unit == 1000


@pytest.mark.parametrize(
    ("labels", "metric", "message"),
    [
        ([[1.0, 2.0]] * 3 + [[1.0]], "neg_mean_absolute_error", "'label' has 1 in row 3, where others have 2"),
        ([[1.0, 2.0]] * 3 + [[1.0, None]], "neg_mean_absolute_error", "'label' has none in row 3"),
        ([[]] + [[1.0]] * 3, "neg_mpjpe", "has 0 in row 0, where others have some"),
        ([["a", "b"]] * 4, "neg_mpjpe", "is of numbers, and label column 'label' holds List"),
        ([[1.0, 2.0]] * 4, "neg_mpjpe", "is of joints, of three numbers each, and a row has 2 in label column 'label'"),
        ([[1.0, 2.0]] * 4, "spearman", "is of one number a row, and a row has 2; of several: neg_mean_absolute_error"),
    ],
)
def test_lists_of_numbers_that_are_none(labels: list[Any], metric: str, message: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [{"text": "alpha", "label": label} for label in labels])
    with pytest.raises(DataError, match=message):
        stream(word_tokenizer(), {"data_files": {"train": file, "test": file}, "metric": metric})


def test_numbers_that_one_head_cannot_give(tmp_path: Path) -> None:
    error = {"metric": "neg_mean_absolute_error"}
    two, three = (
        error
        | {
            "data_files": jsonl(
                tmp_path / f"{k}.jsonl", [{"text": "a", "label": [i, 1 - i, i][:k]} for i in (0.5, 1.5)] * 4
            )
        }
        for k in (2, 3)
    )
    message = (
        "task 't1': all tasks share one head, of which it needs 'number 1 of {}' to .*, and task 't0' 'number 1 of 2"
    )
    with pytest.raises(DataError, match=message.format("3")):
        stream(word_tokenizer(), two, three, scenario="domain")
    with pytest.raises(DataError, match=message.format("2, times 2")):
        stream(word_tokenizer(), two, two | {"unit": 2}, scenario="domain")
    made = stream(word_tokenizer(), two, three)
    assert made.groups is not None and made.groups.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="and the state that this run begins with 'number'"):
        check_shared({"t0": ["number, times 2"]}, [["number"]])


@pytest.mark.parametrize(
    ("label", "message"),
    [("loud", "metric 'pearson' is of numbers, and label column 'label' holds Value"), (None, "has none in row 3")],
)
def test_labels_that_are_no_numbers(label: Any, message: str, tmp_path: Path) -> None:
    rows = [{"text": "alpha", "label": label if isinstance(label, str) or i == 3 else i / 2} for i in range(9)]
    file = jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError, match=message):
        stream(word_tokenizer(), {"data_files": {"train": file, "test": file}, "metric": "pearson"})


def test_numbers_without_a_metric_are_told_of_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of a regression, say `metric: pearson` .or spearman, neg_mean_absolute_e"):
        stream(word_tokenizer(), {"data_files": sizes(tmp_path)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenario": "class"}, "scenario: 'class' is not allowed with metric 'matthews' of task 'mood': the task of"),
        ({"scenario": "domain"}, "metric 'pearson' of task 'size': all tasks share one head, and 'mood' has another"),
        ({"method": {"name": "joint"}}, "classes and numbers have no loss in common"),
        ({"model": {"path": "m", "kind": "causal-lm"}}, "'matthews' is not allowed with model.kind 'causal-lm'"),
    ],
)
def test_what_has_no_meaning_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = mixed("m", tmp_path)
    made.pop("heads")
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(made | change)


def test_numbers_have_no_classes_and_errors_no_share(tmp_path: Path) -> None:
    made = mixed("m", tmp_path)
    made["tasks"][1] |= {"split_by_class": 2}
    with pytest.raises(ConfigError, match=r"tasks.1.split_by_class: 2 is not allowed with metric 'pearson'"):
        parse(made)
    made["tasks"][0] |= {"unit": 2}
    with pytest.raises(ConfigError, match=r"tasks.0.unit: 2 is not allowed without a metric of numbers"):
        parse(made)
    made["tasks"][0] |= {"unit": None}
    made["tasks"][1] |= {"split_by_class": None, "metric": "neg_mean_absolute_error"}
    with pytest.raises(ConfigError, match="budget is '5%', and an error has no share to lose; expected nats"):
        parse(made | {"method": {"name": "ewc-lora", "strength": {"budget": "5%"}}})
