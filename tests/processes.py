"""Processes that are copies of this one: one alone, to be killed, or several that train together, joined by gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed
from torch import multiprocessing as processes

can_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods() or not distributed.is_gloo_available(),
    reason="needs processes that start as copies of this one, and gloo",
)


class Forked:
    """A copy of this process that does ``work()``; it spares what the libraries take to be imported."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=work)
        self.process.start()

    def poll(self) -> int | None:
        return None if self.process.is_alive() else self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        return self.process.exitcode or 0

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def together(work: Callable[[], Any], folder: Any, **environment: str) -> list[Any]:
    """What ``work()`` returns in each of two processes that ``accelerate launch --cpu`` might have started."""
    processes.start_processes(_work, (work, str(folder), _free_port(), environment), nprocs=2, start_method="fork")
    return [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(2)]


def _work(rank: int, work: Callable[[], Any], folder: str, port: int, environment: dict[str, str]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()} | {"ACCELERATE_USE_CPU": "true"} | environment
    distributed.init_process_group("gloo")
    torch.save(work(), f"{folder}/{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
