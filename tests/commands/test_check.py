"""``retain check``: verdicts with their noise, and exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retain import cli
from retain.commands.check import Bound, check, judged
from retain.run import run
from retain.store import StoreError
from runs import LEARNING, quiet, settings
from streams import jsonl

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.mark.parametrize(
    ("text", "value", "unit"), [("2%", 0.02, "%"), ("0.02", 0.02, ""), (".5 nats", 0.5, "nats"), ("0", 0.0, "")]
)
def test_bounds_are_shares_points_or_nats(text: str, value: float, unit: str) -> None:
    assert Bound.parse(text) == Bound(pytest.approx(value), unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["two", "-1%", "2 bits", ""])
def test_other_bounds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--max-forgetting: .* expected a share .* 2%"):
        Bound.parse(text)


@pytest.mark.parametrize(
    ("wrong", "rows", "verdict"), [(0, 50, "fine"), (2, 20, "cannot tell"), (20, 50, "too much"), (20, 2000, "fine")]
)
def test_too_much_is_what_the_whole_interval_says(wrong: int, rows: int, verdict: str) -> None:
    now = [0.0] * wrong + [1.0] * (rows - wrong)
    assert judged("mood", [[1.0] * rows, now], Bound(0.05, "%"))[0] == verdict


def test_a_loss_that_rises_is_lost() -> None:
    then, now = [-0.1, -0.2, -0.3], [-1.1, -1.2, -1.3]
    verdict, line = judged("mood", [then, now], Bound(0.5, "nats"))
    assert verdict == "too much" and line.startswith("mood: 0.200 -> 1.200, lost 1.000 nats, 95 % within 1.000 nats")
    assert judged("mood", [now, then], Bound(0.0, "nats"))[0] == "fine"


def test_of_nothing_there_is_no_share() -> None:
    assert judged("mood", [[0.0] * 5, [0.0] * 5], Bound(0.02, "%"))[0] == "cannot tell"


@pytest.fixture(scope="module")
def finished(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks whose labels contradict each other under one head: the first is forgotten for certain."""
    folder, tasks = tmp_path_factory.mktemp("run"), []
    for name, labels in (("one", ("sad", "glad")), ("other", ("glad", "sad"))):
        content = [
            {"text": f"{word} {i}", "label": labels[k]} for k, word in enumerate(("alpha", "beta")) for i in range(40)
        ]
        tasks.append({"name": name, "path": "json", "data_files": jsonl(folder / f"{name}.jsonl", content)})
    config = settings(bert, folder, tasks=tasks, scenario="domain", training=LEARNING)
    run(config, quiet())
    return Path(config.output)


@pytest.mark.parametrize("bound", ["2%", "0.02", "0.05nats"])
def test_what_is_forgotten_ends_with_exit_code_2(
    finished: Path, bound: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["retain", "check", str(finished), "--max-forgetting", bound])
    with pytest.raises(SystemExit) as done:
        cli.main()
    first, last = capsys.readouterr().out.strip().splitlines()
    assert done.value.code == 2
    assert first.startswith("one: ") and first.endswith("too much")
    assert last == "other: learned last, nothing to forget yet"


def test_a_wide_bound_is_kept_and_a_folder_without_a_run_is_an_error(finished: Path, tmp_path: Path) -> None:
    assert check(finished, Bound.parse("100%"), quiet())
    with pytest.raises(StoreError, match="holds no finished run"):
        check(tmp_path, Bound.parse("2%"), quiet())
