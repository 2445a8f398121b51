"""The adapter of a run, as anybody else loads it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from retain import cli
from retain.commands.export import export
from retain.run import run
from retain.store import StoreError
from runs import quiet, settings

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.fixture(scope="module")
def finished(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks with an adapter each; tests must leave it as it is."""
    config = settings(bert, tmp_path_factory.mktemp("run"), "mood sport", method={"name": "per-task"})
    run(config, quiet())
    return Path(config.output)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def tensors(folder: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.slow
def test_the_command_prints_what_a_clean_process_sees(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only default test that starts that process. The run was moved since it was made."""
    monkeypatch.setattr(sys, "argv", ["retain", "export", str(copy)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    measured, serving = capsys.readouterr().out.strip().splitlines()
    assert measured.startswith(f"{copy}/export: loaded in a clean process, largest logit difference ")
    assert float(measured.rpartition(" ")[2]) <= 1e-5
    assert serving.startswith("vLLM 0.33.0 would load it") and "--max-lora-cls-labels 4" in serving
    assert tensors(copy / "export") == tensors(copy / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sequential", "ewc-lora"])
def test_every_task_is_compared_in_one_process(method: str, bert: str, tmp_path: Path, in_process: list) -> None:
    options = {"fisher": {"samples": 8}, "mode": "merge"} if method == "ewc-lora" else {}
    config = settings(bert, tmp_path, "mood sport", method={"name": method} | options)
    run(config, quiet())
    assert export(Path(config.output), tmp_path / "deep" / "there", console=quiet()) <= 1e-5
    assert len(in_process) == 1
    assert tensors(tmp_path / "deep" / "there") == tensors(Path(config.output, "adapter"))
    labels = json.loads((tmp_path / "deep" / "there" / "labels.json").read_text())
    assert [labels[task]["first_output"] for task in ("mood", "sport")] == [0, 2]


@pytest.mark.slow
def test_the_coefficients_of_a_task(copy: Path, in_process: list) -> None:
    export(copy, task="mood", console=quiet())
    mood, first = tensors(copy / "export"), tensors(copy / "tasks" / "00-mood" / "adapter")
    assert {k: v for k, v in mood.items() if "lora" in k} == {k: v for k, v in first.items() if "lora" in k}
    export(copy, task="sport", console=quiet())  # takes the place of the adapter that was exported before
    assert tensors(copy / "export") == tensors(copy / "adapter") != mood


def test_of_an_unfinished_run_the_latest_task_is_exported(copy: Path, in_process: list) -> None:
    shutil.rmtree(copy / "tasks" / "01-sport")
    with pytest.raises(StoreError, match="00-mood/state/manifest.json: missing"):
        export(copy, console=quiet())  # its state went when sport was finished


def test_refusals(copy: Path, tmp_path: Path, in_process: list) -> None:
    with pytest.raises(ValueError, match="no task 'moood' has been learned; known: mood, sport; did you mean 'mood'"):
        export(copy, task="moood", console=quiet())
    with pytest.raises(StoreError, match="nowhere holds no run: it has no config.yaml"):
        export(tmp_path / "nowhere", console=quiet())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="thesis exists and holds no adapter"):
        export(copy, tmp_path / "thesis", console=quiet())
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "mine" and in_process == []
    state = copy / "tasks" / "01-sport" / "state" / "method.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(StoreError, match="method.safetensors: damaged"):
        export(copy, console=quiet())
    shutil.rmtree(copy / "tasks")
    with pytest.raises(StoreError, match="no task is finished yet"):
        export(copy, console=quiet())
    assert not (copy / "export").exists()


def test_a_task_that_is_not_learned_yet_is_refused(bert: str, tmp_path: Path, in_process: list) -> None:
    config = settings(bert, tmp_path, "mood sport", method={"name": "per-task"})
    run(config, quiet(), tasks=1)
    with pytest.raises(ValueError, match="no task 'sport' has been learned; known: mood"):
        export(Path(config.output), task="sport", console=quiet())
    assert export(Path(config.output), task="mood", console=quiet()) <= 1e-5
