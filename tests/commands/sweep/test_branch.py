"""Runs that begin where another stands end as they would have alone, and begin nowhere else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retain import store
from retain.commands.audit import audit
from retain.commands.sweep import branch as branching
from retain.commands.sweep.branch import branch, shared
from retain.config import RunConfig
from retain.files import copy_folder
from retain.run import run
from retain.sections import GuardConfig
from retain.store import StoreError
from runs import left_by, quiet, settings

pytestmark = pytest.mark.usefixtures("fast_runs")

SPRINGS: dict[str, Any] = {"name": "ewc-lora", "fisher": {"samples": 8}}


def at(bert: str, folder: Path, name: str, strength: Any, **sections: Any) -> RunConfig:
    return settings(
        bert, folder, "mood sport", method=SPRINGS | {"strength": strength}, output=str(folder / name), **sections
    )


def left(config: RunConfig) -> dict[str, Any]:
    found = left_by(config.output)
    del found["config.yaml"]  # which names the folder
    return found


@pytest.fixture
def trunk(bert: str, tmp_path: Path) -> Path:
    assert run(config := at(bert, tmp_path, "trunk", 10.0), quiet(), tasks=1) == {}
    assert not Path(config.output, "results.json").exists()
    return Path(config.output)


@pytest.mark.slow
def test_a_branch_ends_with_what_a_run_of_its_own_ends_with_and_its_record_says_where_it_began(
    trunk: Path, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, branched = at(bert, tmp_path, "alone", 100.0), at(bert, tmp_path, "branched", 100.0)
    run(alone, quiet())
    before = left_by(trunk)

    def killed(source: Path, path: Path) -> None:
        if path.name == "00-mood":
            raise KeyboardInterrupt
        copy_folder(source, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(branching, "copy_folder", killed)
        branch(trunk, branched, "strength")
    branch(trunk, branched, "strength")
    began = left_by(branched.output)
    branch(trunk, branched, "strength")
    assert left_by(branched.output) == began and left_by(trunk) == before
    run(branched, quiet())
    branch(trunk, branched, "strength")  # long since: nothing happens
    assert left(branched) == left(alone)
    other = run(at(bert, tmp_path, "other", 0.0), quiet())
    assert other["loss"] != store.read_json(Path(alone.output, "results.json"))["loss"]
    out = Console(file=io.StringIO(), width=200)
    audit(Path(branched.output), out)
    assert f"are those of {trunk}; this run branched off, with its own strength" in out.file.getvalue()  # type: ignore[attr-defined]


def test_nothing_but_the_keyword_may_differ(trunk: Path, bert: str, tmp_path: Path) -> None:
    def refusal(config: RunConfig, source: Path = trunk) -> str:
        with pytest.raises(StoreError) as error:
            branch(source, config, "strength")
        assert not Path(config.output).exists()
        return str(error.value)

    assert "seed is 0 there and 1 here" in refusal(at(bert, tmp_path, "b", 1.0, seed=1))
    other = at(bert, tmp_path, "b", 1.0).model_copy(update={"method": SPRINGS | {"strength": 1.0, "decay": 0.5}})
    assert "method.decay is None there and 0.5 here" in refusal(other)
    assert "holds no run to branch from" in refusal(other, tmp_path / "nowhere")
    store.write(tmp_path / "early" / "config.yaml", (trunk / "config.yaml").read_text())
    copy_folder(trunk / "base", tmp_path / "early" / "base")
    assert "has not learned 1 of its tasks yet" in refusal(at(bert, tmp_path, "b", 1.0), tmp_path / "early")
    energetic = at(bert, tmp_path, "b", 1.0).model_copy(update={"method": {"name": "eblora", "energy": 0.9}})
    with pytest.raises(ValueError, match="energy of eblora counts from the first task on: nothing can be shared"):
        branch(trunk, energetic, "energy")
    held: list[dict[str, Any]] = [{"state": "runs/other"}, {"guard": GuardConfig(path="json", data_files="x.jsonl")}]
    springs, olora = at(bert, tmp_path, "b", 1.0), energetic.model_copy(update={"method": {"name": "olora"}})
    assert shared(springs, "strength") and not shared(springs, "decay")
    assert not any(shared(springs.model_copy(update=update), "strength") for update in held)
    assert [shared(olora.model_copy(update=update), "orthogonality") for update in held] == [0, 1]  # it holds no guard
    run(at(bert, tmp_path, "b", 1.0), quiet(), tasks=1)
    with pytest.raises(StoreError, match="holds a run of another configuration: method.strength"):
        branch(trunk, at(bert, tmp_path, "b", 2.0), "strength")
