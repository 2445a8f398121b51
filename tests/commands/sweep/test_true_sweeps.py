"""Sweeps whose runs train: the steps that they take, what they end with, and what is handed on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from compared import Ended
from processes import Forked, can_fork
from retain import config as configuration
from retain.commands.many import cells
from retain.commands.many.cells import Cell
from retain.commands.sweep import sweep
from retain.commands.sweep.pick import Rule
from retain.run import run
from runs import document, left_by, quiet
from streams import WORDS, jsonl

pytestmark = pytest.mark.usefixtures("fast_runs")

SPRINGS = {"name": "ewc-lora", "fisher": {"samples": 4}}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PAUSE", 0.001)


@pytest.fixture
def steps() -> Iterator[list[int]]:
    """A number for every step that any optimizer takes."""
    taken: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    yield taken
    handle.remove()


def here(cell: Cell) -> Ended:
    """Starts a run in this process."""
    run(cell.config, quiet(), cell.tasks)
    return Ended()


def content(bert: str, folder: Path, names: str = "mood sport", **sections: Any) -> dict[str, Any]:
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.02}
    fixed = {"method": SPRINGS, "training": training, "output": str(folder / "x")}
    return document(bert, folder, names, **fixed | sections)


@pytest.mark.slow
def test_a_sweep_takes_fewer_steps_and_its_points_are_those_of_runs_apart(
    bert: str, tmp_path: Path, steps: list[int], in_process: Any
) -> None:
    config = configuration.parse(content(bert, tmp_path))
    options: dict[str, Any] = {"points": 2, "seeds": 1, "jobs": 1, "output": tmp_path / "out", "start": here}
    assert sweep(config, ["ewc-lora"], **options, console=quiet())
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert found["steps"] == {"taken": len(steps), "apart": 8} == {"taken": 6, "apart": 8}
    alone = config.model_copy(update={"method": SPRINGS | {"strength": 100.0}, "output": str(tmp_path / "alone")})
    run(alone, quiet())
    one, other = (left_by(folder) for folder in (tmp_path / "out/ewc-lora/strength=100/seed-0", tmp_path / "alone"))
    assert one.pop("config.yaml") != other.pop("config.yaml") and one == other

    out = quiet()
    sweep(config, [], rule=Rule(budget=1.0), output=tmp_path / "out", console=out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "picked ewc-lora, strength" in text and "largest logit difference" in text and len(steps) == 6 + 4
    most = max(found["curves"]["ewc-lora"]["points"], key=lambda p: (p["learned"]["mean"], -p["forgetting"]["mean"]))
    files = [tmp_path / "out" / place for place in ("picked", f"{most['runs']['0']}/adapter")]
    picked, own = (file / "adapter_model.safetensors" for file in files)
    assert picked.read_bytes() == own.read_bytes()


@pytest.mark.slow
def test_three_strengths_of_three_tasks_take_seven_ninths_of_the_steps(
    bert: str, tmp_path: Path, steps: list[int]
) -> None:
    """Nine of five take 82 percent, as ``benchmarks/results/curve-text.json`` has counted."""
    config = configuration.parse(content(bert, tmp_path, "mood sport greek"))
    assert sweep(config, ["ewc-lora"], points=3, seeds=1, jobs=1, start=here, console=quiet())
    taken = len(steps)
    run(config.model_copy(update={"output": str(tmp_path / "alone")}), quiet())
    apart = 3 * (len(steps) - taken)
    assert taken == (1 + 3 * 2) * 2 and 9 * taken == 7 * apart
    assert json.loads((tmp_path / "x-sweep" / "sweep.json").read_text())["steps"] == {"taken": taken, "apart": apart}


@can_fork
@pytest.mark.slow
def test_two_processes_share_a_folder_and_one_of_them_is_killed(bert: str, tmp_path: Path) -> None:
    config, folder = configuration.parse(content(bert, tmp_path)), tmp_path / "x-sweep"

    def work() -> None:
        def start(cell: Cell) -> Forked:
            return Forked(lambda: run(cell.config, quiet(), cell.tasks) and None)

        assert sweep(config, ["ewc-lora"], points=2, seeds=1, jobs=1, start=start, console=quiet())

    first = Forked(work)
    while not (folder / "trunks/ewc-lora/seed-0/base/done").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = Forked(work)
    while len(list(folder.glob("ewc-lora/*/seed-0/base/done"))) < 1:
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert second.wait(280) == 0 and second.poll() == 0
    found = json.loads((folder / "sweep.json").read_text())
    assert [point["complete"] for point in found["curves"]["ewc-lora"]["points"]] == [True] * 2
    assert found["steps"] == {"taken": 2 + 2 * 2, "apart": 2 * 4}


@pytest.mark.slow
def test_a_language_model_s_curve_is_in_nats_a_token(llama: str, tmp_path: Path) -> None:
    tasks = []
    for shift, name in enumerate(["greek", "letters"], 1):
        pairs = [{"prompt": WORDS[i % 8], "completion": WORDS[(i + shift) % 8]} for i in range(20)]
        tasks.append({"name": name, "path": "json", "data_files": jsonl(tmp_path / f"{name}.jsonl", pairs)})
    training = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.02}
    fixed: dict[str, Any] = {"lora": {"r": 4}, "training": training, "method": SPRINGS, "output": str(tmp_path / "x")}
    config = configuration.parse(fixed | {"model": {"path": llama, "kind": "causal-lm"}, "tasks": tasks})
    out = quiet()
    assert sweep(config, [], points=2, seeds=1, jobs=1, start=here, rule=Rule(budget=99.0), console=out)
    content = json.loads((tmp_path / "x-sweep" / "sweep.json").read_text())
    points = content["curves"]["ewc-lora"]["points"]
    results = json.loads((tmp_path / "x-sweep" / points[0]["runs"]["0"] / "results.json").read_text())
    scores = results["nats_per_token"]["scores"]
    assert points[0]["learned"]["mean"] == scores["gained"] > 0 and points[0]["final"]["mean"] == scores["final"]
    assert points[0]["forgetting"]["mean"] == scores["forgetting"]
    assert content["unit"] == "nats a token" and content["reference"]["forgetting"] == pytest.approx(
        max(point["learned"]["mean"] for point in points)
    )
    assert "nats gained a token" in out.file.getvalue()  # type: ignore[attr-defined]
