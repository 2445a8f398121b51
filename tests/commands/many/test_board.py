"""What is said while a comparison works, and how long it says that it will take."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compared import pretend, stream
from retain.commands.many.board import Board, remaining
from retain.commands.many.cells import Cell

KNOWN = {"ewc": [10.0, 20.0], "share": [60.0]}

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.mark.parametrize(
    ("waiting", "running", "jobs", "expected"),
    [
        ([], [], 1, 0.0),
        (["ewc"] * 3, [], 1, 45.0),
        (["ewc"] * 3, [], 3, 15.0),
        (["olora"], [], 1, 30.0),  # the mean of all
        (["ewc"], [("ewc", 5.0)], 1, 25.0),
        (["ewc"], [("ewc", 50.0)], 1, 20.0),  # longer than expected: what is left of it is not known
        (["ewc"], [("share", 0.0)], 2, 60.0),  # no shorter than the longest run
    ],
)
def test_the_time_that_is_left(waiting: list, running: list, jobs: int, expected: float) -> None:
    assert remaining(waiting, running, KNOWN, jobs) == pytest.approx(expected)


def test_nothing_is_known_before_the_first_run_has_ended() -> None:
    assert remaining(["ewc"], [("ewc", 9.0)], {}, 1) is None
    assert remaining([], [], {}, 1) == 0.0


def board(console: Console, waiting: list[str], **options: Any) -> tuple[Board, list[Any]]:
    noted: list[Any] = []
    made = Board(console, waiting, options.pop("done", 0), {}, 1, lambda *told: noted.append(told))
    return made, noted


def test_a_line_a_run_where_nobody_watches(tmp_path: Path) -> None:
    out = Console(file=io.StringIO(), width=80)
    one, other = (Cell(n, f"{n}, seed 0", stream(tmp_path / n)) for n in ("ewc", "eblora:energy=[0.9]"))
    shown, noted = board(out, ["ewc", "eblora:energy=[0.9]", "share", "share"], done=3)
    with shown:
        shown.started(one)
        shown.look()
        pretend(one, 0.75)
        shown.look()
        shown.ended(one, 90.0, None)
        shown.dropped("share", 2)
        shown.started(other)
        shown.ended(other, 2.0, "lower [the] rate")
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    text = "\n".join(line for line in lines if line.strip())
    assert re.fullmatch(
        r"4/7 ewc, seed 0: accuracy 0\.\d{3}, forgetting \+0\.000, 1\.5 min; about 4\.5 min left\n"
        rf"5/5 eblora:energy=\[0\.9\], seed 0: failed: lower \[the\] rate \({re.escape(str(other.log))}\)",
        text,
    ), text
    assert noted == [("ewc, seed 0", 90.0), ("eblora:energy=[0.9], seed 0", 2.0)]
    assert shown.durations == {"ewc": [90.0]} and not shown.running


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_sees_what_is_at_work(tmp_path: Path, width: int) -> None:
    out = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)
    one = Cell("ewc", "ewc, tuning strength 100", stream(tmp_path / "ewc"))
    shown, _ = board(out, ["ewc", "ewc"])
    with shown:
        shown.started(one)
        shown.look()
        shown.progress.refresh()
        starting = out.file.getvalue()  # type: ignore[attr-defined]
        pretend(one, 0.75)
        (one.folder / "tasks" / "02-c" / "done").unlink()
        shown.look()
        shown.progress.refresh()
    text = out.file.getvalue()[len(starting) :]  # type: ignore[attr-defined]
    assert "0 of 2 runs" in starting and "starting, " in starting
    assert "ewc, tuning strength 100" in text and "2 of 3 learned, " in text
