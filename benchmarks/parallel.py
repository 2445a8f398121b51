"""Independent pieces of work, several at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch


def spread(
    work: Callable[..., Any], pieces: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each of ``pieces`` with what ``work(*piece)`` returns, as they are done; one job works in this process.

    A process has one thread, and takes one piece after the other.
    """
    if jobs == 1:
        for piece in pieces:
            yield piece, work(*piece)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(work, *piece): piece for piece in pieces}
        for future in as_completed(running):
            yield running[future], future.result()
