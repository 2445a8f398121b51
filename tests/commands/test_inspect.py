"""What folders and files hold."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import models
from retain import export, store
from retain.commands.inspect import inspect


def shown(path: Path) -> str:
    output = io.StringIO()
    inspect(path, Console(file=output, width=160))
    return output.getvalue()


def test_nothing_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match="expected a run, a PEFT adapter"):
        shown(tmp_path)
    with pytest.raises(store.StoreError, match="which does not exist"):
        shown(tmp_path / "gone")


def test_adapters_show_their_largest_changes(tmp_path: Path) -> None:
    export(models.filled(models.tiny_bert(), size=0.3), tmp_path / "adapter")
    found = shown(tmp_path / "adapter")
    assert "LoRA of" in found and "norm of dW" in found and "query" in found and "beside them: " in found


def test_tensors_are_counted_by_kind(tmp_path: Path) -> None:
    state = {"fisher/a": torch.zeros(256), "fisher/b": torch.zeros(256), "learned/mood": torch.tensor(0)}
    store.write_tensors(tmp_path / "method.safetensors", state)
    lines = [line.split() for line in shown(tmp_path / "method.safetensors").splitlines()]
    assert any([w for w in line if w != "│"] == ["fisher", "2", "2.0", "KiB"] for line in lines)
