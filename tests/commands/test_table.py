"""Tables that fit an ordinary terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from retain.commands.table import print_comparison, print_scores


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def shown(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def results(tasks: int = 2, name: str = "task", **change: Any) -> dict[str, Any]:
    matrix = [[round((t + 1) / (i + 9), 6) for i in range(tasks)] for t in range(tasks + 1)]
    scores = {"average_accuracy": 0.75, "learning_accuracy": 1.0, "forgetting": 0.25, "backward_transfer": -0.25}
    intervals = {key: [value - 0.05, value + 0.05] for key, value in scores.items()}
    return {
        "method": {"name": "ewc-lora"},
        "scenario": "task",
        "tasks": [f"{name}{i}" for i in range(tasks)],
        "rows": "test",
        "accuracy": {"matrix": matrix, "scores": scores, "intervals_95": intervals},
        "bytes": {"adapter": 1_300_000, "state": 900},
        "seconds": {"train": 61.2, "evaluate": 3.4},
        "calibration": [],
        "warnings": {},
    } | change


def test_the_matrix_and_the_scores() -> None:
    out = console()
    print_scores(out, results())
    text = shown(out)
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert text.startswith("ewc-lora: test accuracy (task known)")
    assert ["nothing", "yet", "0.111", "0.100"] in lines and ["task1", "0.333", "0.300"] in lines
    assert "average accuracy    0.750  (95% over test rows: 0.700 to 0.800)" in text
    assert "backward transfer  -0.250  (95% over test rows: -0.300 to -0.200)" in text


@pytest.mark.parametrize(
    ("scenario", "kind"), [("task", "task known"), ("class", "task unknown"), ("domain", "one shared head")]
)
def test_what_accuracy_means_is_said(scenario: str, kind: str) -> None:
    out = console()
    print_scores(out, results(scenario=scenario))
    assert f"test accuracy ({kind})" in shown(out)


def test_rows_that_were_not_measured_and_scores_that_do_not_exist_are_left_out() -> None:
    joint = results()
    joint["accuracy"]["matrix"][1] = [None, None]
    joint["accuracy"]["matrix"][2][1] = None
    joint["accuracy"]["scores"]["forgetting"] = None
    out = console()
    print_scores(out, joint)
    assert "task0 │" not in shown(out) and "·" in shown(out) and "forgetting" not in shown(out)


@pytest.mark.parametrize(("tasks", "width", "whole"), [(2, 40, True), (9, 300, True), (9, 80, False), (20, 80, False)])
def test_no_number_is_cut_off(tasks: int, width: int, whole: bool) -> None:
    """A matrix that the terminal has no room for comes down to its first row, its diagonal and its last row."""
    found, out = results(tasks, "cifar100-"[: width // 6]), console(width)
    print_scores(out, found)
    matrix, text = found["accuracy"]["matrix"], shown(out).split("average accuracy")[0]
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert ("results.json has the whole matrix" in text) == (not whole)
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    for i, name in enumerate(found["tasks"]):
        values = matrix[i + 1] if whole else [matrix[0][i], matrix[i + 1][i], matrix[-1][i]]
        assert [name, *[f"{value:.3f}" for value in values]] in lines


def test_a_comparison_fits_a_terminal() -> None:
    out = console()
    runs = {name: results() for name in ("sequential", "ewc-lora", "joint")}
    runs["joint"]["accuracy"]["scores"]["forgetting"] = None
    print_comparison(out, runs)
    assert max(map(len, shown(out).splitlines())) <= 80
    lines = [line.replace("│", " ").split() for line in shown(out).splitlines()]
    assert ["sequential", "0.750", "+0.250", "1.000", "1.2", "MiB", "900", "B", "65"] in lines
    assert ["joint", "0.750", "·", "1.000", "1.2", "MiB", "900", "B", "65"] in lines


def rise(foreseen: float | None, measured: float, error: float | None, ratio: float | None) -> dict[str, Any]:
    return {"foreseen": foreseen, "measured": measured, "standard_error": error, "ratio": ratio}


BOUNDARIES = [
    {"after": 2, "total": rise(0.004, 0.12, 0.02, 1 / 30), "tasks": {"task0": rise(None, 0.12, 0.02, None)}},
    {
        "after": 3,
        "total": rise(0.25, 0.2, 0.03, 1.25),
        "tasks": {"task0": rise(0.2, 0.21, 0.02, 0.95), "task1": rise(0.05, -0.01, None, None)},
    },
]


def test_what_was_foreseen_stands_beside_what_came_of_it() -> None:
    out = console()
    print_scores(out, results(3, calibration=BOUNDARIES))
    text = shown(out)
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    for line in (
        "task1 task0 +0.120 ± 0.020 0.004 1/30 of it",
        "task2 all 2, summed +0.200 ± 0.030 0.25 1.2 times that",
        "task0 +0.210 ± 0.020 0.2 0.95 times that",
        "task1 -0.010 0.05 no clear rise",
    ):
        assert line in lines
    assert "earlier tasks' test loss" in text and max(map(len, text.splitlines())) <= 80
    plain = console()
    print_scores(plain, results())
    assert "foreseen" not in shown(plain)


def test_tasks_that_were_not_told_apart_are_not_listed() -> None:
    out = console()
    tasks = {name: rise(None, 0.1, 0.02, None) for name in ("task0", "task1")}
    print_scores(out, results(3, calibration=[{"after": 3, "total": rise(0.1, 0.2, 0.03, 0.5), "tasks": tasks}]))
    lines = [line.replace("│", " ").split() for line in shown(out).splitlines()]
    assert [line[:3] for line in lines if "0.1" in line] == [["task2", "all", "2,"]]


def test_warnings_are_shown_again_at_the_end() -> None:
    out = console()
    print_scores(out, results(warnings={"after 2": ["it is frozen [bold]", "and inert"], "after 3": ["still"]}))
    assert shown(out).endswith("it is frozen [bold]\nand inert\nstill\n")
