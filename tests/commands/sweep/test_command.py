"""The whole of a sweep whose runs are made up: who is run, in which order, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compared import starter, stream
from retain.commands.many.cells import Cell
from retain.commands.sweep import command, figures, fill, sweep
from retain.commands.sweep.pick import Rule, pick
from retain.files import StoreError
from runs import quiet

pytestmark = pytest.mark.usefixtures("fast_runs", "hurried")


def strength(cell: Cell) -> float:
    value = cell.config.method.get("strength", 0.0)
    return 10.0 if value == "auto" else value


def learned(cell: Cell) -> float:
    return 0.95 - 0.003 * strength(cell)


def kept(cell: Cell) -> float:
    return min(learned(cell), 0.5 + 0.35 * min(1.0, strength(cell) / 10))


def names(started: list[Cell]) -> list[str]:
    return [cell.name for cell in started]


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


SHARED = "ewc-lora, what all points share, seed 0"


def test_the_first_task_is_trained_once_and_every_value_branches_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "draw", figures.draw)
    start, started = starter(learned, later=kept)
    out, config = quiet(), stream(tmp_path / "x", seed=0)
    asked = ["ewc-lora", "ewc-lora:strength=auto", "eblora", "sequential"]
    options: dict[str, Any] = {"points": 3, "output": tmp_path / "out", "jobs": 1, "start": start}
    assert sweep(config, asked, seeds=1, console=out, **options)
    values = ["strength 1", "strength 10", "strength 100"]
    others = [f"eblora, energy {v}, seed 0" for v in ("0.8", "0.9859", "0.999")]
    branches = [*(f"ewc-lora, {value}, seed 0" for value in values), "ewc-lora:strength=auto, seed 0"]
    assert names(started) == [SHARED, *others, "sequential, seed 0", *branches]
    assert [cell.tasks for cell in started] == [1] + [None] * 8
    content = written(tmp_path / "out")
    assert content["steps"] == {"taken": 10 + 4 * 20 + 4 * 30, "apart": 8 * 30}
    assert list(content["curves"]) == asked
    points = content["curves"]["ewc-lora"]["points"]
    assert [point["value"] for point in points] == [1, 10, 100]
    assert points[1]["runs"] == {"0": "ewc-lora/strength=10/seed-0"} and points[1]["learned"]["std"] is None
    assert content["curves"]["sequential"]["points"][0]["value"] is None
    assert Image.open(tmp_path / "out" / "sweep.png").size == (1200, 750)
    assert "| `ewc-lora` | 10 |" in (tmp_path / "out" / "sweep.md").read_text()
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "Optimizer steps: 210 for what takes 240 in runs apart, 12% less." in text


def test_nothing_is_run_twice_and_more_values_join_those_that_there_are(tmp_path: Path) -> None:
    start, started = starter(learned, later=kept)
    config = stream(tmp_path / "x")
    options: dict[str, Any] = {"seeds": 2, "jobs": 1, "console": quiet(), "start": start, "output": tmp_path / "out"}
    assert sweep(config, [], points=2, **options)
    assert names(started) == [
        *(f"ewc-lora, what all points share, seed {seed}" for seed in (0,)),
        *(f"ewc-lora, strength {value}, seed 0" for value in (1, 100)),
        "ewc-lora, what all points share, seed 1",
        *(f"ewc-lora, strength {value}, seed 1" for value in (1, 100)),
    ]
    before = written(tmp_path / "out")
    started.clear()
    assert sweep(config, [], points=2, **options) and not started
    assert written(tmp_path / "out") == before
    assert sweep(config, [], points=1, **options)
    assert names(started) == [f"ewc-lora, strength 10, seed {seed}" for seed in (0, 1)]
    curve = written(tmp_path / "out")["curves"]["ewc-lora"]
    assert [point["value"] for point in curve["points"]] == [1, 10, 100] and curve["knee"] == 10
    assert curve["hypervolume"] > before["curves"]["ewc-lora"]["hypervolume"]


def test_what_is_shared_fails_alone_and_what_begins_with_it_is_run_the_next_time(tmp_path: Path) -> None:
    config, out = stream(tmp_path / "x"), quiet()
    options: dict[str, Any] = {"points": 2, "seeds": 1, "jobs": 1, "output": tmp_path / "out"}
    start, started = starter(learned, {SHARED: 1})
    assert not sweep(config, ["ewc-lora", "sequential"], **options, console=out, start=start)
    assert names(started) == [SHARED, "sequential, seed 0"]
    assert list(written(tmp_path / "out")["failed"]) == [SHARED]
    assert f"{SHARED}: failed: {SHARED} went wrong" in out.file.getvalue()  # type: ignore[attr-defined]
    start, started = starter(learned)
    assert sweep(config, ["ewc-lora", "sequential"], **options, console=quiet(), start=start)
    assert names(started) == [SHARED, "ewc-lora, strength 1, seed 0", "ewc-lora, strength 100, seed 0"]
    scores = tmp_path / "out" / "trunks" / "ewc-lora" / "seed-0" / "tasks" / "00-a" / "done"
    scores.unlink()
    (tmp_path / "out" / "ewc-lora" / "strength=1" / "seed-0" / "results.json").unlink()
    start, started = starter(learned)
    assert sweep(config, ["ewc-lora"], **options, console=quiet(), start=start)  # one alone needs no trunk
    assert names(started) == ["ewc-lora, strength 1, seed 0"]


def test_what_another_process_runs_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, looks = stream(tmp_path / "x"), {"ewc-lora, strength 1, seed 0": 3, SHARED: 5}
    start, started = starter(learned)
    theirs = starter(learned)[0]

    def in_use(folder: Path) -> bool:
        name = SHARED if "trunks" in folder.parts else "ewc-lora, strength 1, seed 0"
        if "strength=100" in folder.parts or not looks[name]:
            return False
        looks[name] -= 1
        if not looks[name]:
            theirs(next(cell for cell in seen if cell.folder == folder))
        return True

    seen: list[Cell] = []
    make = fill.Roots.__init__

    def noted(self: fill.Roots, *arguments: Any) -> None:
        make(self, *arguments)
        seen.extend([*self.trunks, *self.cells])

    monkeypatch.setattr(fill.Roots, "__init__", noted)
    monkeypatch.setattr(fill, "in_use", in_use)
    assert sweep(config, [], points=2, seeds=1, jobs=1, console=quiet(), start=start)
    assert names(started) == ["ewc-lora, strength 100, seed 0"] and set(looks.values()) == {0}
    assert len(written(tmp_path / "x-sweep")["curves"]["ewc-lora"]["points"]) == 2


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    start, started = starter(learned)
    options: dict[str, Any] = {"points": 2, "seeds": 1, "jobs": 1, "console": quiet(), "start": start}
    sweep(stream(tmp_path / "x"), ["sequential"], **options)
    with pytest.raises(StoreError, match="holds another sweep: scenario is 'task' there and 'class' here"):
        sweep(stream(tmp_path / "x", scenario="class"), ["sequential"], **options)
    with pytest.raises(StoreError, match="holds another sweep"):
        sweep(stream(tmp_path / "x", scenario="class"), ["sequential"], rule=Rule.parse("knee"), **options)
    (tmp_path / "y-sweep").mkdir()
    (tmp_path / "y-sweep" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="is not empty and holds no sweep"):
        sweep(stream(tmp_path / "y"), ["sequential"], **options)
    assert len(started) == 1


@pytest.mark.parametrize(
    ("asked", "knob", "message"),
    [
        (["ewc-lora", "olora"], "strengt", "--knob 'strengt': none .* strength of ewc-lora, orthogonality of olora"),
        (["ewc-lora", "ewc-lora"], None, "'ewc-lora' is there twice"),
        (["eblora"], "energy_end", "--knob 'energy_end': none of the methods has it"),
    ],
)
def test_what_cannot_be_swept(asked: list[str], knob: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(stream(tmp_path / "x"), asked, knob=knob, console=quiet())
    assert not (tmp_path / "x-sweep").exists()


def test_a_search_without_optuna_is_refused_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--search needs optuna: pip install 'retain\[sweep\]'"):
        sweep(stream(tmp_path / "x"), [], search=5, console=quiet())
    assert not (tmp_path / "x-sweep").exists()


def test_one_task_has_nothing_to_forget(tmp_path: Path) -> None:
    config = stream(tmp_path / "x")
    with pytest.raises(ValueError, match="the stream needs two tasks or more"):
        sweep(config.model_copy(update={"tasks": config.tasks[:1]}), [], console=quiet())


def point(forgetting: float, learned: float, value: float, complete: bool = True) -> dict[str, Any]:
    return {
        "value": value,
        "complete": complete,
        "runs": {"0": "r"},
        "learned": {"mean": learned},
        "forgetting": {"mean": forgetting},
    }


def test_a_point_is_picked_by_its_rule_and_says_why() -> None:
    points = [point(0.30, 0.90, 1), point(0.10, 0.88, 10), point(0.02, 0.50, 100), point(0.0, 0.99, 1000, False)]
    curve = {"keyword": "strength", "points": points}
    content = {"curves": {"ewc-lora": curve}, "learned": "learning accuracy", "unit": "share of rows"}

    def picked(rule: str) -> Any:
        return pick(content, Rule.parse(rule))

    assert picked("knee").point["value"] == 10 and picked("budget=0.5").point["value"] == 1
    assert picked("budget=0.1").why == (
        "ewc-lora, strength 10 (learning accuracy 0.88, forgetting 0.1): of the 2 points within a forgetting of 0.1 "
        "(out of 3) the one that learns most"
    )
    with pytest.raises(ValueError, match="a forgetting of 0.01 .*: the least is 0.02, of ewc-lora, strength 100"):
        picked("budget=0.01")
    del points[1]
    with pytest.raises(ValueError, match="has no knee"):
        picked("knee")
    for wrong in ("bugdet=0.1", "budget", "budget=-1", "budget=nan", "budget=much", "best"):
        with pytest.raises(ValueError, match=r"expected budget=FORGETTING or knee, such as budget=0.05"):
            Rule.parse(wrong)
