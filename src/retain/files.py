"""Bytes on disk that are whole or not there: atomic, durable writes, and one folder for one process."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

PARTIAL, REPLACED, LOCK = ".partial", ".replaced", ".lock"


class StoreError(ValueError):
    """A file that is damaged, foreign or missing, or cannot be written; the message has its path and the reason."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what keeps the block from writing ``path`` in one line; of a file elsewhere, that it cannot be read.

    Raises:
        StoreError: a full disk, a read-only folder, missing rights, a mount that is gone, a broken device.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if (source := _source(error, path)) is not None:
            raise StoreError(f"{source}: cannot be read: {reason}; {path} is as it was") from error
        raise StoreError(f"{path}: cannot be written: {reason}; what was there before is as it was") from error


def _source(error: Exception, path: Path) -> str | None:
    """The one file that ``error`` is about, if it lies elsewhere than ``path`` and what is written beside it."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str) or error.filename2 is not None:
        return None
    place, target = Path(error.filename).absolute(), path.absolute()
    beside = str(target.parent / f".{path.name}.")
    written = place.is_relative_to(target) or target.is_relative_to(place) or str(place).startswith(beside)
    return None if written else error.filename


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically and durably: there is the old one or the whole new one, also after a crash.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = partial(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                write_all(descriptor, content.encode() if isinstance(content, str) else content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of ``content``: the system may take less at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, as ``fsync`` does the content of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a new folder beside ``path``, then put it in place of the old one.

    Folders cannot change places at once. Killed in between, the old one lies beside its place: ``sweep``, and the next
    call for this ``path``, put it back.

    Raises:
        StoreError: it cannot be written; the old one is as it was.
    """
    fresh = partial(path)
    with writing(path):
        shutil.rmtree(fresh, ignore_errors=True)
        for old in path.parent.glob(f".{escape(path.name)}.*{REPLACED}"):
            _put_back(old, path)
        try:
            fresh.mkdir(parents=True)
            fill(fresh)
            for folder, _, names in os.walk(fresh):
                for name in names:
                    _sync_file(Path(folder, name))
                sync_folder(Path(folder))
            _swap(fresh, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}{REPLACED}")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(fresh, path)
    except BaseException:
        if old.exists():
            os.replace(old, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, path: Path) -> None:
    """End what a kill has left half done: ``old`` was in the place of ``path``, and is so again if nothing else is."""
    if path.exists():
        shutil.rmtree(old)
    else:
        os.replace(old, path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_folder(source: Path, path: Path) -> None:
    """Put a copy of ``source`` in place of ``path``.

    Raises:
        StoreError: one cannot be read, or the other not be written, and is as it was.
    """

    def fill(fresh: Path) -> None:
        for folder, inner, names in os.walk(source, onerror=_raise):
            here = fresh / Path(folder).relative_to(source)
            for name in inner:
                (here / name).mkdir()
            for name in names:
                shutil.copyfile(Path(folder, name), here / name)

    replace_folder(path, fill)


def _raise(error: OSError) -> None:
    raise error


def drop_folder(path: Path) -> None:
    """Remove ``path``, if it is there, at once: nobody sees half of it, and ``sweep`` ends what a kill leaves."""
    if path.exists():
        old = partial(path)
        shutil.rmtree(old, ignore_errors=True)
        with writing(path):
            os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writes that were killed left under ``folder``, and put back what they had moved out of its place."""
    for old in list(folder.rglob(f".*{REPLACED}")):
        _put_back(old, old.with_name(old.name.removesuffix(REPLACED).rpartition(".")[0][1:]))
    for path in list(folder.rglob(f".*{PARTIAL}")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def partial(path: Path) -> Path:
    """Where what is to become ``path`` is written: beside it, with the permissions of an ordinary file."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def ours(path: Path) -> bool:
    """Whether ``path`` is what taking a folder leaves, and nothing of value."""
    return path.suffix == PARTIAL or path.name == LOCK


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made, and goes again if nothing is written to it.

    The system releases the lock when this process ends, however it ends. It is a POSIX record lock: unlike ``flock``
    it does not pass to data loaders that are forked and may outlive a killed run. It does not hold within a process.

    Raises:
        StoreError: another process holds it, by its number.
    """
    with writing(folder):
        descriptor = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            if os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether another process holds ``folder``; not to be asked while this one does, who would lose it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        if not os.pread(descriptor, 1, 0):  # left behind by nobody who was killed
            return False
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(descriptor)
    return False


def _locked(folder: Path) -> int:
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the folder went between both calls
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 20, 0).decode(errors="replace")
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise StoreError(f"{folder} is in use by process {owner or '?'}; wait for it, or stop it") from None
            warnings.warn(f"{folder} cannot be locked ({error.strerror}): see that one process uses it", stacklevel=4)
        try:
            current = os.stat(path).st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        if current:  # else another process has removed it in the meantime
            os.ftruncate(descriptor, 0)
            write_all(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)
