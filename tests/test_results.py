"""What a run reports, against numbers worked out by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from retain.config import parse
from retain.evaluate import Score
from retain.results import calibrate, doubts, headline, in_words, record, results, row_losses, share_in_words

pytestmark = pytest.mark.usefixtures("fast_runs")

# Rows right with the task known: "a" has four test rows, "b" two.
KNOWN = [("1100", "10"), ("1111", "10"), ("0011", "11")]
UNKNOWN = [("0000", "00"), ("1110", "00"), ("0001", "11")]
FOUND = [("0000", "00"), ("1111", "00"), ("0101", "11")]


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


# --- Calibration -----------------------------------------------------------------------------------------------------

BEFORE = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([1.0, 1.0]), "c": torch.tensor([5.0])}
AFTER = {"a": torch.tensor([0.3, 0.4, 0.5, 0.8]), "b": torch.tensor([0.0, 4.0]), "c": torch.tensor([0.5])}


def test_a_rise_is_measured_row_by_row() -> None:
    """Of "a" the rows rise by .2 .2 .2 .4, of "b" by -1 and 3: means .25 and 1, standard errors .05 and 2."""
    found = calibrate({"total": 0.1}, {"a": 1.0, "b": 0.5}, BEFORE, AFTER)
    assert json.loads(json.dumps(found)) == found
    a, b = found["tasks"]["a"], found["tasks"]["b"]
    assert (a["measured"], a["standard_error"]) == pytest.approx((0.25, 0.05), abs=2e-6)
    assert (b["measured"], b["standard_error"]) == pytest.approx((1.0, 2.0), abs=2e-6)
    assert a["foreseen"] is b["foreseen"] is a["ratio"] is b["ratio"] is None
    assert found["total"]["measured"] == pytest.approx(0.25 + 0.5 * 1, abs=2e-6)
    assert found["total"]["standard_error"] == pytest.approx((0.05**2 + 1.0**2) ** 0.5, abs=2e-6)
    assert (found["total"]["foreseen"], found["total"]["ratio"]) == (0.1, None)  # it could be chance


def test_a_ratio_is_given_where_the_rise_is_clear() -> None:
    found = calibrate({"total": 0.05, "a": 0.01}, {"a": 1.0}, BEFORE, AFTER)
    assert found["total"]["ratio"] == pytest.approx(0.2, rel=1e-5) and found["tasks"]["a"]["ratio"] == pytest.approx(
        0.04
    )
    fallen = calibrate({"total": 0.05}, {"a": 1.0}, AFTER, BEFORE)
    assert fallen["total"]["measured"] < 0 and fallen["total"]["ratio"] is None


def test_one_row_has_no_standard_error() -> None:
    found = calibrate({"total": 0.05}, {"a": 1.0, "c": 1.0}, AFTER, BEFORE)
    assert found["tasks"]["c"]["standard_error"] is found["total"]["standard_error"] is found["total"]["ratio"] is None
    assert found["total"]["measured"] == pytest.approx(4.25, abs=1e-5)
    json.dumps(found, allow_nan=False)


def test_what_is_kept_to_compare_with_is_small() -> None:
    scores = {name: Score(len(losses), 0.0, losses=losses.double()) for name, losses in BEFORE.items()}
    assert {name: (t.dtype, t.tolist()) for name, t in row_losses(scores).items()} == {
        name: (torch.float32, t.tolist()) for name, t in BEFORE.items()
    }


def rise(foreseen: float, measured: float, error: float | None = 0.01) -> dict[str, Any]:
    clear = error is not None and measured > 2 * error
    ratio = foreseen / measured if clear else None
    return {"foreseen": foreseen, "measured": measured, "standard_error": error, "ratio": ratio}


@pytest.mark.parametrize(
    ("strength", "foreseen", "measured", "said"),
    [
        (1.0, 0.001, 0.5, "protecting them weighed 0.001: the protection is inert. method.strength is 1: raise it "),
        (2.0, 0.001, 0.5, "raise it (about 500 would weigh a nat lost like a nat gained)"),
        (1.0, 0.0, 0.5, "raise it (far more would weigh a nat lost"),
        (10.0, 0.001, 0.5, ""),  # 2 % of a nat paid for a nat lost
        (0.0, 0.001, 0.5, ""),  # nothing was to be protected
        (1.0, 1e-6, 0.015, ""),  # the rise could be chance
        (1.0, 1e-6, -0.5, ""),
        (100.0, 0.02, 0.5, ""),  # it pays as much as there was to gain
        (100.0, 0.0201, 0.5, "more than the whole loss of 2 that there was to gain: the protection dominates"),
        (1e6, 0.0201, 0.0, "method.strength is 1e+06: lower it, or the learning rate"),
    ],
)
def test_an_inert_and_a_dominating_protection_are_told_of(
    strength: float, foreseen: float, measured: float, said: str
) -> None:
    calibration = {"total": rise(foreseen, measured), "tasks": {"a": {}}}
    found = doubts(calibration, strength, "b", loss=2.0)
    assert len(found) == bool(said) and said in "".join(found)


def test_a_clear_rise_that_is_slight_worries_nobody() -> None:
    for tasks, told in ({"a": {}}, True), ({"a": {}, "b": {}}, False):
        assert bool(doubts({"total": rise(1e-9, 0.015, 0.001), "tasks": tasks}, 1.0, "c", 2.0)) is told


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


def test_a_rise_in_words_without_a_standard_error() -> None:
    assert in_words(rise(0.5, 4.25, None)) == "changed by +4.250, no clear rise; foreseen +0.5"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1 / 330, "1/330 of it"),
        (0.105, "1/9.5 of it"),
        (0.5, "1/2.0 of it"),
        (0.9, "0.9 times that"),
        (7.25, "7.2 times that"),
        (0.0, "0 times that"),
        (-0.2, "-0.2 times that"),
    ],
)
def test_a_ratio_in_words(ratio: float, words: str) -> None:
    assert share_in_words(ratio) == words
