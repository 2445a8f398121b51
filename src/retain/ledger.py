"""The record of a run, which only grows: a line of JSON an event, each with a hash that covers all lines before it.

    hash_i = SHA-256(hash_{i-1} + line_i without its hash),    hash_0 = ""

The chain shows that a line was changed, dropped or moved; that lines are missing at the end shows against the ``done``
files, whose hashes the lines name. It is no signature: who rewrites all of it is not found out by the file alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retain.files import StoreError, sync_folder, write_all, writing
from retain.intake import read_bytes

LEDGER = "ledger.jsonl"
LARGEST = 2**28  # bytes that are read

Entry = dict[str, Any]


class Ledger:
    """Appends to the ledger at ``path``, which is made if there is none.

    A line that a kill has torn is cut off, and that is told in the next one.

    Raises:
        StoreError: changed by somebody else, damaged, or not to be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._size, torn = 0, 0
        if path.exists():
            self.entries, whole = _parsed(path)
            torn, self._size = path.stat().st_size - whole, whole
        if torn:
            with writing(path):
                os.truncate(path, self._size)
            self.append("mended", bytes=torn)

    def check(self) -> None:
        """See that the file is still there, so that nothing is written beside a disk that was unmounted.

        Raises:
            StoreError: it is gone, or is no longer what this process left.
        """
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise StoreError(
                f"{self.path}: gone while the run went on ({error.strerror}); nothing is written"
            ) from None
        if size != self._size:
            raise StoreError(f"{self.path}: another process has written to it")

    def append(self, event: str, **content: Any) -> None:
        """Add a line, durably: after a failure there is none of it.

        Raises:
            StoreError: it cannot be written, or the file is no longer what this process left: its disk was
                unmounted, or somebody else has written to it.
        """
        entry = {"n": len(self.entries), "time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event}
        entry |= content
        entry["hash"] = _hash(self.entries[-1]["hash"] if self.entries else "", entry)
        line = _text(entry).encode() + b"\n"
        with writing(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | (0 if self.entries else os.O_CREAT), 0o666)
            try:
                if os.fstat(descriptor).st_size != self._size:
                    raise StoreError(f"{self.path}: another process has written to it")
                try:
                    write_all(descriptor, line)
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, self._size)
                    raise
            finally:
                os.close(descriptor)
            if not self.entries:
                sync_folder(self.path.parent)
        self._size += len(line)
        self.entries.append(entry)


def read(path: Path) -> list[Entry]:
    """The entries of the ledger at ``path``, oldest first, but for a last line that is torn.

    Raises:
        StoreError: missing, or its chain of hashes is broken, by the number of the line.
    """
    try:
        return _parsed(path)[0]
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _parsed(path: Path) -> tuple[list[Entry], int]:
    """The entries, and the bytes of the lines that are whole."""
    content = read_bytes(path, LARGEST)
    whole = content.rfind(b"\n") + 1
    entries, last = list[Entry](), ""
    for number, line in enumerate(content[:whole].split(b"\n")[:-1]):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise StoreError(f"{path}: line {number + 1} is damaged: not JSON") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
            raise StoreError(f"{path}: line {number + 1} is damaged: not an event")
        last = _hash(last, entry)
        if entry.get("hash") != last or entry.get("n") != number:
            raise StoreError(
                f"{path}: line {number + 1} is not what was written: its hash does not follow from the lines before"
            )
        entries.append(entry)
    return entries, whole


def _hash(previous: str, entry: Entry) -> str:
    body = _text({key: value for key, value in entry.items() if key != "hash"})
    return hashlib.sha256((previous + body).encode()).hexdigest()


def _text(entry: Entry) -> str:
    return json.dumps(entry, separators=(",", ":"))
