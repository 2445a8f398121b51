"""What a machine lacks, and what to do."""

from __future__ import annotations

import io
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from retain.commands import doctor as room
from retain.commands.doctor import doctor, examine, imports, installed, optional


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


def test_the_machine_that_runs_the_tests_is_sound() -> None:
    output = io.StringIO()
    assert doctor(Console(file=output, width=120))
    assert "torch" in output.getvalue() and "peft" in output.getvalue()


@pytest.mark.parametrize(
    ("found", "state", "fix"),
    [("2.6.0", "ok", ""), ("2.5.1", "wrong", 'pip install "torch>=2.6"'), ("2.13.0+cpu", "ok", "")],
)
def test_versions(found: str, state: str, fix: str) -> None:
    finding = installed(Requirement("torch>=2.6"), lambda _: found)
    assert (finding.state, finding.fix) == (state, fix)


def test_what_is_missing_can_be_installed() -> None:
    assert installed(Requirement("peft>=0.18"), absent).fix == 'pip install "peft>=0.18"'
    extra = optional(Requirement("pillow>=10; extra == 'vision'"), "vision", absent)
    assert (extra.state, extra.found) == ("note", "missing") and "[vision]" in extra.fix


def test_libraries_that_do_not_fit_together_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = imports("broken_library", "x", "uninstall it")
    assert finding.state == "wrong" and "nms does not exist" in finding.found and finding.fix == "uninstall it"


def test_a_full_disk_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    last = list(examine(tmp_path))[-1]
    assert (last.state, last.found) == ("note", "1.0 MiB free") and "output" in last.fix


def test_something_wrong_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "version", absent)
    assert not doctor(Console(file=io.StringIO()))
