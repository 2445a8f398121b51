"""The table: one on a page, as many on a terminal as its width asks for, and what a reader has to know of it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from retain.commands.compare.tables import markdown, remarks, show
from retain.commands.many.spread import spread

KINDS = {"learned": 8, "anchor": 2048, "fisher": 6144}
AFTER = {"1": 4000, "2": 4000 + 1536, "3": 4000 + 3072}


def method(mean: float = 0.7, seeds: int = 2, **change: Any) -> dict[str, Any]:
    values = spread([mean + 0.01 * s for s in range(seeds)])
    keys = ("average_accuracy", "average_incremental_accuracy", "learning_accuracy", "intransigence", "forgetting")
    found = {
        "knob": {"keyword": "strength", "value": 30.0, "tuned": True},
        "scores": dict.fromkeys(keys, values),
        "difference": {"average_accuracy": {"mean": 0.05, "interval_95": [0.01, 0.08]}},
        "bytes": {
            "after": AFTER,
            "adapter": 2048,
            "state": 9000,
            "kinds": {"learned": 8, "anchor": 2048, "fisher": 6144},
        },
        "seconds_per_step": spread([0.125]),
        "seconds_per_boundary": spread([90.0]),
        "cumulative": False,
    }
    return found | change


def comparison(**change: Any) -> dict[str, Any]:
    less = {"after": {1: 2048, 2: 2060}, "adapter": 2048, "state": 300, "kinds": {"learned": 8}}
    plain = method(0.6, knob=None, difference={}, bytes=less)
    joint = method(0.8, knob=None, cumulative=True, seconds_per_step=None)
    joint["scores"] = joint["scores"] | {"forgetting": None, "intransigence": None}
    tuned = {"keyword": "strength", "tried": [3.0, 30.0, 1e5], "scores": [0.5, 0.61234, None], "chosen": 30.0}
    found = {
        "methods": {"sequential": plain, "ewc-lora": method(), "joint": joint},
        "against": "sequential",
        "unit": "accuracy",
        "verdict": {"better": ["ewc-lora"], "worse": [], "not told apart": ["joint"]},
        "seeds": [0, 1],
        "budget": {"name": "full", "tries": 3, "max_train": None, "max_test": None},
        "intransigence": {"reference": "joint", "each_task_alone": False},
        "machine": {"cores": 2, "jobs": 2, "threads": 1},
        "seconds": {"wall": 125.0, "runs": 240.0, "tuning": 60.0},
        "tuning": {"ewc-lora": tuned | {"at_the_edge": False}},
        "left_out": {},
        "failed": {},
    }
    return found | change


def shown(width: int, **change: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, comparison(**change))
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|│ \n").replace("│", "|").split("|")]


EWC = ["strength 30", "0.705 ± 0.007", "+0.050 (+0.010 to +0.080)", "0.705 ± 0.007", "+0.705 ± 0.007", "–"]
EWC += ["0.705 ± 0.007", "+0.705 ± 0.007", "2.0 KiB", "fisher 6.0 KiB, anchor 2.0 KiB", "1.5 KiB", "125 ms", "1.5 min"]


def test_a_page_has_one_table() -> None:
    lines = markdown(comparison()).splitlines()
    titles = "method|tuned|final accuracy|vs sequential|AIA|forgetting|forgetting vs sequential|learning accuracy|"
    titles += "intransigence|adapter|kept beside it|a task adds|a step takes|a boundary"
    assert cells(lines[2]) == titles.split("|")
    assert cells(lines[4])[10:12] == ["–", "–"]
    assert cells(lines[5]) == ["`ewc-lora`", *EWC]
    joint = cells(lines[6])
    assert (joint[5], joint[8], joint[12]) == ("–", "–", "–")
    assert "| `ewc-lora` | strength | 3, 30, 100000 | 0.500, 0.612, failed | 30 |" in lines
    assert "![Bytes kept, adapter included](bytes.png)" in lines
    assert "## Tuning" not in markdown(comparison(tuning={}))
    edge = comparison()["tuning"]["ewc-lora"] | {"at_the_edge": True}
    assert "| 30 (at the edge) |" in markdown(comparison(tuning={"ewc-lora": edge}))


@pytest.mark.parametrize(("width", "tables"), [(260, 1), (120, 3), (80, 5)])
def test_a_terminal_has_as_many_as_it_takes(width: int, tables: int) -> None:
    text = shown(width)
    body = text.split("Final accuracy against")[0]
    assert body.count("┏") == tables and "…" not in body and max(map(len, body.splitlines())) <= width
    rows = [cells(line) for line in body.splitlines() if cells(line)[0] == "ewc-lora"]
    assert [cell for row in rows for cell in row[1:]] == EWC


def test_no_number_is_cut_off_beside_a_long_name() -> None:
    text = shown(80, methods={"ewc-lora:mode=merge,rank=8,decay=0.5": method()}).split("Final accuracy against")[0]
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert all(cell in text for cell in EWC)


def test_one_seed_has_no_spread() -> None:
    found = {"sequential": method(0.5, 1), "ewc": method(0.6, 1)}
    text = shown(260, methods=found, seeds=[0])
    assert "0.600 " in text and "±" not in text and "One seed, so no spread; intervals are 95 % over test rows" in text


def test_what_was_given_and_what_was_left_is_said() -> None:
    given = method(knob={"keyword": "strength", "value": 7.0, "tuned": False})
    left = method(knob={"keyword": "strength", "value": None, "tuned": False})
    auto, budget = (
        method(knob={"keyword": "strength", "value": value, "tuned": False}) for value in ("auto", {"budget": 0.05})
    )
    text = shown(260, methods={"a": given, "b": left, "c": auto, "d": budget})
    assert "strength 7 (given)" in text and "strength default" in text
    assert "strength auto (given)" in text and "strength {budget: 0.05} (given)" in text


def test_remarks() -> None:
    said = "\n".join(remarks(comparison()))
    assert "Final accuracy against sequential, by each interval alone: better: ewc-lora; not told apart: joint." in said
    assert "2 seeds on the same rows: mean ± standard deviation" in said
    assert "Budget 'full': all rows; 3 values of every knob tried on validation rows, under one other seed" in said
    assert "accuracy of joint, at the end of training on all tasks at once" in said
    assert "joint learns all tasks at once and needs all their rows" in said and "sequential learns" not in said
    assert (
        "Took 2.1 min on 2 cores, runs at a time: 2, threads each: 1. One after the other the runs took 4.0 min" in said
    )
    alone = {"reference": "per-task", "each_task_alone": True}
    assert "accuracy of per-task, each task learned alone" in "\n".join(remarks(comparison(intransigence=alone)))
    less = comparison(
        verdict={"better": [], "worse": [], "not told apart": []},
        budget={"name": "small", "tries": 1, "max_train": 50, "max_test": None},
        intransigence=None,
        left_out={"olora": "method.x: no"},
        failed={"ewc, seed 1": "killed by signal 9 (a/b.log)"},
    )
    said = "\n".join(remarks(less))
    assert "Final accuracy" not in said and "needs per-task or joint" in said
    assert "Budget 'small': at most 50 training rows a task, nothing tuned." in said
    assert "Left out: olora: method.x: no" in said and "Failed: ewc, seed 1: killed by signal 9 (a/b.log)" in said
