"""A ledger that grows line by line shows whatever was done to it, and is mended where a kill has torn it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disks import FAULTS, Disk, count_of
from retain import ledger
from retain.files import StoreError
from retain.ledger import Ledger

VALUES = st.recursive(st.none() | st.text(), st.lists)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    book = Ledger(tmp_path / "ledger.jsonl")
    for i in range(4):
        book.append("stage", number=i, share=0.1 * i, name="ä")
    return book.path


def test_what_was_appended_is_read(path: Path) -> None:
    entries = ledger.read(path)
    assert [e["number"] for e in entries] == [0, 1, 2, 3] and [e["n"] for e in entries] == [0, 1, 2, 3]
    assert entries[0]["event"] == "stage" and entries[0]["time"].endswith("+00:00")
    Ledger(path).append("more")
    assert [e["event"] for e in ledger.read(path)] == ["stage"] * 4 + ["more"]


def changed(line: str) -> str:
    return line.replace("0.1", "0.2")


HARMS: dict[str, tuple[Callable[[list[str]], Any], int]] = {
    "changed": (lambda lines: lines.__setitem__(1, changed(lines[1])), 2),
    "changed last": (lambda lines: lines.__setitem__(3, lines[3].replace('"number":3', '"number":4')), 4),
    "dropped": (lambda lines: lines.pop(1), 2),
    "first dropped": (lambda lines: lines.pop(0), 1),
    "swapped": (lambda lines: lines.insert(1, lines.pop(2)), 2),
    "twice": (lambda lines: lines.insert(1, lines[0]), 2),
    "no JSON": (lambda lines: lines.__setitem__(2, "{"), 3),
    "no event": (lambda lines: lines.__setitem__(2, "[1]"), 3),
    "deep": (lambda lines: lines.__setitem__(2, "[" * 10**5), 3),
}


@pytest.mark.parametrize("harm", HARMS)
def test_whatever_is_done_to_a_line_is_found_and_refused(harm: str, path: Path) -> None:
    lines = path.read_text().splitlines()
    HARMS[harm][0](lines)
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    for read in (ledger.read, Ledger):
        with pytest.raises(StoreError, match=f"{path}: line {HARMS[harm][1]} is ") as error:
            read(path)
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_line_that_a_kill_has_torn_is_mended_and_told(path: Path) -> None:
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for left in (last - 1, 10, 1):
        path.write_bytes(whole[: len(whole) - last + left])
        assert len(ledger.read(path)) == 3
        book = Ledger(path)
        assert book.entries[-1]["event"] == "mended" and book.entries[-1]["bytes"] == left
        assert ledger.read(path) == book.entries and len(book.entries) == 4


@pytest.mark.parametrize("fault", [*FAULTS, "short"])
def test_a_disk_that_fails_leaves_no_part_of_a_line(fault: str, path: Path) -> None:
    told = 0
    for at in range(1, 1 + count_of(lambda: Ledger(path).append("new"))):
        book, before = Ledger(path), path.read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fault, at)
            try:
                book.append("new")
            except StoreError as error:
                told += 1
                assert "ledger.jsonl: cannot be written: " in str(error) and path.read_bytes() == before
        book.append("then")
        assert ledger.read(path) == book.entries
    assert told == (0 if fault == "short" else 3)


def test_a_file_that_goes_or_grows_under_it_is_told(path: Path) -> None:
    book, other = Ledger(path), Ledger(path)
    other.append("other")
    with pytest.raises(StoreError, match="another process has written to it"):
        book.append("mine")
    path.unlink()
    with pytest.raises(StoreError, match="cannot be written: No such file or directory"):
        other.append("gone")
    assert not path.exists()
    with pytest.raises(StoreError, match="ledger.jsonl: missing"):
        ledger.read(path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary() | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode() + b"\n")
)
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    try:
        assert ledger.read(path) == []
    except StoreError as error:
        assert ": line " in str(error)
