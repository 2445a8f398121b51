"""One pass shared by the processes of a distributed run: each takes every so many rows, and sums are added up."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, distributed

Value = TypeVar("Value")


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def share() -> slice:
    """Which of a list of rows are this process's."""
    return slice(distributed.get_rank(), None, distributed.get_world_size()) if _several() else slice(None)


def add_up(tensor: Tensor) -> Tensor:
    """``tensor``, summed over the processes in place."""
    if _several():
        distributed.all_reduce(tensor)
    return tensor


def union(mine: dict[str, Value]) -> dict[str, Value]:
    """The entries of all processes' dictionaries, sorted by name."""
    every = [mine]
    if _several():
        every = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(every, mine)
    return dict(sorted((name, value) for entries in every for name, value in entries.items()))
