"""What is compared: rows, seeds and budgets, and the folder that belongs to them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from compared import pretend, starter, stream
from retain import config as configuration
from retain.commands.compare import command, compare, comparison, summary
from retain.commands.compare.comparison import reference
from retain.commands.many import cells
from retain.commands.many.cells import Cell
from retain.commands.many.entries import entries
from retain.store import StoreError
from runs import left_by, quiet

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PAUSE", 0.001)
    monkeypatch.setattr(summary, "REPLICATES", 20)
    monkeypatch.setattr(command, "draw", lambda _, folder: (folder / "drawn").touch())


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
    assert {tuple(t.max_train for t in cell.config.tasks) for cell in started} == {(9, 40, 40)}
    assert {tuple(t.max_test for t in cell.config.tasks) for cell in started} == {(50, 50, 50)}
    text = (tmp_path / "x-compare" / "comparison.md").read_text()
    assert "Budget 'small': at most 40 training rows a task, at most 50 test rows a task; 3 values" in text


def test_unknown_budget() -> None:
    with pytest.raises(ValueError, match="unknown budget 'smal'; known: full, small; did you mean 'small'?"):
        compare(stream(Path("x")), ["ewc"], budget="smal", console=quiet())


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


def test_the_reference(tmp_path: Path) -> None:
    found, few = (
        entries(asked, stream(tmp_path), 3)[0] for asked in (["olora", "sequential", "ewc"], ["olora", "ewc"])
    )
    assert reference(None, found) == "sequential" and reference(None, few) == "olora"
    assert reference("ewc", found) == "ewc"
    with pytest.raises(ValueError, match="--against 'oloraa' is not among the methods: olora.*did you mean 'olora'"):
        reference("oloraa", found)
