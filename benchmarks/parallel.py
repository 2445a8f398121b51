"""Independent pieces of work, several at a time, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.fisher import machine, versions
from retain import store


def cells_parser(description: str | None, cells: Iterable[str]) -> argparse.ArgumentParser:
    """What is asked of a benchmark that runs ``cells`` under seeds, several at a time."""
    known = list(cells)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", nargs="*", default=known, choices=known)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    return parser


def rows(path: Path) -> list[dict[str, Any]]:
    """All that has been run and lies in ``path``."""
    return store.read_json(path)["rows"] if path.exists() else []


def continued(
    study: Callable[[str, int], dict[str, Any]], options: argparse.Namespace, path: Path, command: str
) -> Iterator[dict[str, Any]]:
    """The row of each cell and seed of ``options`` that ``path`` lacks, written behind those that it has."""
    torch.set_num_threads(1)
    done = {(row["cell"], row["seed"]) for row in rows(path)}
    left = [(cell, seed) for seed in options.seeds for cell in options.cells if (cell, seed) not in done]
    for _, row in spread(study, left, options.jobs):
        document = {"command": command, "machine": machine(), "versions": versions()}
        store.write_json(path, document | {"rows": [*rows(path), row]})
        yield row


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
