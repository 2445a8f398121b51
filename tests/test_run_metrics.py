"""Runs whose tasks are not all scored by accuracy: regressions beside classes, and everything that reads them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import pearsonr
from sklearn.metrics import matthews_corrcoef

from retain import store
from retain.commands.check import Bound, check
from retain.commands.table import print_scores
from retain.config import ConfigError, parse
from retain.data import DataError
from retain.report.page import page
from retain.report.read import read_run
from retain.results import row_scores
from retain.run import run
from retain.summaries import read_results
from retain.task import CrossEntropy, SquaredError
from retain.trackers import reading
from runs import LEARNING, document, quiet
from streams import WORDS, jsonl, stream, word_tokenizer

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
    with pytest.warns(UserWarning, match="task 't0': the standard deviation of its numbers is .*e.03"):
        stream(word_tokenizer(), {"data_files": file, "metric": "pearson"})


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
    with pytest.raises(DataError, match="of a regression, say `metric: pearson` .or spearman, neg_mean_absolute_error"):
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
    made["tasks"][1] |= {"split_by_class": None, "metric": "neg_mean_absolute_error"}
    with pytest.raises(ConfigError, match="budget is '5%', and an error has no share to lose; expected nats"):
        parse(made | {"method": {"name": "ewc-lora", "strength": {"budget": "5%"}}})
