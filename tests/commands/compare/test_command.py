"""The whole of a comparison: what is run, what is run again, what is refused, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compared import Ended, starter, stream
from retain.commands.compare import command, compare, summary
from retain.commands.many import cells
from retain.commands.many.cells import Cell
from runs import quiet

pytestmark = pytest.mark.usefixtures("fast_runs")

METHODS = ["sequential", "ewc", "olora", "per-task"]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PAUSE", 0.001)
    monkeypatch.setattr(summary, "REPLICATES", 20)
    monkeypatch.setattr(command, "draw", lambda _, folder: (folder / "drawn").touch())


def best_at_100(cell: Cell) -> float:
    return 0.9 if cell.config.method.get("strength", 100) == 100 else 0.3


def names(started: list[Cell]) -> list[str]:
    return [cell.name for cell in started]


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


def test_every_knob_is_tuned_alike_and_then_every_method_runs_under_every_seed(tmp_path: Path) -> None:
    start, started = starter(best_at_100)
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


def test_nothing_is_run_twice(tmp_path: Path) -> None:
    start, started = starter(best_at_100)
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


@pytest.mark.parametrize("call", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 6))])
def test_a_comparison_that_was_stopped_goes_on_where_it_was(call: int, tmp_path: Path) -> None:
    config, out = stream(tmp_path / "x"), quiet()
    whole, all_of_it = starter(best_at_100)
    options: dict[str, Any] = {"seeds": 2, "tries": 2, "jobs": 1}
    compare(config, ["sequential", "ewc"], **options, output=tmp_path / "whole", console=quiet(), start=whole)
    start, started = starter(best_at_100)

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
    start, started = starter(best_at_100, {"ewc, tuning strength 100": 1, "olora, tuning orthogonality 0.5": -9})
    assert not compare(config, ["sequential", "ewc", "olora"], **options, start=start)
    assert names(started)[-2:] == ["sequential, seed 0", "ewc, seed 0"]
    content = written(tmp_path / "out")
    assert content["tuning"]["ewc"]["scores"][0] is None and content["tuning"]["ewc"]["chosen"] != 100
    assert "olora" not in content["tuning"] and list(content["methods"]) == ["sequential", "ewc"]
    start, started = starter(best_at_100)
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
