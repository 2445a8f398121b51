"""What a run reports, against numbers worked out by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from retain.calibration import calibrate
from retain.config import parse
from retain.evaluate import Score
from retain.results import headline, record, results, row_losses

pytestmark = pytest.mark.usefixtures("fast_runs")

# Rows right with the task known: "a" has four test rows, "b" two.
KNOWN = [("1100", "10"), ("1111", "10"), ("0011", "11")]
UNKNOWN = [("0000", "00"), ("1110", "00"), ("0001", "11")]
FOUND = [("0000", "00"), ("1111", "00"), ("0101", "11")]
BEFORE = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([1.0, 1.0])}
AFTER = {"a": torch.tensor([0.3, 0.4, 0.5, 0.8]), "b": torch.tensor([0.0, 4.0])}


def bits(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


def stages(learned: tuple[int, ...] = (0, 1, 2), groups: bool = True) -> list[dict[str, Any]]:
    records = []
    for t in learned:
        scores = {}
        for i, name in enumerate("ab"):
            known, unknown, found = (bits(rows[t][i]) for rows in (KNOWN, UNKNOWN, FOUND))
            scores[name] = Score(len(known), 0.5 * t + i + 1 / 3, known, *((unknown, found) if groups else ()))
        stage = record(t - 1, scores) | {"boundary": {"fold_error": 0.1} if t == 2 else {}, "warnings": []}
        stage["seconds"] = {"evaluate": 1.5} | ({"train": 2.25, "boundary": 0.5} if t else {})
        records.append(stage | ({"bytes": {"adapter": 10 * t, "state": t}} if t else {}))
    return records


def summary(scenario: str = "task", **stage: Any) -> dict[str, Any]:
    tasks = [{"name": name, "path": "json", "data_files": "x"} for name in "ab"]
    config = parse({"model": {"path": "m"}, "tasks": tasks, "scenario": scenario, "seed": 4})
    stream: Any = SimpleNamespace(tasks=[SimpleNamespace(name=name) for name in "ab"])
    return results(config, stream, stages(**stage))


def test_a_record_is_json_that_keeps_every_outcome() -> None:
    stage = stages()[1]
    assert json.loads(json.dumps(stage)) == stage
    assert stage["learned"] == 1
    assert stage["tasks"]["a"] == {
        "rows": 4,
        "loss": 0.5 + 1 / 3,
        "known": "1111",
        "unknown": "1110",
        "task_found": "1111",
    }
    assert "unknown" not in stages(groups=False)[0]["tasks"]["a"]


def test_the_matrices_by_hand() -> None:
    known, unknown = [[0.5, 0.5], [1, 0.5], [0.5, 1]], [[0, 0], [0.75, 0], [0.25, 1]]
    found = [[0, 0], [1, 0], [0.5, 1]]
    task, classes, domain = summary("task"), summary("class"), summary("domain", groups=False)
    assert task["accuracy"]["matrix"] == known == domain["accuracy"]["matrix"]
    assert task["accuracy_task_unknown"]["matrix"] == unknown == classes["accuracy"]["matrix"]
    assert classes["accuracy_task_known"] == task["accuracy"]
    assert task["task_found"]["matrix"] == classes["task_found"]["matrix"] == found
    assert not [key for key in domain if key.startswith(("accuracy_", "task_found"))]
    assert task["loss"]["matrix"] == [[0.333333, 1.333333], [0.833333, 1.833333], [1.333333, 2.333333]]


def test_the_scores_by_hand() -> None:
    scores = summary()["accuracy"]["scores"]
    expected = {
        "average_accuracy": 0.75,
        "pooled_accuracy": 0.666667,  # 4 of 6 rows
        "learning_accuracy": 1,
        "forgetting": 0.5,
        "backward_transfer": -0.5,
        "intransigence": None,
    }
    assert {name: scores[name] for name in expected} == expected
    for low, high in summary()["accuracy"]["intervals_95"].values():
        assert low <= high


def test_everything_else_of_the_summary() -> None:
    found = summary()
    assert list(found)[:5] == ["retain", "method", "scenario", "seed", "tasks"]
    assert (found["scenario"], found["seed"], found["tasks"]) == ("task", 4, ["a", "b"])
    assert found["bytes"] == {"adapter": 20, "state": 2}
    assert found["boundary"] == {"after 2": {"fold_error": 0.1}}
    assert found["seconds"] == {"evaluate": 4.5, "train": 4.5, "boundary": 1.0}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_joint_training_has_no_rows_in_between() -> None:
    found = summary(learned=(0, 2))
    assert found["accuracy"]["matrix"] == [[0.5, 0.5], [None, None], [0.5, 1]]
    assert found["accuracy"]["scores"]["average_accuracy"] == 0.75
    assert found["accuracy"]["scores"]["forgetting"] is None
    assert found["accuracy"]["intervals_95"]["forgetting"] == [None, None]
    assert None not in found["accuracy"]["intervals_95"]["average_accuracy"]


def test_headlines() -> None:
    records = stages()
    assert headline("the untouched model", records[:1], "task") == "[dim]the untouched model:[/] accuracy 0.500 0.500"
    assert headline("a", records[:2], "task") == "[bold]a[/] learned: 1.000"
    assert headline("a", records[:2], "class") == "[bold]a[/] learned: 0.750"
    after = "[bold]b[/] learned: 1.000; the 1 before: 0.500 (-0.500 since learned)"
    assert headline("b", records, "task") == after
    assert headline("b", stages(groups=False), "domain") == after
    assert headline("joint", stages(learned=(0, 2)), "task") == "[bold]joint[/] learned: 1.000"


def test_what_is_kept_to_compare_with_is_small() -> None:
    scores = {name: Score(len(losses), 0.0, losses=losses.double()) for name, losses in BEFORE.items()}
    assert {name: (t.dtype, t.tolist()) for name, t in row_losses(scores).items()} == {
        name: (torch.float32, t.tolist()) for name, t in BEFORE.items()
    }


def test_calibration_and_warnings_are_in_the_summary() -> None:
    tasks = [{"name": name, "path": "json", "data_files": "x"} for name in "ab"]
    stream: Any = SimpleNamespace(tasks=[SimpleNamespace(name=name) for name in "ab"])
    records = stages()
    found = calibrate({"total": 0.05}, {"a": 1.0}, BEFORE, AFTER)
    records[2] |= {"calibration": found, "warnings": ["frozen"]}
    whole = results(parse({"model": {"path": "m"}, "tasks": tasks}), stream, records)
    assert whole["calibration"] == [{"after": 2, **found}] and whole["warnings"] == {"after 2": ["frozen"]}
    assert summary()["calibration"] == [] and summary()["warnings"] == {}


def test_a_headline_says_what_was_foreseen_in_words() -> None:
    records = stages()
    records[2]["calibration"] = calibrate({"total": 0.05}, {"a": 1.0}, BEFORE, AFTER)
    line = headline("b", records, "task").splitlines()[1]
    told = "their test loss in nats an example[/] rose by 0.250 ± 0.050; foreseen 0.05, 1/5.0 of it"
    assert line.endswith(told) and "summed" not in line
    records[2]["calibration"] = calibrate({"total": 0.05}, {"a": 1.0, "b": 1.0}, AFTER, BEFORE)
    line = headline("b", records, "task").splitlines()[1]
    assert line.endswith("an example (summed)[/] changed by -1.250 ± 2.001, no clear rise; foreseen +0.05")
