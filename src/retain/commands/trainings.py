"""What a run trains on and how long: rows, tokens, classes and steps of every task, as far as they are known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from retain.config import RunConfig, TaskConfig, training_arguments
from retain.data import MAX_LENGTH, check_classes
from retain.forecasters import FORECASTS
from retain.hf import load_processor
from retain.language import encoder_of
from retain.regressions import NUMBER, numbers, outputs_of
from retain.sections import DRAWS
from retain.series import Window, windows
from retain.sources import FORMATS, check_column
from retain.splits import splits_of

SAMPLE = 256  # rows of a task that are read to see how long they are


class Task(NamedTuple):
    """A task before it is trained; None is what cannot be known without a download, or has no meaning.

    ``tokens`` is how many a row of a training batch takes, padding included, on average.
    """

    name: str
    rows: int | None
    classes: list[str] | None
    tokens: float | None = None


@dataclass(frozen=True)
class Training:
    """One training of the run; None is what cannot be known without a download."""

    name: str
    rows: int | None
    classes: int | None
    batch: int
    steps: int | None
    tokens: float | None = None


def tokenizer_of(config: RunConfig) -> Any:
    """The tokenizer of the model of ``config``, or a forecaster's configuration; None where there is none."""
    if config.model.kind in ("image", DRAWS):
        return None
    try:
        return load_processor(config.model.path, config.model.kind)
    except ValueError:
        return None


def tasks_of(config: RunConfig, entry: TaskConfig, tokenizer: Any = None) -> Iterator[Task]:
    """The tasks that ``entry`` becomes, as far as they are known without a download.

    Raises:
        ValueError: rows that a run would refuse, or a task of one class.
    """
    files = str(entry.data_files or entry.data_dir)
    if not os.path.isdir(entry.path) and (entry.path not in FORMATS or "://" in files):
        classes = [NUMBER] if entry.is_regression and config.model.kind != FORECASTS else entry.classes
        yield Task(entry.name, None, None if classes is None or config.model.in_nats else [str(c) for c in classes])
        return
    if config.model.kind == FORECASTS:
        known = tokenizer is not None
        yield Task(entry.name, len(windows(config, entry, Window.of(tokenizer))[0]) if known else None, None)
        return
    labels = not config.model.in_nats and not entry.is_regression
    found = splits_of(config, entry, labelled=labels or entry.classes is not None)
    train, names = found.train, found.classes
    for i, start in enumerate(range(0, len(names), step := entry.split_by_class or len(names))):
        own = names[start : start + step]
        rows = train.of(own).at_most(entry.max_train, config.rows_seed)
        name = f"{entry.name}-{i}" if entry.split_by_class else entry.name
        if labels and config.scenario != "domain":
            check_classes(name, own)
        tokens = None if tokenizer is None else _tokens(config, entry, rows.rows, tokenizer)
        if entry.is_regression:
            own = outputs_of(entry, rows.rows)
            numbers(entry, rows.rows, len(own))
        yield Task(name, len(rows.names), own if labels or entry.is_regression else None, tokens)


def _tokens(config: RunConfig, entry: TaskConfig, rows: datasets.Dataset, tokenizer: Any) -> float | None:
    """Tokens that a row takes in a training batch, padded to its longest: a mean over the batches of a sample.

    None for a tokenizer that knows no word of it, which is what a folder without its files gives.
    """
    order = np.random.default_rng(config.rows_seed).permutation(len(rows))[:SAMPLE]
    sample = rows.select(order)
    if config.model.writes:
        encode = encoder_of(config, tokenizer)
        rows, tokenizer = encode(entry, "training", sample), encode.tokenizer
        encoded = rows["input_ids"]
        if config.model.kind == "seq2seq-lm":
            encoded = [read + written for read, written in zip(encoded, rows["labels"], strict=True)]
    else:
        columns = [entry.text] if isinstance(entry.text, str) else entry.text
        for column in columns:
            check_column(entry.name, rows, column)
        length = entry.max_length or min(MAX_LENGTH, tokenizer.model_max_length)
        encoded = tokenizer(*(sample[c][:] for c in columns), truncation=True, max_length=length)["input_ids"]
    if not set().union(*encoded) - set(tokenizer.all_special_ids):
        return None
    lengths = [len(ids) for ids in encoded]
    size = 1 if config.language.packing else _arguments(config, 0, entry.name).train_batch_size
    return float(np.mean([max(lengths[start : start + size]) for start in range(0, len(lengths), size)]))


def trainings_of(config: RunConfig, tasks: Sequence[Task], cumulative: bool) -> list[Training]:
    """One for each of ``tasks``, or one of all together."""
    numbered = list(enumerate(tasks))
    if cumulative:
        known = all(task.rows is not None for task in tasks)
        rows = sum(task.rows or 0 for task in tasks) if known else None
        numbered = [
            (len(tasks) - 1, Task("joint", rows, [c for t in tasks for c in t.classes or ()], mean_tokens(tasks)))
        ]
    trainings = []
    for number, task in numbered:
        arguments = _arguments(config, number, task.name)
        batch, classes = arguments.train_batch_size * arguments.gradient_accumulation_steps, len(task.classes or ())
        steps = _steps(arguments, task.rows)
        trainings.append(Training(task.name, task.rows, classes or None, batch, steps, task.tokens))
    return trainings


def _arguments(config: RunConfig, number: int, task: str) -> Any:
    """Those of a run; where there is no GPU, one may plan for a machine that has one, and half precision."""
    here = {} if torch.cuda.is_available() else {"use_cpu": True}
    return training_arguments(config.model_copy(update={"training": here | config.training}), number, task, Path())


def mean_tokens(tasks: Sequence[Task]) -> float | None:
    """Tokens of a row of all ``tasks`` together, of those where both are known; None if of none."""
    known = [(task.tokens, task.rows) for task in tasks if task.tokens and task.rows]
    return sum(tokens * rows for tokens, rows in known) / sum(rows for _, rows in known) if known else None


def _steps(arguments: Any, rows: int | None) -> int | None:
    """Optimizer steps as Trainer counts them."""
    if arguments.max_steps > 0 or rows is None:
        return arguments.max_steps if arguments.max_steps > 0 else None
    size = arguments.train_batch_size
    batches = rows // size if arguments.dataloader_drop_last else math.ceil(rows / size)
    return math.ceil(arguments.num_train_epochs * max(1, math.ceil(batches / arguments.gradient_accumulation_steps)))
