"""The whole of a comparison: what is run, what is run again, what is refused, and what is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compared import Ended, pretend, starter, stream
from retain import config as configuration
from retain.commands.compare import cells, command, compare, comparison, summary
from retain.commands.compare.cells import Cell
from retain.run import run
from retain.store import StoreError
from runs import LEARNING, document, left_by, quiet, yaml_file
from streams import jsonl, rows

pytestmark = pytest.mark.usefixtures("fast_runs")

METHODS = ["sequential", "ewc", "olora", "per-task"]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PAUSE", 0.001)
    monkeypatch.setattr(summary, "REPLICATES", 20)
    monkeypatch.setattr(command, "draw", lambda _, folder: (folder / "drawn").touch())


def middling(cell: Cell) -> float:
    """The middle value of three does best on validation rows, the first on test rows."""
    strength = cell.config.method.get("strength", 100)
    return {10: 0.9, 100: 0.6, 1000: 0.5}[strength] if cell.config.evaluation.rows is None else 0.1 * (strength == 100)


def names(started: list[Cell]) -> list[str]:
    return [cell.name for cell in started]


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


def test_every_knob_is_tuned_alike_and_then_every_method_runs_under_every_seed(tmp_path: Path) -> None:
    start, started = starter(middling)
    out = quiet()
    config = stream(tmp_path / "x", seed=5, method={"name": "ewc", "decay": 0.5})
    assert compare(config, METHODS, seeds=2, tries=3, output=tmp_path / "out", console=out, start=start, jobs=1)
    tuning = [cell for cell in started if cell.config.evaluation.rows == "validation"]
    assert started[: len(tuning)] == tuning  # with one run at a time
    assert names(tuning) == [f"ewc, tuning strength {value}" for value in (100, 1000, 10000)] + [
        f"olora, tuning orthogonality {value}" for value in (0.15, 0.5, 1.5)
    ]
    assert {cell.config.seed for cell in tuning} == {1005}
    runs = started[len(tuning) :]
    assert [sorted(names(runs)[i : i + 4]) for i in (0, 4)] == [
        sorted(f"{method}, seed {seed}" for method in METHODS) for seed in (5, 6)
    ]
    assert {cell.config.split_seed for cell in started} == {5}
    assert len({str(cell.folder) for cell in started}) == len(started)
    of = {cell.name: cell.config for cell in started}
    assert of["ewc, seed 6"].method == {"name": "ewc", "decay": 0.5, "strength": 100}
    assert of["ewc, seed 6"].output == str(tmp_path / "out" / "ewc" / "seed-6")
    own = {"method", "output", "seed", "evaluation"}
    assert all(each.model_dump(exclude=own) == of["ewc, seed 5"].model_dump(exclude=own) for each in of.values())
    chosen = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert chosen["ewc"]["chosen"] == 100 and {len(choice["tried"]) for choice in chosen.values()} == {3}
    content = written(tmp_path / "out")
    assert list(content["methods"]) == METHODS and content["tuning"] == chosen and content["failed"] == {}
    assert content["methods"]["ewc"]["knob"] == {"keyword": "strength", "value": 100, "tuned": True}
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "14/14 olora, seed 6: accuracy" in text and "comparison.md" in text
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert files >= {"compare.yaml", "comparison.md", "drawn", "times.json"}


def test_a_variant_s_adapter_is_that_of_all_its_runs(tmp_path: Path) -> None:
    start, started = starter()
    compare(stream(tmp_path / "x"), ["olora:lora.r=4", "olora"], seeds=1, tries=2, console=quiet(), start=start)
    assert {(cell.label, cell.config.lora["r"]) for cell in started} == {("olora:lora.r=4", 4), ("olora", 8)}
    assert len(started) == 2 * 3


def test_a_small_budget_has_fewer_rows_and_fewer_values(tmp_path: Path) -> None:
    start, started = starter()
    config = stream(tmp_path / "x")
    few = config.model_copy(update={"tasks": [config.tasks[0].model_copy(update={"max_train": 9}), *config.tasks[1:]]})
    compare(few, ["ewc"], seeds=1, budget="small", console=quiet(), start=start)
    assert len(started) == 3 + 1 and (tmp_path / "x-compare" / "comparison.md").exists()
    assert {tuple(t.max_train for t in cell.config.tasks) for cell in started} == {(9, 50, 50)}
    assert {tuple(t.max_test for t in cell.config.tasks) for cell in started} == {(60, 60, 60)}
    text = (tmp_path / "x-compare" / "comparison.md").read_text()
    assert "Budget 'small': at most 50 training rows a task, at most 60 test rows a task; 3 values" in text


def test_nothing_is_run_twice(tmp_path: Path) -> None:
    start, started = starter(middling)
    options: dict[str, Any] = {"tries": 2, "output": tmp_path / "out", "console": quiet(), "start": start, "jobs": 1}
    config = stream(tmp_path / "x")
    compare(config, ["sequential", "ewc"], seeds=1, **options)
    before, content = names(started), written(tmp_path / "out")
    started.clear()
    compare(config, ["sequential", "ewc"], seeds=1, **options)
    assert not started
    again = written(tmp_path / "out")
    assert again["seconds"].pop("wall") >= content["seconds"].pop("wall") and again == content
    compare(config, ["sequential", "ewc", "olora"], seeds=2, **options)  # more of both
    assert names(started) == [
        *(f"olora, tuning orthogonality {value}" for value in (0.15, 0.5)),
        *("olora, seed 0", "sequential, seed 1", "ewc, seed 1", "olora, seed 1"),
    ]
    assert not set(before) & set(names(started))


@pytest.mark.parametrize("call", [1, 2, 4, 6])
def test_a_comparison_that_was_stopped_goes_on_where_it_was(call: int, tmp_path: Path) -> None:
    config, out = stream(tmp_path / "x"), quiet()
    whole, all_of_it = starter(middling)
    options: dict[str, Any] = {"seeds": 2, "tries": 2, "jobs": 1}
    compare(config, ["sequential", "ewc"], **options, output=tmp_path / "whole", console=quiet(), start=whole)
    start, started = starter(middling)

    def interrupted(cell: Cell) -> Ended:
        if len(started) == call - 1:
            raise KeyboardInterrupt
        return start(cell)

    options["output"] = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compare(config, ["sequential", "ewc"], **options, console=out, start=interrupted)
    assert "the same command continues" in out.file.getvalue()  # type: ignore[attr-defined]
    compare(config, ["sequential", "ewc"], **options, console=quiet(), start=start)
    assert names(started) == names(all_of_it)
    ours, theirs = (written(tmp_path / name)["methods"] for name in ("out", "whole"))
    assert ours == theirs


def test_a_run_that_fails_is_reported_and_run_again_the_next_time(tmp_path: Path) -> None:
    config, out = stream(tmp_path / "x"), quiet()
    options: dict[str, Any] = {"seeds": 2, "tries": 1, "output": tmp_path / "out", "jobs": 1}
    start, started = starter(codes={"ewc, seed 0": 1})
    assert not compare(config, ["sequential", "ewc"], **options, console=out, start=start)
    assert names(started)[-1] == "ewc, seed 1"
    reason = f"ewc, seed 0 went wrong ({tmp_path / 'out' / 'ewc' / 'seed-0.log'})"
    assert written(tmp_path / "out")["failed"] == {"ewc, seed 0": reason}
    assert written(tmp_path / "out")["methods"]["ewc"]["seeds"] == [1]
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "2/4 ewc, seed 0: failed: ewc, seed 0 went wrong" in text and "Failed: ewc, seed 0: " in text
    start, started = starter()
    assert compare(config, ["sequential", "ewc"], **options, console=quiet(), start=start)
    assert names(started) == ["ewc, seed 0"] and written(tmp_path / "out")["failed"] == {}


def test_a_value_that_fails_counts_as_tried_and_a_run_that_was_killed_does_not(tmp_path: Path) -> None:
    config = stream(tmp_path / "x")
    options: dict[str, Any] = {"seeds": 1, "tries": 3, "output": tmp_path / "out", "jobs": 1, "console": quiet()}
    start, started = starter(middling, {"ewc, tuning strength 100": 1, "olora, tuning orthogonality 0.5": -9})
    assert not compare(config, ["sequential", "ewc", "olora"], **options, start=start)
    assert names(started)[-2:] == ["sequential, seed 0", "ewc, seed 0"]
    content = written(tmp_path / "out")
    assert content["tuning"]["ewc"]["scores"][0] is None and content["tuning"]["ewc"]["chosen"] != 100
    assert "olora" not in content["tuning"] and list(content["methods"]) == ["sequential", "ewc"]
    start, started = starter(middling)
    assert compare(config, ["sequential", "ewc", "olora"], **options, start=start)
    assert names(started) == ["olora, tuning orthogonality 0.5", "olora, seed 0"]


def test_a_method_that_fails_whatever_the_value_leaves_the_others(tmp_path: Path) -> None:
    out = quiet()
    start, started = starter(codes={f"ewc, tuning strength {value}": 1 for value in (100, 1000, 10000)})
    options: dict[str, Any] = {"seeds": 1, "tries": 3, "output": tmp_path / "out", "jobs": 1, "console": out}
    assert not compare(stream(tmp_path / "x"), ["ewc", "sequential"], **options, start=start)
    assert names(started)[-1] == "sequential, seed 0" and list(written(tmp_path / "out")["methods"]) == ["sequential"]
    assert not compare(stream(tmp_path / "y"), ["ewc"], **options | {"output": tmp_path / "none"}, start=start)
    assert "no run has finished" in out.file.getvalue()  # type: ignore[attr-defined]


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    start, started = starter()
    config, folder = stream(tmp_path / "x"), tmp_path / "out"

    def refusal(config: configuration.RunConfig = config, **options: Any) -> str:
        before = left_by(folder)
        with pytest.raises(StoreError) as error:
            compare(config, ["sequential"], output=folder, console=quiet(), start=start, **options)
        assert left_by(folder) == before and not started and "\n" not in str(error.value)
        return str(error.value)

    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    assert refusal() == f"{folder} is not empty and holds no comparison; choose another --output"
    (folder / "thesis.tex").unlink()
    compare(config, ["sequential"], output=folder, console=quiet(), start=start)
    started.clear()
    other = stream(tmp_path / "x", lora={"r": 4})
    assert "holds another comparison: stream.lora.r is 8 there and 4 here; choose another --output" in refusal(other)
    assert "budget is 'full' there and 'small' here" in refusal(budget="small")
    (folder / "compare.yaml").write_text("a: {")
    assert "compare.yaml: damaged: not YAML" in refusal()


def test_a_run_of_another_configuration_in_a_cell_is_refused(tmp_path: Path) -> None:
    config = stream(tmp_path / "x")
    start, started = starter()
    pretend(Cell("a", "a", config.model_copy(update={"output": str(tmp_path / "y")})), 0.5)
    (tmp_path / "x-compare" / "sequential").mkdir(parents=True)
    shutil.copytree(tmp_path / "y", tmp_path / "x-compare" / "sequential" / "seed-1")
    (tmp_path / "x-compare" / "compare.yaml").write_text(_claimed(config))
    with pytest.raises(StoreError, match="seed-1 holds a run of another configuration"):
        compare(config, ["sequential"], console=quiet(), start=start)
    assert not started


def _claimed(config: configuration.RunConfig) -> str:
    folder = Path("nowhere")
    budget = comparison.budget_named("full", None)
    made = comparison.Comparison(comparison.document(config, budget), budget, [], [], folder)
    return comparison.described(config, made)


def test_a_method_runs_as_soon_as_it_is_tuned_while_others_are_not(tmp_path: Path) -> None:
    made, order = starter()[0], list[str]()

    class Working(Ended):
        """Ends after so many looks."""

        def __init__(self, looks: int) -> None:
            super().__init__()
            self.looks = looks

        def poll(self) -> int | None:  # type: ignore[override]
            self.looks -= 1
            return None if self.looks > 0 else 0

    def start(cell: Cell) -> Ended:
        order.append(cell.name)
        made(cell)
        return Working(90 if cell.name == "olora, tuning orthogonality 0.5" else 1)

    options: dict[str, Any] = {"seeds": 2, "tries": 2, "jobs": 2, "console": quiet(), "start": start}
    assert compare(stream(tmp_path / "x"), ["ewc", "olora", "sequential"], **options)
    assert order[:4] == [f"{m}, tuning {k}" for m, k in TRIALS]
    assert order[4:8] == [f"{method}, seed {seed}" for seed in (0, 1) for method in ("sequential", "ewc")]
    assert order[8:] == ["olora, seed 0", "olora, seed 1"]


TRIALS = [("ewc", "strength 100"), ("ewc", "strength 1000")]
TRIALS += [("olora", "orthogonality 0.15"), ("olora", "orthogonality 0.5")]


def test_unknown_budget() -> None:
    with pytest.raises(ValueError, match="unknown budget 'smal'; known: full, small; did you mean 'small'?"):
        compare(stream(Path("x")), ["ewc"], budget="smal", console=quiet())


def test_runs_at_a_time_as_cores_and_memory_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(command, "cores", lambda: 6)
    assert command.most_jobs(str(tmp_path)) == 6 and command.most_jobs("somewhere/else") == 1
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.__getitem__)
    assert command.most_jobs(str(tmp_path)) == 2  # 4 GiB
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    assert command.most_jobs(str(tmp_path)) == 1


# --- True runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(bert: str, tmp_path: Path) -> dict[str, Any]:
    """Two tasks of few rows, whose test rows are in files of their own."""
    content = document(bert, tmp_path, "mood sport", training=LEARNING | {"max_steps": 2}, output=str(tmp_path / "x"))
    for task in content["tasks"]:
        labels = {"mood": ["glad", "sad"], "sport": ["loss", "win"]}[task["name"]]
        test = jsonl(tmp_path / f"{task['name']}-test.jsonl", rows(labels, 4))
        task["data_files"] = {"train": task["data_files"], "test": test}
    return content


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
    asked = [sys.executable, "-m", "retain", "compare", file, "--methods", "sequential", "olora", "--seeds", "1"]
    asked += ["--tries", "2", "--jobs", "2", "training.max_steps=30"]
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
    assert list(written(folder)["methods"]) == ["sequential", "olora"]
    assert "4/4 olora, seed 0: accuracy" in second.stdout
