"""Streams of time series: columns of numbers in order of time -> windows of what a forecaster reads and is to say.

A row is a window of one channel. Parts follow each other in time: the test rows after those for training. Of each part
it is what is to be forecast that lies in it; what is read may reach back into those before, which were known by then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import default_data_collator

from retain.answers import Apart
from retain.nearest import did_you_mean
from retain.sources import DataError, stratified
from retain.splits import splits_of
from retain.task import SquaredError, Task

if TYPE_CHECKING:
    from retain.config import RunConfig, TaskConfig

SHOWN = 16  # digits of a hash
Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """Steps of a row: those that are read, and those after them that are to be said."""

    context: int
    horizon: int

    @classmethod
    def of(cls, config: Any) -> Window:
        """The window of a forecaster's ``config``."""
        return cls(config.context_length, config.prediction_length)


def series_tasks(config: RunConfig, model: Any) -> tuple[list[Task], Apart | None]:
    """The tasks of ``config``, and what calibrates the gauge if that is not what is scored.

    Rows have ``past_values`` (context, 1) and ``labels`` (horizon, 1), float32: of each channel the distance from the
    mean of its training rows in their standard deviations.

    Args:
        config: of the run.
        model: the forecaster's configuration.

    Raises:
        DataError: the first thing wrong with the data, in one line.
    """
    tasks, apart = [], Apart()
    for entry in config.tasks:
        train, test, *more = windows(config, entry, Window.of(model))
        metric = entry.metric or "neg_mean_absolute_error"
        tasks.append(Task(entry.name, train, test, SquaredError(), default_data_collator, metric=metric))
        for rows in more:
            apart.tasks[entry.name] = replace(tasks[-1], test=rows)
    return tasks, apart if apart.tasks else None


def windows(config: RunConfig, entry: TaskConfig, window: Window) -> list[datasets.Dataset]:
    """The rows of ``entry`` to learn, to score, and if any to set the gauge.

    Raises:
        DataError: as of ``series_tasks``.
    """
    splits = splits_of(config, entry, labelled=False, in_order=True)
    parts: list[tuple[str, datasets.Dataset]] = [("training", splits.train.rows)]
    parts += [("gauge's", splits.gauge.rows)] if splits.gauge is not None else []
    parts.append((splits.scored, splits.test.rows))
    columns = _columns(entry, parts[0][1])
    values = [_values(entry, kind, rows, columns) for kind, rows in parts]
    mean, deviation = values[0].mean(1, keepdims=True), values[0].std(1, keepdims=True)
    for column, spread in zip(columns, deviation[:, 0], strict=True):
        if not spread > 0:
            raise DataError(f"task {entry.name!r}: column {column!r} is constant in the training rows")
    whole = ((np.concatenate(values, axis=1) - mean) / deviation).astype(np.float32)
    ends = np.cumsum([part.shape[1] for part in values]).tolist()
    found = []
    for number, ((kind, _), start, end) in enumerate(zip(parts, [0, *ends], ends, strict=False)):
        first = max(start - window.context, 0)
        starts = np.arange(first, end - window.context - window.horizon + 1, entry.stride or 1)
        if not len(starts):
            raise DataError(
                f"task {entry.name!r}: its {end - start} {kind} rows hold no window of {window.context} steps that are "
                f"read and {window.horizon} that are forecast"
            )
        most = entry.max_train if number == 0 else entry.max_test
        found.append(_rows(whole, starts, window, most, config.rows_seed))
    return [found[0], found[-1], *found[1:-1]]


def _columns(entry: TaskConfig, rows: datasets.Dataset) -> list[str]:
    """The channels: those that ``entry`` names, or every column of numbers."""
    numeric = [name for name, feature in rows.features.items() if _is_number(feature)]
    for name in entry.columns or ():
        if name not in numeric:
            what = f"holds {rows.features[name]}, not numbers" if name in rows.column_names else "is not there"
            raise DataError(
                f"task {entry.name!r}: column {name!r} {what}; columns of numbers: {', '.join(numeric) or 'none'}"
                f"{did_you_mean(name, numeric)}"
            )
    if not numeric:
        raise DataError(f"task {entry.name!r}: no column of numbers; columns: {', '.join(rows.column_names)}")
    return entry.columns or numeric


def _is_number(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))


def _values(entry: TaskConfig, kind: str, rows: datasets.Dataset, columns: Sequence[str]) -> NDArray[np.float64]:
    """The numbers (C, T) of ``columns``."""
    found = []
    for name in columns:
        if name not in rows.column_names or not _is_number(rows.features[name]):
            raise DataError(f"task {entry.name!r}: the {kind} rows have no column {name!r} of numbers")
        own = np.array([np.nan if x is None else x for x in rows.select_columns(name)[:][name]], dtype=np.float64)
        if not (good := np.isfinite(own)).all():
            raise DataError(f"task {entry.name!r}: column {name!r} has no number in {kind} row {int(np.argmin(good))}")
        found.append(own)
    return np.stack(found)


def _rows(values: Numbers, starts: Any, window: Window, most: int | None, seed: int) -> datasets.Dataset:
    """Windows of the channels of ``values`` (C, T) that begin at ``starts``; a seeded subset of ``most`` of them.

    They are cut when a row is read: kept, they would take so many times the series as they have steps. The hash of
    each one's series is there for the fingerprint of the rows.
    """
    hashes = [hashlib.sha256(series.tobytes()).hexdigest()[:SHOWN] for series in values]
    table = {
        "series": [name for name in hashes for _ in starts],
        "channel": [channel for channel in range(len(values)) for _ in starts],
        "start": [int(start) for _ in hashes for start in starts],
    }
    rows = datasets.Dataset.from_dict(table)
    if most is not None and most < len(rows):
        rows = rows.select(stratified(np.full(len(rows), ""), most, seed))
    return rows.with_transform(partial(_cut, values, window))


def _cut(values: Numbers, window: Window, batch: dict[str, list[Any]]) -> dict[str, Any]:
    places = list(zip(batch["channel"], batch["start"], strict=True))
    length = window.context + window.horizon
    whole = torch.from_numpy(np.stack([values[channel, start : start + length] for channel, start in places]))
    past, future = whole[..., None].split([window.context, window.horizon], dim=1)
    return {"past_values": past, "labels": future}
