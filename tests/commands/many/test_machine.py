"""How many runs at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retain.commands.many import machine


def test_runs_at_a_time_as_cores_and_memory_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(machine, "cores", lambda: 6)
    assert machine.most_jobs(str(tmp_path)) == 6 and machine.most_jobs("somewhere/else") == 1
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.__getitem__)
    assert machine.most_jobs(str(tmp_path)) == 2  # 4 GiB
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    assert machine.most_jobs(str(tmp_path)) == 1
