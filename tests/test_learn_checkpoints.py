"""The checkpoints of a Trainer that somebody has: which one counts, what continues from it, and what is not read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import tiny_llama
from retain import METHODS, learn
from retain.checkpoints import BOUNDARY, TASK, last_checkpoint, restore_boundary, seal
from retain.store import StoreError, read_tensors, write_tensors
from test_learn import sft, tokens

pytestmark = pytest.mark.versions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ewc-lora", "eblora", "dwd", "replay"])
def test_a_checkpoint_alone_continues_to_the_bit(name: str, tmp_path: Path) -> None:
    def trained(folder: Path, **resume: Any) -> dict[str, Tensor]:
        method = METHODS[name](tiny_llama(), seed=0)
        if not resume:
            learn(sft(method.model, tokens(0), folder / "a"), method, "a")
        options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
        learn(sft(method.model, tokens(1), folder / "b", **options), method, "b", **resume)
        return {n: site.delta().detach() for n, site in method.sites.items()} | method.state_dict()

    whole = trained(tmp_path)
    again = trained(tmp_path, resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert whole.keys() == again.keys()
    for key, tensor in whole.items():
        assert torch.equal(tensor, again[key]), key


def test_a_checkpoint_counts_once_its_last_file_is_whole(tmp_path: Path) -> None:
    """And one after the last step only at the end of an epoch: else Trainer would take another step."""
    assert last_checkpoint(tmp_path) is None
    for step, epoch in ((2, 0.2), (10, 1.0), (12, 1.2), ("best", 1.3), (16, 1.6), (17, 2.0)):
        folder, left = tmp_path / f"checkpoint-{step}", 4 if step in (2, 10) else 0
        folder.mkdir()
        state = {"global_step": 12, "max_steps": 12 + left, "epoch": epoch}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        if step != 12:  # whose writer was killed
            seal(folder)
        assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step if step in (2, 10, 17) else 10}")


def changed(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_bytes((checkpoint / "optimizer.pt").read_bytes()[:-1] + b"?")


def linked(checkpoint: Path) -> None:
    (checkpoint.parent / "other.pt").write_bytes((checkpoint / "optimizer.pt").read_bytes())
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "optimizer.pt").symlink_to(checkpoint.parent / "other.pt")


def two_steps(folder: Path, **resume: Any) -> None:
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    method = METHODS["sequential"](tiny_llama())
    learn(sft(method.model, tokens(0), folder, **options), method, "a", **resume)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that torch is given to read."""
    files, load = list[str](), torch.load

    def watched(file: Any, *args: Any, **keywords: Any) -> Any:
        files.append(Path(file).name)
        assert keywords.get("weights_only", True) is True  # if left out, torch takes it for True
        return load(file, *args, **keywords)

    monkeypatch.setattr(torch, "load", watched)
    return files


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training has left; tests must leave it as it is."""
    two_steps(folder := tmp_path_factory.mktemp("checkpoints"))
    return folder


def test_what_is_unpickled_of_a_checkpoint_is_plain(checkpoints: Path, tmp_path: Path, loaded: list[str]) -> None:
    copy = Path(shutil.copytree(checkpoints, tmp_path / "copy"))
    two_steps(copy, resume_from_checkpoint=str(copy / "checkpoint-1"))
    assert set(loaded) == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (changed, "optimizer.pt: damaged, its hash is not the one in"),
        (lambda checkpoint: (checkpoint / "scheduler.pt").unlink(), "scheduler.pt: missing"),
        (lambda checkpoint: (checkpoint / "scaler.pt").write_bytes(b""), "scaler.pt: came after .* would be unpickled"),
        (lambda checkpoint: (checkpoint / "done").unlink(), "has no `done`"),
        (linked, "leads out of this folder"),
    ],
)
def test_nothing_is_unpickled_of_a_checkpoint_that_is_not_as_it_was_written(
    harm: Any, message: str, checkpoints: Path, tmp_path: Path, loaded: list[str]
) -> None:
    copy = Path(shutil.copytree(checkpoints, tmp_path / "copy"))
    harm(copy / "checkpoint-1")
    with pytest.raises(StoreError, match=message):
        two_steps(copy, resume_from_checkpoint=str(copy / "checkpoint-1"))
    assert not loaded


@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_of_another_task_is_not_continued(named: bool, checkpoints: Path, tmp_path: Path) -> None:
    """Task b would be over at once, and count as learned. Earlier versions named no task beside a checkpoint."""
    copy, method = Path(shutil.copytree(checkpoints, tmp_path / "copy")), METHODS["sequential"](tiny_llama())
    if not named:
        for folder in copy.glob("checkpoint-*"):
            kept = {k: v for k, v in read_tensors(folder / BOUNDARY).items() if not k.startswith(TASK)}
            write_tensors(folder / BOUNDARY, kept)
            seal(folder)
        restore_boundary(method, copy / "checkpoint-2", "a")
    method.learned = {"a": torch.tensor(0)}
    came = r"checkpoint-2 was (of task a, begun|written) after nothing, and expected is one of task b, after a: use one"
    with pytest.raises(ValueError, match=came):
        learn(sft(method.model, tokens(1), copy, max_steps=2), method, "b", resume_from_checkpoint=True)
    assert method.learned.keys() == {"a"}
