"""How many runs this machine takes at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from retain import store

ROOM, COPIES = 1.5 * 2**30, 4  # what a run takes: bytes beside the model, and times the bytes of its files


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def most_jobs(model: str) -> int:
    """Runs at a time: one a core, as far as memory goes; one in all on a GPU, or if the model's size is not known."""
    if torch.cuda.is_available() or not Path(model).is_dir() or sys.platform == "win32":
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores(), int(memory // (ROOM + COPIES * store.size(Path(model))))))
