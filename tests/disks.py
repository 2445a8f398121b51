"""Disks that fail: the n-th call of what a write takes of the system goes wrong, in one of the ways that disks do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

CALLS = ("open", "write", "fsync", "replace", "ftruncate")
FAULTS = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS, "forbidden": errno.EACCES}


class Disk:
    """Counts what writes take of the system, and lets the ``at``-th of it fail: a ``FAULTS``, or "short".

    A short write is none that fails: half of what was given is taken, as the system may.
    """

    def __init__(self, patch: pytest.MonkeyPatch, fault: str = "", at: int = 0) -> None:
        self.fault, self.at, self.count = fault, at, 0
        for name in CALLS:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, true: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count != self.at or (self.fault == "short" and name != "write"):
                return true(*args, **kwargs)
            if name == "write":
                half = true(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
                if self.fault == "short":
                    return half
            raise OSError(FAULTS[self.fault], os.strerror(FAULTS[self.fault]))

        return call


def count_of(work: Callable[[], Any]) -> int:
    """How many calls ``work`` takes of a disk that does not fail."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        work()
        return disk.count
