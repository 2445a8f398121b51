"""States on their way: out of a run, into another, to a hub and back; what is lost or swapped on the way is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from rich.console import Console
from typer.testing import CliRunner

from hubs import hub
from retain import artefact, store
from retain import config as configuration
from retain.cli import app
from retain.commands import state
from retain.commands.hub import pull, push
from retain.hf import load_model
from retain.run import run
from retain.store import StoreError
from runs import document, left_by, quiet, settings, yaml_file

pytestmark = pytest.mark.usefixtures("fast_runs")

FEW = {"max_steps": 1, "per_device_train_batch_size": 6}
METHOD = {"name": "ewc-lora", "fisher": {"samples": 8}}


@pytest.fixture(scope="module")
def finished(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = settings(bert, tmp_path_factory.mktemp("run"), "mood sport", method=METHOD, training=FEW)
    run(config, quiet())
    return Path(config.output)


@pytest.fixture
def exported(finished: Path, tmp_path: Path) -> Path:
    state.export(finished, tmp_path / "state", False, quiet())
    return tmp_path / "state"


def said(command: Any, *arguments: Any, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    command(*arguments, **options, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_exported_state_says_whose_it_is_and_what_it_holds(exported: Path, finished: Path, bert: str) -> None:
    assert left_by(exported) == left_by(finished / "tasks" / "01-sport" / "state")
    text = said(state.inspect, exported)
    for part in (
        "state of ewc-lora, format 2",
        "4 layers of rank 2",
        "decay=1.0",
        "mood",
        "glad, sad",
        "16",
        "docs/state.md",
    ):
        assert part in text
    assert "how much the loss reacts to weights, summed over a task's rows" in text
    for fingerprint in (artefact.base_of(fresh_model(bert), bert).fingerprint, *prints(exported)):
        assert fingerprint[:12] in text
    inspected = CliRunner().invoke(app, ["inspect", str(exported)]).output
    assert "state of ewc-lora, format 2" in inspected


def prints(folder: Path) -> list[str]:
    return [str(task.fingerprint) for task in artefact.read_manifest(folder).tasks]


def fresh_model(bert: str) -> Any:
    """The same base under another adapter, with another head, of another seed."""
    return load_model(bert, "text", [2], {"r": 8, "target_modules": ["query"]}, seed=3)


def test_a_damaged_run_exports_nothing(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "tasks/01-sport/state/method.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="method.safetensors: damaged"):
        state.export(copy, None, False, quiet())
    assert not (copy / "state").exists()
    with pytest.raises(StoreError, match="holds no state: no task is finished yet"):
        state.export(tmp_path, None, False, quiet())


def test_a_state_of_the_first_format_is_exported_as_one_of_the_second(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    stage = copy / "tasks" / "01-sport"
    (stage / "state" / "manifest.json").unlink()
    store.close(stage)
    state.export(copy, None, False, quiet())
    manifest = artefact.read_manifest(copy / "state")
    assert [(task.name, task.rows) for task in manifest.tasks] == [("mood", None), ("sport", None)]
    there = artefact.read_manifest(finished / "tasks" / "01-sport" / "state")
    assert (manifest.base, manifest.targets, manifest.keywords) == (there.base, there.targets, there.keywords)


def test_training_rows_are_handed_on_only_if_that_is_said(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood", method={"name": "replay", "rows": 4}, training=FEW)
    run(config, quiet())
    with pytest.raises(StoreError, match="replay holds TRAINING ROWS of mood, .* --with-rows hands them on"):
        state.export(Path(config.output), None, False, quiet())
    state.export(Path(config.output), tmp_path / "state", True, quiet())
    with pytest.raises(StoreError, match="TRAINING ROWS"):
        push(tmp_path / "state", "team/state", public=False, rows=False, console=quiet())


def test_an_import_is_checked_and_then_written_into_the_file(exported: Path, bert: str, tmp_path: Path) -> None:
    file = Path(yaml_file(document(bert, tmp_path, "greek", method=METHOD, training=FEW), tmp_path / "new.yaml"))
    file.write_text("# mine\n" + file.read_text())
    other = yaml_file(document(bert, tmp_path, "greek", method={"name": "ewc"}), tmp_path / "other.yaml")
    before = Path(other).read_text()
    with pytest.raises(StoreError, match="method 'ewc-lora', and here is 'ewc'"):
        state.take_in(exported, Path(other), quiet())
    assert Path(other).read_text() == before
    state.take_in(exported, file, quiet())
    assert file.read_text().startswith("# mine\n") and configuration.load(file).state == str(exported)
    with pytest.raises(ValueError, match="begins with the state"):
        state.take_in(exported, file, quiet())
    assert run(configuration.load(file), quiet())["tasks"] == ["greek"]


def test_the_command_line_begins_with_a_state(exported: Path, bert: str, tmp_path: Path) -> None:
    file = yaml_file(document(bert, tmp_path, "greek", method=METHOD, training=FEW), tmp_path / "new.yaml")
    done = CliRunner().invoke(app, ["run", file, "--from-state", str(exported)], catch_exceptions=False)
    assert done.exit_code == 0
    manifest = artefact.read_manifest(tmp_path / "out" / "tasks" / "00-greek" / "state")
    assert [task.name for task in manifest.tasks] == ["mood", "sport", "greek"]


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with hub(tmp_path / "repository") as (address, asked):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "token")
        yield asked


def test_a_state_comes_back_from_a_hub_as_it_was(exported: Path, online: list[str], tmp_path: Path) -> None:
    assert "c" * 40 in said(push, exported, "team/state", public=False, rows=False)
    assert "private" in online
    card = (tmp_path / "repository" / "README.md").read_text()
    assert "`ewc-lora` remembers of mood, sport" in card and "retain state pull team/state" in card
    (tmp_path / "repository" / "evil.py").write_text("")
    said(pull, "team/state", tmp_path / "back", None)
    assert left_by(tmp_path / "back") == left_by(exported)
    assert not any("evil" in line for line in online)


def test_a_pull_of_something_else_leaves_what_was_there(exported: Path, online: list[str], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"team/state at http://127.0.0.1:\d+: .*404"):
        pull("team/state", exported, None, quiet())
    push(exported, "team/state", public=True, rows=False, console=quiet())
    assert "public" in online
    before, file = left_by(exported), tmp_path / "repository" / "method.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="method.safetensors: damaged, its hash is not the one in"):
        pull("team/state", exported, None, quiet())
    assert left_by(exported) == before
