"""Values that optuna proposes: as many as asked for, over the whole scale, and none twice or lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compared import Ended, starter, stream
from retain.commands.many.cells import Cell
from retain.commands.sweep import sweep
from retain.commands.sweep.points import Scale
from runs import quiet

pytestmark = pytest.mark.usefixtures("fast_runs", "hurried")


def learned(cell: Cell) -> float:
    return 0.95 - 0.004 * cell.config.method.get("strength", 0.0)


def kept(cell: Cell) -> float:
    return min(learned(cell), 0.5 + 0.04 * cell.config.method.get("strength", 0.0))


def values(started: list[Cell]) -> list[float]:
    return [
        cell.config.method["strength"] for cell in started if cell.name.endswith("seed 0") and "strength" in cell.name
    ]


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"seeds": 2, "jobs": 1, "output": folder, "console": quiet()} | more


@pytest.mark.slow
def test_a_search_begins_with_the_middle_and_the_ends_and_learns_from_what_it_finds(tmp_path: Path) -> None:
    config = stream(tmp_path / "x")
    start, started = starter(learned, later=kept)
    assert sweep(config, ["ewc-lora", "sequential"], search=7, **options(tmp_path / "a", start=start))
    tried = values(started)
    assert {1.0, 10.0, 100.0} == set(tried[:3]) and len(set(tried)) == 7
    assert all(1 <= value <= 100 for value in tried)
    assert sum(cell.tasks == 1 for cell in started) == 2 and sum(cell.label == "sequential" for cell in started) == 2
    points = json.loads((tmp_path / "a" / "sweep.json").read_text())["curves"]["ewc-lora"]["points"]
    assert [point["value"] for point in points] == sorted(tried) and all(point["complete"] for point in points)
    again, repeated = starter(learned, later=kept)
    assert sweep(config, ["ewc-lora"], search=7, **options(tmp_path / "b", start=again))
    assert values(repeated) == tried  # a function of seed and findings
    other, strong = starter(lambda cell: 0.3 + 0.006 * cell.config.method["strength"])  # where the end is best
    assert sweep(config, ["ewc-lora"], search=7, **options(tmp_path / "c", start=other))
    assert values(strong)[:3] == tried[:3] and sorted(values(strong)[3:])[1] > sorted(tried[3:])[2]


def test_a_search_counts_what_is_there_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    config = stream(tmp_path / "x")
    start, started = starter(learned, later=kept)
    assert sweep(config, [], points=2, **options(tmp_path / "out", start=start))
    started.clear()
    assert sweep(config, [], search=2, **options(tmp_path / "out", start=start)) and not started

    def interrupted(cell: Cell) -> Ended:
        if len(started) == 3:
            raise KeyboardInterrupt
        return start(cell)

    with pytest.raises(KeyboardInterrupt):
        sweep(config, [], search=5, **options(tmp_path / "out", start=interrupted))
    first, stopped = started[0].config.method["strength"], started[2].config.method["strength"]
    assert len(started) == 3 and first == 10 and first != stopped
    assert sweep(config, [], search=5, **options(tmp_path / "out", start=start))
    assert [cell.config.seed for cell in started if cell.config.method["strength"] == stopped] == [0, 1]
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["curves"]["ewc-lora"]["points"]
    assert len(points) == 5 and all(point["complete"] for point in points)


def test_more_seeds_join_what_was_found(tmp_path: Path) -> None:
    start, started = starter(learned, later=kept)
    for seeds in (1, 2):
        more = options(tmp_path / "out", start=start, seeds=seeds)
        assert sweep(stream(tmp_path / "x"), [], search=3, **more)
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["curves"]["ewc-lora"]["points"]
    assert len(points) == 3 and all(point["complete"] and len(point["runs"]) == 2 for point in points)


@pytest.mark.slow
def test_a_value_that_fails_stays_open_for_the_next_time(tmp_path: Path) -> None:
    config, failing = stream(tmp_path / "x"), "ewc-lora, strength 10, seed 1"
    start, started = starter(learned, {failing: 1}, later=kept)
    assert not sweep(config, [], search=3, **options(tmp_path / "out", start=start))
    assert sorted(values(started)) == [1, 10, 100]
    start, started = starter(learned, later=kept)
    assert sweep(config, [], search=3, **options(tmp_path / "out", start=start))
    assert [cell.name for cell in started] == [failing]


def test_a_value_s_place_on_a_scale_leads_back_to_it() -> None:
    for scale in (Scale(1.0, 100.0), Scale(0.8, 0.999), Scale(8, 128, whole=True)):
        for value in scale.grid(9):
            assert scale.at(scale.share(value)) == value
