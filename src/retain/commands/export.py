"""``retain export``: the adapter of a run as a stock PEFT LoRA, checked in a clean process."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from retain import config as configuration
from retain import store
from retain.run import prepare, restore
from retain.task import Task, rows_of

PROBES = 8  # test rows of every task


def export(folder: Path, to: Path | None = None, task: str | None = None, console: Console | None = None) -> float:
    """Write the latest adapter of the run in ``folder`` to ``to`` and return the largest logit difference.

    Args:
        folder: of a run.
        to: the folder to write, ``folder``/export if not given; replaced if it holds an adapter.
        task: whose coefficients, for methods that keep some for each.
        console: where the measured difference is printed.

    Raises:
        StoreError: no run, nothing finished, a folder in the way, or a damaged file.
        ValueError: a task that the run does not have.
    """
    if not (folder / "config.yaml").exists():
        raise store.StoreError(f"{folder} holds no run: it has no config.yaml")
    shop = prepare(configuration.load(folder / "config.yaml"))
    finished = [stage for stage in shop.stages()[1:] if store.is_closed(stage.folder)]
    if not finished:
        raise store.StoreError(f"{folder}: no task is finished yet")
    if task is not None and task not in shop.names():
        raise ValueError(f"no task {task!r} in this run; known: {', '.join(shop.names())}")
    restore(shop, finished[-1].folder)
    shop.method.activate(task)
    target = to or folder / "export"
    if target.exists() and not (target / "adapter_config.json").exists():
        raise store.StoreError(f"{target} exists and holds no adapter; choose another folder")
    shop.write_adapter(target)
    difference = max(store.check_adapter(target, shop.model, _probe(t)) for t in shop.stream.tasks)
    (console or Console()).print(f"{target}: loaded in a clean process, largest logit difference {difference:.1e}")
    return difference


def _probe(task: Task) -> dict:
    rows, collate = rows_of(task.test, task.collate)
    batch = dict(collate([rows[i] for i in range(min(PROBES, len(rows)))]))
    del batch["labels"]
    return batch
