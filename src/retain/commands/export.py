"""``retain export``: the adapter of a run as a stock PEFT LoRA, checked in a clean process."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from retain import config as configuration
from retain import store
from retain.nearest import did_you_mean
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
        ValueError: a task that the run has not learned.
    """
    if not (folder / "config.yaml").exists():
        raise store.StoreError(f"{folder} holds no run: it has no config.yaml")
    target = to or folder / "export"
    if target.exists() and not (target / "adapter_config.json").exists():
        raise store.StoreError(f"{target} exists and holds no adapter; choose another folder")
    settings = configuration.load(folder / "config.yaml")
    shop = prepare(settings.model_copy(update={"output": str(folder)}))  # it may have been moved
    finished = [stage for stage in shop.stages()[1:] if store.is_closed(stage.folder)]
    if not finished:
        raise store.StoreError(f"{folder}: no task is finished yet")
    learned = shop.names()[: finished[-1].number + 1]
    if task is not None and task not in learned:
        raise ValueError(f"no task {task!r} has been learned; known: {', '.join(learned)}{did_you_mean(task, learned)}")
    restore(shop, finished[-1].folder)
    shop.method.activate(task)
    shop.write_adapter(target)
    difference = store.check_adapter(target, shop.model, [_probe(t) for t in shop.stream.tasks])
    message = f"{target}: loaded in a clean process, largest logit difference {difference:.1e}"
    (console or Console()).print(message, soft_wrap=True)
    return difference


def _probe(task: Task) -> dict:
    rows, collate = rows_of(task.test, task.collate)
    batch = dict(collate([rows[i] for i in range(min(PROBES, len(rows)))]))
    del batch["labels"]
    return batch
