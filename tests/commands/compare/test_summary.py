"""What runs amount to, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compared import pretend, stream
from method_oracles import paired_interval_by_loop
from retain import scores
from retain.commands.compare import summary
from retain.commands.compare.measure import ACCURACY, SCORE, measure_in, measure_of
from retain.commands.compare.summary import Run, read, summarise, verdict
from retain.commands.many.cells import Cell
from retain.commands.many.entries import Entry
from retain.metrics import Answered
from retain.store import StoreError

# Right rows of 10 and of 20, after every stage.
FORGETS = [[1, 9, 5], [2, 2, 18]]
KEEPS = [[1, 8, 7], [2, 2, 16]]
ALONE = [[1, 9, 9], [2, 2, 19]]
JOINT = [[1, None, 8], [2, None, 17]]


def run(right: list[list[int | None]], shift: int = 0, state: tuple[int, int] = (100, 100), pace: float = 2.0) -> Run:
    outcomes = []
    for hits, n in zip(right, (10, 20), strict=True):
        rows = [np.full(n, np.nan) if k is None else np.roll(np.arange(n) < k, shift).astype(float) for k in hits]
        outcomes.append(np.stack(rows))
    tasks: dict[str, Any] = {"a": {}, "b": {}}
    records: list[dict[str, Any]] = [{"learned": 0, "tasks": tasks, "seconds": {"evaluate": 1}}]
    for t in (1, 2):
        if right[0][t] is not None:
            sizes = {"adapter": 1000, "state": state[t - 1], "kinds": {"fisher": state[t - 1] - 8, "learned": 8}}
            seconds = {"train": pace, "boundary": t, "evaluate": 1}
            records.append({"learned": t, "tasks": tasks, "bytes": sizes, "seconds": seconds, "steps": 5 * t})
    return Run(records, outcomes)


def entry(label: str, name: str = "ewc") -> Entry:
    return Entry(label, {"name": name})


ENTRIES = [entry("sequential", "sequential"), entry("ewc"), entry("per-task", "per-task"), entry("joint", "joint")]


def compared(entries: list[Entry] = ENTRIES, **runs: dict[int, Run]) -> dict[str, Any]:
    there = {"sequential": {0: run(FORGETS), 1: run(FORGETS, 1)}, "ewc": {0: run(KEEPS), 1: run(KEEPS, 3)}}
    there |= {"per-task": {0: run(ALONE), 1: run(ALONE)}, "joint": {0: run(JOINT), 1: run(JOINT)}}
    found = summarise(entries, {e.label: (there | runs)[e.label] for e in entries}, "sequential")
    assert json.loads(json.dumps(found, allow_nan=False))["methods"].keys() == found["methods"].keys()
    return found


def test_correlations_are_compared_like_accuracies() -> None:
    wanted, rng = np.arange(30.0), np.random.default_rng(0)
    noises = {"sequential": (1, 9, 30), "ewc": (1, 9, 9)}
    runs = {}
    for label, sizes in noises.items():
        one = run(FORGETS)
        said = np.stack([wanted + size * rng.normal(size=30) for size in sizes])
        runs[label] = {0: Run(one.records, [Answered("pearson", said, wanted), one.outcomes[1]])}
    found = summarise(ENTRIES[:2], runs, "sequential", SCORE)
    ours, theirs = (runs[label][0].matrix[-1].mean() for label in ("ewc", "sequential"))
    difference = found["methods"]["ewc"]["difference"]["average_accuracy"]
    assert found["unit"] == "score" and measure_in("score") is SCORE
    assert measure_of("text", [None, "pearson"]) is SCORE and measure_of("text", [None, "accuracy"]) is ACCURACY
    assert difference["mean"] == pytest.approx(ours - theirs, abs=1e-6)
    low, high = difference["interval_95"]
    assert low < difference["mean"] < high


def test_scores_are_means_over_seeds() -> None:
    other = run([[1, 7, 3], [2, 2, 14]])
    found = compared(sequential={0: run(FORGETS), 4: other})["methods"]["sequential"]
    expected = {
        "average_accuracy": (0.7, 0.5),
        "average_incremental_accuracy": (0.8, 0.6),
        "forgetting": (0.4, 0.4),
        "learning_accuracy": (0.9, 0.7),
        "stability": (1 - 0.4 / 0.9, 1 - 0.4 / 0.7),
    }
    assert found["seeds"] == [0, 4]
    for name, values in expected.items():
        assert found["scores"][name]["by_seed"] == pytest.approx(values, abs=1e-6)
        assert found["scores"][name]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert found["scores"][name]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert [point["mean"] for point in found["curve"]] == pytest.approx([0.8, 0.6])


def test_what_does_not_exist_is_null() -> None:
    joint = compared(joint={0: run(JOINT)})["methods"]["joint"]
    assert joint["scores"]["forgetting"] is None and joint["scores"]["average_accuracy"]["std"] is None
    assert joint["curve"] == [None, {"mean": pytest.approx(0.825), "std": None, "by_seed": [0.825]}]
    assert set(joint["difference"]) == {"average_accuracy"}
    assert list(joint["bytes"]["after"]) == [2]


def test_intransigence_is_against_tasks_learned_alone_or_else_jointly() -> None:
    alone = compared()
    assert alone["intransigence"] == {"reference": "per-task", "each_task_alone": True}
    of = {label: found["scores"]["intransigence"] for label, found in alone["methods"].items()}
    assert of["ewc"]["mean"] == pytest.approx((0.9 - 0.8 + 0.95 - 0.8) / 2) and of["per-task"]["mean"] == 0
    assert of["joint"] is None
    joint = compared([e for e in ENTRIES if e.label != "per-task"])
    assert joint["intransigence"] == {"reference": "joint", "each_task_alone": False}
    assert joint["methods"]["ewc"]["scores"]["intransigence"]["mean"] == pytest.approx((0.8 - 0.8 + 0.85 - 0.8) / 2)
    none = compared(ENTRIES[:2])
    assert none["intransigence"] is none["methods"]["ewc"]["scores"]["intransigence"] is None
    some = compared(**{"per-task": {1: run(ALONE)}})["methods"]["ewc"]["scores"]["intransigence"]
    assert some["by_seed"] == [None, pytest.approx(0.125)] and some["std"] is None


def test_differences_are_paired_by_seed_and_row() -> None:
    ours, theirs = ({0: run(hits), 1: run(hits, 1), 2: run(hits, 2)} for hits in (KEEPS, FORGETS))
    found = compared(ENTRIES[:2], ewc=ours, sequential=theirs)["methods"]
    assert found["sequential"]["difference"] == {}
    means = {"average_accuracy": 0.05, "average_incremental_accuracy": -0.025, "forgetting": -0.3}
    for name, mean in means.items():
        difference, score = found["ewc"]["difference"][name], getattr(scores, name)
        assert difference["mean"] == pytest.approx(mean)
        outcomes = [[r.outcomes for r in runs.values()] for runs in (ours, theirs)]
        assert difference["interval_95"] == pytest.approx(paired_interval_by_loop(*outcomes, score), abs=0.04)


def test_seeds_that_one_of_them_lacks_do_not_count() -> None:
    worse = run([[1, 8, 0], [2, 2, 0]])
    found = compared(ENTRIES[:2], ewc={1: run(KEEPS), 0: worse}, sequential={2: run(KEEPS), 1: run(FORGETS)})
    assert found["methods"]["ewc"]["difference"]["average_accuracy"]["mean"] == pytest.approx(0.05)
    apart = compared(ENTRIES[:2], ewc={1: run(KEEPS)}, sequential={2: run(KEEPS)})
    assert apart["methods"]["ewc"]["difference"] == {} == apart["methods"]["sequential"]["difference"]


def test_a_method_without_runs_is_not_there_and_nobody_is_compared_with_it() -> None:
    found = compared(sequential={})
    assert list(found["methods"]) == ["ewc", "per-task", "joint"] and found["tasks"] == ["a", "b"]
    assert all(method["difference"] == {} for method in found["methods"].values())
    nothing = compared(ENTRIES[:2], sequential={}, ewc={})
    assert (nothing["methods"], nothing["tasks"]) == ({}, [])


def test_the_verdict() -> None:
    def difference(low: float, high: float) -> dict[str, Any]:
        return {"difference": {"average_accuracy": {"mean": 0.1, "interval_95": [low, high]}}}

    methods = {"s": {"difference": {}}, "up": difference(0.01, 0.2), "down": difference(-0.2, -0.01)}
    methods |= {"even": difference(-0.1, 0.1), "none": {"difference": {}}}
    assert verdict(methods, "s") == {"better": ["up"], "worse": ["down"], "not told apart": ["even"]}


def test_bytes_by_kind_and_by_task_and_seconds() -> None:
    found = compared(ewc={0: run(KEEPS, state=(50, 90), pace=3.0), 1: run(KEEPS, state=(60, 110), pace=6.0)})
    ewc = found["methods"]["ewc"]
    assert ewc["bytes"] == {
        "adapter": 1000,
        "state": 100,
        "kinds": {"fisher": 92, "learned": 8},
        "after": {1: 1055, 2: 1100},
    }
    assert ewc["seconds_per_step"]["by_seed"] == [6 / 15, 12 / 15]
    assert ewc["seconds_per_boundary"]["mean"] == 1.5


def test_a_run_is_read_from_its_folder_and_damage_is_refused(tmp_path: Path) -> None:
    cell = Cell("ewc", "ewc, seed 0", stream(tmp_path / "run"))
    pretend(cell, 0.6)
    found = read(cell)
    assert [record["learned"] for record in found.records] == [0, 1, 2, 3] and len(found.trained) == 3
    assert found.matrix == pytest.approx(np.array(cell.results()["accuracy"]["matrix"], dtype=float), abs=1e-6)
    (cell.folder / "tasks" / "01-b" / "scores.json").write_text("{}")
    with pytest.raises(StoreError, match=r"01-b/scores.json: damaged"):
        read(cell)


def test_of_class_incremental_streams_the_task_is_unknown(tmp_path: Path) -> None:
    cell = Cell("ewc", "ewc, seed 0", stream(tmp_path / "run", scenario="class"))
    pretend(cell, 0.6)
    record = cell.folder / "base" / "scores.json"
    content = json.loads(record.read_text())
    content["tasks"]["a"]["unknown"] = "0" * 40
    record.write_text(json.dumps(content))
    from retain import store

    store.close(cell.folder / "base")
    assert read(cell).matrix[0, 0] == 0


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "REPLICATES", 400)
