"""A stream of tasks from a configuration: labels become global ids, texts tokens, images pixel values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import DataCollatorWithPadding, default_data_collator

from retain.answers import Apart, Asked
from retain.artefact import origin
from retain.diffusion import drawn_tasks
from retain.forecasters import FORECASTS
from retain.language import language_tasks
from retain.metrics import OF_NUMBERS
from retain.regressions import check_shared, outputs_of, targets
from retain.series import series_tasks
from retain.sources import DataError, Split, check_column, check_text, natural, progress
from retain.splits import Splits, splits_of
from retain.task import CrossEntropy, SquaredError, Task

if TYPE_CHECKING:
    from retain.config import RunConfig, TaskConfig

__all__ = ["DataError", "Stream", "load_stream"]

MAX_LENGTH = 512  # tokens, unless a task says otherwise
LONG = 20_000  # rows from which on a progress bar is worth its line


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in order, and what their labels mean.

    Attributes:
        tasks: rows are data sets with the model's columns and ``labels``, the global id of the class.
        labels: class names of each task, of a regression its numbers; in a domain-incremental stream the one list that
            all share; none of tokens and series.
        groups: (C,) number of the task that owns each global class; None if all share them.
        guard: rows on which the untouched model is good; None if none are named.
        asked: of tasks by name, what a language model is asked on their test rows.
        gauge: what calibrates a method's gauge; None if what is scored does.
        before: class names of each task that was learned before, of a run that begins with a state.
    """

    tasks: list[Task]
    labels: list[list[str]]
    groups: Tensor | None
    guard: Task | None = None
    asked: Mapping[str, Asked] = field(default_factory=dict)
    gauge: Apart | None = None
    before: list[list[str]] = field(default_factory=list)

    @property
    def guessed(self) -> bool:
        """Whether it is worth asking which task a row is of: neither numbers nor losses tell classes apart."""
        numbers = any(task.metric in OF_NUMBERS for task in self.tasks)
        return self.groups is None if numbers else any(self.labels)

    @property
    def sizes(self) -> list[int]:
        """How many outputs each task has, those learned before first; of a shared head, its own."""
        every = [*self.before, *self.labels]
        return [len(labels) for labels in (every if self.groups is not None else every[:1])]


@dataclass(frozen=True, eq=False)
class _Piece:
    name: str
    entry: TaskConfig
    rows: Splits


def load_stream(config: RunConfig, processor: Any) -> Stream:
    """The stream of ``config``; ``processor`` is what ``load_processor`` gives for its model.

    Raises:
        DataError: the first thing wrong with the data, in one line.
    """
    learned = origin(config.state, Path(config.output))
    earlier, before = ([t.name for t in learned.tasks], [t.labels for t in learned.blocks]) if learned else ([], [])
    if config.model.writes:
        _check_names([entry.name for entry in config.tasks], earlier)
        tasks, guard, asked, gauge = language_tasks(config, processor)
        return Stream(tasks, [[] for _ in tasks], None, guard, asked, gauge, before)
    if config.model.kind == FORECASTS or config.model.in_nats:
        _check_names([entry.name for entry in config.tasks], earlier)
        made = series_tasks if config.model.kind == FORECASTS else drawn_tasks
        tasks, gauge = made(config, processor)
        return Stream(tasks, [[] for _ in tasks], None, gauge=gauge, before=before)
    pieces = [piece for entry in config.tasks for piece in _pieces(entry, config)]
    names = [piece.name for piece in pieces]
    _check_names(names, earlier)
    labels = [piece.rows.classes for piece in pieces]
    groups = None
    if config.scenario == "domain" and config.tasks[0].is_regression:
        check_shared(dict(zip(names, labels, strict=True)), before)
    elif config.scenario == "domain":
        labels = [_union(labels, before)] * len(labels)
    else:
        sizes = torch.tensor([len(own) for own in (*before, *labels)])
        groups = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    for piece, own in zip(pieces, labels, strict=True):
        if not piece.entry.is_regression:
            check_classes(piece.name, own)
    encode = _Images(processor) if config.model.kind == "image" else _Texts(processor)
    tasks, apart, start = [], Apart(), sum(map(len, before)) if groups is not None else 0
    for number, (piece, own) in enumerate(zip(pieces, labels, strict=True), len(before)):
        ids = {name: start + i for i, name in enumerate(own)}
        start += len(own) if groups is not None else 0
        train, test, *more = (encode(piece, split.rows, _targets(piece, split, ids)) for split in piece.rows.every)
        loss = SquaredError(groups, number) if piece.entry.is_regression else CrossEntropy(groups)
        known, metric = config.scenario != "class", piece.entry.metric or "accuracy"
        unit = piece.entry.unit or 1.0
        tasks.append(Task(piece.name, train, test, loss, encode.collate, known=known, metric=metric, unit=unit))
        for rows in more:
            apart.tasks[piece.name] = replace(tasks[-1], test=rows)
    return Stream(tasks, labels, groups, gauge=apart if apart.tasks else None, before=before)


