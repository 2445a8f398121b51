"""Comparisons whose runs train: no test row serves for tuning, and what was killed goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compared import Ended
from retain import config as configuration
from retain.commands.compare import command, compare, summary
from retain.commands.many import cells
from retain.commands.many.cells import Cell
from retain.run import run
from runs import LEARNING, document, quiet, yaml_file
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


@pytest.mark.slow
def test_kill_9(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A true comparison, killed with a run at work, does not leave its folder to a second one and then goes on."""
    file = yaml_file(tiny, tmp_path / "stream.yaml")
    asked = [sys.executable, "-m", "retain", "compare", file, "--methods", "olora", "--seeds", "1"]
    asked += ["--tries", "2", "--jobs", "1"]
    folder, environment = tmp_path / "x-compare", os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, env=environment)
    while not list(folder.glob("tuning/*/*/base/done")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    second = subprocess.run(asked, capture_output=True, text=True, env=environment)
    if second.returncode:  # unless the runs that were left behind had ended meanwhile
        assert second.stderr.startswith("error: ") and "a run that outlived one" in second.stderr
        for _ in range(600):
            second = subprocess.run(asked, capture_output=True, text=True, env=environment)
            if not second.returncode:
                break
            time.sleep(0.5)
    assert second.returncode == 0, second.stderr
    assert list(written(folder)["methods"]) == ["olora"]
    assert "3/3 " in second.stdout and "olora, seed 0: accuracy" in second.stdout
