"""Twenty tasks take no more memory than a method says that it keeps, and leave no hook behind."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import models
from models import texts, tiny_bert
from retain.hf import fit
from retain.method import Method
from retain.methods import METHODS
from test_hf import arguments, rows_task

pytestmark = pytest.mark.slow

TASKS, SETTLED = 20, 5
NUMBERS = 256  # bytes of a task's own numbers: in which order it was learned, what was calibrated
LOOSE = 8 * 2**20  # bytes that an allocator may keep, or not
KEEPING = {"replay": {"share": 0.5}, "share": {"components": 3}, "dwd": {"graph": "features", "probes": 4, "rows": 4}}
IN_TURN = [name for name, method in METHODS.items() if not method.cumulative]


def alive() -> int:
    """Bytes of all tensors that there are, each storage once; what compiling elsewhere leaves behind has none."""
    gc.collect()
    storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def hooks(model: nn.Module) -> int:
    """How many hooks hang on modules and parameters."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_post_accumulate_grad_hooks")
    owners: list[Any] = [*model.modules(), *model.parameters()]
    return sum(len(getattr(owner, kind, None) or ()) for owner in owners for kind in kinds)


def resident() -> int:
    """Bytes of this process that lie in memory; none where the system does not say."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def taken(method: Method) -> tuple[int, int, int, int]:
    """Bytes of tensors, of those that are kept from task to task, hooks, and bytes of the process."""
    kept = sum(tensor.nbytes for tensor in method.state_dict().values())
    return alive(), kept, hooks(method.model), resident()


def check(method: Method, learn: Callable[[int], None], tasks: int) -> None:
    """Learn so many tasks; from where all is settled on, memory grows by what is kept, which is what is said."""
    for i in range(tasks):
        learn(i)
        if i == SETTLED:
            then = taken(method)
    now = taken(method)
    grown, kept, hung, used = (new - old for new, old in zip(now, then, strict=True))
    later = tasks - 1 - SETTLED
    assert kept <= later * (method.growth + NUMBERS)
    assert grown <= kept + later * NUMBERS
    assert hung == 0
    assert used <= grown + LOOSE


@pytest.mark.parametrize("name", IN_TURN)
def test_memory_over_twenty_tasks(name: str) -> None:
    method = METHODS[name](tiny_bert(), **KEEPING.get(name, {}))
    check(method, lambda i: models.fit(method, texts(f"task {i}", seed=i)), TASKS)


@pytest.mark.parametrize("name", ["dwd", "eblora"])
def test_memory_over_tasks_through_trainer(name: str, tmp_path: Path) -> None:
    method = METHODS[name](tiny_bert(), **KEEPING.get(name, {}))

    def learn(i: int) -> None:
        task = rows_task(f"task {i}", seed=i)
        method.begin_task(task)
        fit(method.model, task, method, arguments(tmp_path / str(i), max_steps=1))
        method.end_task(task)

    check(method, learn, 10)


def test_what_is_left_behind_is_seen() -> None:
    method, left = METHODS["sequential"](tiny_bert()), []

    def learn(i: int) -> None:
        models.fit(method, texts(f"task {i}", seed=i))
        left.append(method.model.base_model.model.classifier.weight.detach().repeat(8, 1))

    with pytest.raises(AssertionError, match="grown|assert"):
        check(method, learn, SETTLED + 5)
    assert len(left) == SETTLED + 5
