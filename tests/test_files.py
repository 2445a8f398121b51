"""Files are whole or not there, whatever the disk does, and a folder belongs to one process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disks import FAULTS, Disk, count_of
from retain import files
from retain.files import StoreError

FORK = multiprocessing.get_context("fork")


def fill(fresh: Path) -> None:
    files.write(fresh / "deep" / "new", "new")


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


WORK: dict[str, Callable[[Path], Any]] = {
    "write": lambda folder: files.write(folder / "kept" / "old", "newer"),
    "replace_folder": lambda folder: files.replace_folder(folder / "kept", fill),
    "copy_folder": lambda folder: files.copy_folder(folder / "source", folder / "kept"),
}
AFTER = {"write": {"old": "newer"}, "replace_folder": {"deep/new": "new"}, "copy_folder": {"copied": "copied"}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    files.write(tmp_path / "kept" / "old", "old")
    files.write(tmp_path / "before" / "old", "old")
    files.write(tmp_path / "source" / "copied", "copied")
    return tmp_path


@pytest.mark.parametrize("fault", [*FAULTS, "short"])
@pytest.mark.parametrize("work", WORK)
def test_a_disk_that_fails_at_any_call_leaves_the_old_or_the_new(work: str, fault: str, place: Path) -> None:
    told, before = [], content(place / "kept")
    for at in range(1, 1 + count_of(lambda: WORK[work](place))):
        shutil.rmtree(place / "kept")
        shutil.copytree(place / "before", place / "kept")
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fault, at)
            try:
                WORK[work](place)
            except StoreError as error:
                told.append(str(error))
        found = content(place / "kept")
        assert found == AFTER[work] or (told and found == before)
        files.sweep(place)
        assert sorted(os.listdir(place)) == ["before", "kept", "source"]
    reason = "" if fault == "short" else f"cannot be written: {os.strerror(FAULTS[fault])}; what was there before"
    assert all(reason in line and "\n" not in line for line in told)
    assert len(told) == 0 if fault == "short" else len(told) >= 4


def test_files_have_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    """Others in a group read results; temporary files would be private."""
    (tmp_path / "ordinary").write_text("")
    files.write(tmp_path / "ours", "")
    files.replace_folder(tmp_path / "folder", lambda fresh: files.write(fresh / "file", ""))
    (tmp_path / "plain").mkdir()
    mode = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    assert mode["ours"] == mode["ordinary"] and mode["folder"] == mode["plain"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(fresh: Path) -> None:
        fill(fresh)
        raise KeyboardInterrupt

    folder = tmp_path / "above" / "adapter"
    files.replace_folder(folder, fill)
    (folder / "old").write_text("")
    with pytest.raises(KeyboardInterrupt):
        files.replace_folder(folder, half)
    assert sorted(os.listdir(folder)) == ["deep", "old"] and os.listdir(folder.parent) == ["adapter"]
    files.replace_folder(folder, fill)
    assert os.listdir(folder) == ["deep"]


class Kill(BaseException):
    """What nobody is to clear up after."""


@pytest.mark.parametrize("again", ["sweep", "replace"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_folder_that_a_kill_caught_between_two_names_is_put_back(
    at: int, again: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, renames, true = place / "kept", iter(range(1, 10)), os.replace

    def killed(source: Any, target: Any) -> None:
        if next(renames) > at:
            raise Kill
        true(source, target)

    files.partial(place / "kept.old").mkdir()  # of something else of a name like it, half written
    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(os, "replace", killed)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        files.replace_folder(kept, lambda fresh: files.os.mkdir(fresh / "new"))
        raise Kill
    assert kept.exists() is (at == 2)
    if again == "sweep":
        files.sweep(place)
        assert os.listdir(kept) == (["old"] if at == 1 else ["new"])
    else:
        files.replace_folder(kept, lambda fresh: (fresh / "newer").mkdir())
        assert os.listdir(kept) == ["newer"]
        files.sweep(place)
    assert sorted(os.listdir(place)) == ["before", "kept", "source"]


def test_a_folder_is_not_lost_where_it_can_go_neither_forward_nor_back(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, renames = os.replace, iter(range(1, 10))

    def failing(source: Any, target: Any) -> None:
        if next(renames) > 1:
            raise OSError(5, "Input/output error")
        true(source, target)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="kept: cannot be written: Input/output error"):
        patch.setattr(os, "replace", failing)
        files.replace_folder(place / "kept", fill)
    files.sweep(place)
    assert content(place / "kept") == {"old": "old"}


def test_what_cannot_be_read_is_not_said_to_be_unwritable(place: Path) -> None:
    with pytest.raises(StoreError, match="elsewhere: cannot be read: No such file or directory; .*kept is as it was"):
        files.copy_folder(place / "elsewhere", place / "kept")
    (place / "source" / "copied").unlink()
    (place / "source" / "copied").symlink_to(place / "source" / "gone")
    with pytest.raises(StoreError, match="source/copied: cannot be read: No such file or directory"):
        files.copy_folder(place / "source", place / "kept")
    assert content(place / "kept") == {"old": "old"}


def test_sweep_takes_what_killed_writes_left_and_nothing_else(tmp_path: Path) -> None:
    files.write(tmp_path / "a" / "kept.partial", "")
    files.write(tmp_path / "a" / ".kept", "")
    files.partial(tmp_path / "a" / "file").write_text("half")
    files.partial(tmp_path / "a" / "folder").mkdir()
    files.write(files.partial(tmp_path / "a" / "folder") / "b" / "c", "half")
    files.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path / "a")) == [".kept", "kept.partial"]


def hold(folder: Path, pipe: Any) -> None:
    with files.held(folder):
        pipe.send("held")
        pipe.recv()


def test_a_folder_belongs_to_one_process_as_long_as_it_lives(tmp_path: Path) -> None:
    folder, (here, there) = tmp_path / "run", FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, there))
    process.start()
    try:
        assert here.recv() == "held"
        with pytest.raises(StoreError, match=f"run is in use by process {process.pid}; wait for it, or stop it"):
            files.held(folder).__enter__()
    finally:
        process.kill()
        process.join()
    with files.held(folder):
        assert (folder / files.LOCK).read_text() == str(os.getpid())
    assert not folder.exists()


def test_what_was_written_to_a_held_folder_stays(tmp_path: Path) -> None:
    with files.held(tmp_path / "run"):
        files.write(tmp_path / "run" / "file", "")
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "file"]
    assert (tmp_path / "run" / files.LOCK).read_text() == ""


def test_who_asks_sees_whether_another_process_holds_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not files.in_use(folder)
    (read, held), (wait, go) = os.pipe(), os.pipe()
    if not (child := os.fork()):
        with files.held(folder):
            os.write(held, b"!")
            os.read(wait, 1)
            os._exit(0)  # as if it were killed: its number stays in the lock
    os.read(read, 1)
    assert files.in_use(folder)
    os.write(go, b"!")
    os.waitpid(child, 0)
    assert (folder / files.LOCK).read_text() == str(child) and not files.in_use(folder)


def test_a_lock_that_its_owner_removes_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, calls = files.fcntl.lockf, []

    def late(descriptor: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / "run" / files.LOCK).unlink()
        true(descriptor, how)

    monkeypatch.setattr(files.fcntl, "lockf", late)
    with files.held(tmp_path / "run"):
        assert len(calls) == 2 and (tmp_path / "run" / files.LOCK).exists()


def test_a_folder_that_cannot_be_made_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/run: cannot be written: Not a directory"):
        files.held(tmp_path / "file" / "run").__enter__()
