"""What a run trains on and how long: rows, classes and steps of every task, as far as they are known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.config import RunConfig, TaskConfig, training_arguments
from retain.sources import FORMATS, read

Task = tuple[str, int | None, list[str] | None]


@dataclass(frozen=True)
class Training:
    """One training of the run; None is what cannot be known without a download."""

    name: str
    rows: int | None
    classes: int | None
    batch: int
    steps: int | None


def tasks_of(config: RunConfig, entry: TaskConfig) -> Iterator[Task]:
    """Name, rows and classes of the tasks that ``entry`` becomes, as far as they are known without a download."""
    files = str(entry.data_files or entry.data_dir)
    if not os.path.isdir(entry.path) and (entry.path not in FORMATS or "://" in files):
        yield entry.name, None, None if entry.classes is None else [str(c) for c in entry.classes]
        return
    labels, scored = config.model.kind != "causal-lm", config.evaluation.rows or "test"
    train, _, classes = read(entry, config.rows_seed, scored, labelled=labels)
    for i, start in enumerate(range(0, len(classes), step := entry.split_by_class or len(classes))):
        own = classes[start : start + step]
        rows = train.of(own).at_most(entry.max_train, config.rows_seed)
        yield f"{entry.name}-{i}" if entry.split_by_class else entry.name, len(rows.names), own if labels else None


def trainings_of(config: RunConfig, tasks: Sequence[Task], cumulative: bool) -> list[Training]:
    """One for each of ``tasks``, or one of all together."""
    numbered = list(enumerate(tasks))
    if cumulative:
        rows = None if any(n is None for _, n, _ in tasks) else sum(n or 0 for _, n, _ in tasks)
        numbered = [(len(tasks) - 1, ("joint", rows, [c for *_, own in tasks for c in own or ()]))]
    trainings = []
    for number, (name, rows, classes) in numbered:
        arguments = training_arguments(config, number, name, Path(config.output))
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
        trainings.append(Training(name, rows, len(classes or ()) or None, batch, _steps(arguments, rows)))
    return trainings


def _steps(arguments: Any, rows: int | None) -> int | None:
    """Optimizer steps as Trainer counts them."""
    if arguments.max_steps > 0 or rows is None:
        return arguments.max_steps if arguments.max_steps > 0 else None
    size = arguments.train_batch_size
    batches = rows // size if arguments.dataloader_drop_last else math.ceil(rows / size)
    return math.ceil(arguments.num_train_epochs * max(1, math.ceil(batches / arguments.gradient_accumulation_steps)))
