"""The processes of a distributed run: what each does of a pass, what they add up, and which of them writes."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

Value = TypeVar("Value")


def join() -> None:
    """Meet the processes that ``accelerate launch`` or ``torchrun`` has started, if there are others."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState()


def first() -> bool:
    """Whether this process is the one that writes and speaks; always, where there is no other."""
    return not _several() or distributed.get_rank() == 0


def wait() -> None:
    """Return when every process has come here."""
    if _several():
        distributed.barrier()


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _several() else 1


def share() -> slice:
    """Which of a list of rows are this process's: every so many of them."""
    return slice(distributed.get_rank(), None, distributed.get_world_size()) if _several() else slice(None)


def add_up(tensor: Tensor) -> Tensor:
    """``tensor``, summed in place over the processes, each of which had its ``share``."""
    if _several():
        distributed.all_reduce(tensor)
    return tensor


def largest(number: int, device: torch.device) -> int:
    """The largest ``number`` that a process has; they talk by way of ``device``."""
    if not _several():
        return number
    found = torch.tensor(number, device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def union(mine: dict[str, Value]) -> dict[str, Value]:
    """The entries of all processes' dictionaries, sorted by name."""
    every = [mine]
    if _several():
        every = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(every, mine)
    return dict(sorted((name, value) for entries in every for name, value in entries.items()))


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