def _targets(piece: _Piece, split: Split, ids: Mapping[str, int]) -> Any:
    """What the rows (n,) of a piece are to be: numbers, or the ids of their classes."""
    if piece.entry.is_regression:
        return targets(piece.entry, split.rows, len(piece.rows.classes), training=split is piece.rows.train)
    return np.array([ids[name] for name in split.names])


def check_classes(task: str, classes: list[str]) -> None:
    """Refuse a task of one class."""
    if len(classes) < 2:
        raise DataError(f"task {task!r} has one class, {classes[0]!r}: there is nothing to tell apart")


def _check_names(names: list[str], earlier: list[str]) -> None:
    for name in names:
        if name in earlier:
            raise DataError(f"task {name!r} has been learned in the state that this run begins with; rename it")
        if names.count(name) > 1:
            raise DataError(f"two tasks are called {name!r}; tasks: {', '.join(names)}")


def _pieces(entry: TaskConfig, config: RunConfig) -> Iterator[_Piece]:
    """The tasks that an entry becomes: one, or one for every ``split_by_class`` classes."""
    seed, rows = config.rows_seed, splits_of(config, entry, labelled=not entry.is_regression)
    if entry.is_regression:
        found = rows.at_most(entry, seed)
        yield _Piece(entry.name, entry, replace(found, classes=outputs_of(entry, found.train.rows)))
        return
    classes = rows.classes
    step = entry.split_by_class or len(classes)
    for i, start in enumerate(range(0, len(classes), step)):
        name, own = f"{entry.name}-{i}" if entry.split_by_class else entry.name, classes[start : start + step]
        if entry.max_train is not None and entry.max_train < len(own):
            raise DataError(f"task {name!r}: max_train {entry.max_train} is less than its {len(own)} classes")
        yield _Piece(name, entry, rows.of(name, own).at_most(entry, seed))


def _union(labels: list[list[str]], before: list[list[str]]) -> list[str]:
    """One list of all class names: what a state's head has, or the first task's if it has them all, else sorted."""
    together = {name for own in labels for name in own}
    if before:
        if new := sorted(together - set(before[0]), key=natural):
            known = ", ".join(before[0])
            raise DataError(f"class {new[0]!r} is new to the head of the state that this run begins with, of {known}")
        return before[0]
    return labels[0] if len(labels[0]) == len(together) else sorted(together, key=natural)


class _Texts:
    """Texts of a piece -> rows of tokens."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.collate = tokenizer, DataCollatorWithPadding(tokenizer)
        self.hash = Hasher.hash(tokenizer)  # takes long for a large vocabulary: once here, not in every map

    def __call__(self, piece: _Piece, rows: datasets.Dataset, ids: Any) -> datasets.Dataset:
        columns = [piece.entry.text] if isinstance(piece.entry.text, str) else piece.entry.text
        for column in columns:
            check_text(piece.name, rows, column)
        longest = self.tokenizer.model_max_length
        length = piece.entry.max_length or min(MAX_LENGTH, longest)
        if length > longest:
            raise DataError(f"task {piece.name!r}: max_length {length} is more than the model's {longest}")

        def encode(*texts: list[str]) -> dict[str, Any]:
            return dict(self.tokenizer(*texts, truncation=True, max_length=length))

        with progress(len(rows) > LONG):
            tokens = rows.map(
                encode,
                input_columns=columns,
                batched=True,
                remove_columns=rows.column_names,
                new_fingerprint=Hasher.hash([rows._fingerprint, self.hash, columns, length]),
                desc=f"tokenizing {piece.name}",
            )
            return tokens.add_column("labels", ids)


class _Images:
    """Images of a piece -> rows of pixel values, decoded when a row is read: kept, they would dwarf their files."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.collate = processor, default_data_collator

    def __call__(self, piece: _Piece, rows: datasets.Dataset, ids: Any) -> datasets.Dataset:
        column = piece.entry.image
        check_column(piece.name, rows, column)
        if not isinstance(rows.features[column], datasets.Image):
            raise DataError(f"task {piece.name!r}: column {column!r} holds {rows.features[column]}, not images")
        with progress(len(rows) > LONG):
            images = rows.select_columns(column).cast_column(column, datasets.Image(mode="RGB"))
            images = images.add_column("labels", ids)

        def encode(batch: dict[str, list]) -> dict[str, Any]:
            pixels = self.processor(images=batch[column], return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, "labels": batch["labels"]}

        return images.with_transform(encode)
