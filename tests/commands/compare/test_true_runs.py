"""Comparisons whose runs train: no test row serves for tuning, and what was killed goes on."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compared import Ended
from processes import Forked, can_fork
from retain import config as configuration
from retain.commands.compare import command, compare, summary
from retain.commands.many import cells
from retain.commands.many.cells import Cell
from retain.run import run
from retain.store import StoreError
from runs import LEARNING, document, quiet
from streams import jsonl, rows

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PAUSE", 0.001)
    monkeypatch.setattr(summary, "REPLICATES", 20)
    monkeypatch.setattr(command, "draw", lambda _, folder: (folder / "drawn").touch())


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


@pytest.fixture
def tiny(bert: str, tmp_path: Path) -> dict[str, Any]:
    """Two tasks of few rows, whose test rows are in files of their own."""
    content = document(bert, tmp_path, "mood sport", training=LEARNING | {"max_steps": 2}, output=str(tmp_path / "x"))
    for task in content["tasks"]:
        labels = {"mood": ["glad", "sad"], "sport": ["loss", "win"]}[task["name"]]
        test = jsonl(tmp_path / f"{task['name']}-test.jsonl", rows(labels, 4))
        task["data_files"] = {"train": task["data_files"], "test": test}
    return content


@pytest.mark.slow
def test_no_test_row_is_read_before_the_choice_is_made(tiny: dict[str, Any], tmp_path: Path) -> None:
    files, output = [tmp_path / f"{name}-test.jsonl" for name in ("mood", "sport")], tmp_path / "out"
    contents = [file.read_text() for file in files]

    def start(cell: Cell) -> Ended:
        tuning = cell.config.evaluation.rows == "validation"
        assert tuning != (output / "tuning.json").exists()  # with one run at a time
        for file, content in zip(files, contents, strict=True):
            file.write_text("not for you" if tuning else content)
        run(cell.config, quiet())
        return Ended()

    asked = ["sequential", "olora"]
    assert compare(
        configuration.parse(tiny), asked, seeds=1, tries=2, output=output, console=quiet(), start=start, jobs=1
    )
    content = written(output)
    assert content["tasks"] == ["mood", "sport"] and content["methods"]["olora"]["bytes"]["kinds"]["past"] > 0
    assert content["methods"]["olora"]["scores"]["average_accuracy"]["mean"] is not None
    assert content["methods"]["sequential"]["seconds_per_step"]["mean"] > 0


@can_fork
@pytest.mark.slow
def test_kill_9(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A comparison, killed with a run at work, does not leave its folder to a second one and then goes on."""
    config, folder = configuration.parse(tiny), tmp_path / "x-compare"

    def work(console: Console) -> None:
        def start(cell: Cell) -> Forked:
            return Forked(lambda: run(cell.config, quiet()) and None)

        assert compare(config, ["olora"], seeds=1, tries=2, jobs=1, console=console, start=start)

    first = Forked(lambda: work(quiet()))
    while not list(folder.glob("tuning/*/*/base/done")):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    said = io.StringIO()
    for _ in range(6000):
        try:
            work(Console(file=said, width=80))
            break
        except StoreError as error:  # unless the run that was left behind had ended meanwhile
            assert "a run that outlived one" in str(error)
            time.sleep(0.05)
    assert list(written(folder)["methods"]) == ["olora"]
    assert "3/3 " in said.getvalue() and "olora, seed 0: accuracy" in said.getvalue()
