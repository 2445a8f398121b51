"""Labels that are numbers: one a row, or a fixed count of them, and what a model's outputs for them are called."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from retain.metrics import misfit
from retain.sources import DataError, check_column

if TYPE_CHECKING:
    from retain.config import TaskConfig

FAR = 30.0  # a spread of targets from which on a nat is no measure of them
NUMBER = "number"  # the one output of a regression whose unit is one


def numbers(entry: TaskConfig, rows: datasets.Dataset, count: int | None = None) -> np.ndarray:
    """The numbers that label ``rows``, as float32: (n,), or (n, k) where each has k > 1 in lists, nested or not.

    Args:
        entry: of ``tasks``.
        rows: of it.
        count: k, if other rows have said so.

    Raises:
        DataError: a label that is no number, rows of different counts, or of one that the metric is not of.
    """
    where = f"task {entry.name!r}: metric {entry.metric!r} is of numbers, and label column {entry.label!r}"
    check_column(entry.name, rows, entry.label)
    if not _are_numbers(feature := rows.features[entry.label]):
        raise DataError(f"{where} holds {feature}")
    flat = [_flat(value) for value in rows.select_columns(entry.label)[:][entry.label]]
    k = len(flat[0]) if count is None else count
    for number, row in enumerate(flat):
        if None in row or not np.isfinite(np.array(row, dtype=np.float32)).all():
            raise DataError(f"{where} has none in row {number}")
        if len(row) != k or not k:
            raise DataError(f"{where} has {len(row)} in row {number}, where others have {k or 'some'}")
    if reason := misfit(str(entry.metric), k):
        raise DataError(f"task {entry.name!r}: {reason} in label column {entry.label!r}")
    found = np.array(flat, dtype=np.float32)
    return found[:, 0] if k == 1 else found


def targets(entry: TaskConfig, rows: datasets.Dataset, count: int, *, training: bool) -> list[Any]:
    """What a model is to say of ``rows``: their numbers in the unit of ``entry``; those of ``training`` on a scale.

    Raises:
        DataError: as of ``numbers``.
    """
    found = numbers(entry, rows, count) / np.float32(entry.unit or 1)
    if training and not 1 / FAR < (spread := float(found.std(0).mean())) < FAR:
        warnings.warn(
            f"task {entry.name!r}: the standard deviation of its numbers is {spread:.3g}, and a distance of one costs "
            "half a nat: give them a spread of about one, or the task counts for all others or for nothing"
            + (f"; `unit: {spread * (entry.unit or 1):.2g}` does" if spread else ""),
            stacklevel=2,
        )
    return list(found)


def outputs_of(entry: TaskConfig, rows: datasets.Dataset) -> list[str]:
    """What the outputs of a model for ``rows`` are called: which number, and what to multiply it by."""
    k = numbers(entry, rows.select([0])).size
    unit = "" if entry.unit in (None, 1) else f", times {entry.unit:g}"
    return [f"{NUMBER}{unit}"] if k == 1 else [f"{NUMBER} {i} of {k}{unit}" for i in range(1, k + 1)]


def check_shared(outputs: Mapping[str, Sequence[str]], before: Sequence[Sequence[str]] = ()) -> None:
    """Refuse regressions by name whose ``outputs`` no one head can give, after those learned ``before``.

    Raises:
        DataError: a task that has other outputs than the first.
    """
    known, whose = next(iter(before), None), "the state that this run begins with"
    for name, mine in outputs.items():
        if known is None:
            known, whose = mine, f"task {name!r}"
        if list(mine) != list(known):
            raise DataError(
                f"task {name!r}: all tasks share one head, of which it needs {_said(mine)}, and {whose} {_said(known)}"
            )


def _said(outputs: Sequence[str]) -> str:
    return f"{outputs[0]!r}" if len(outputs) == 1 else f"{outputs[0]!r} to {outputs[-1]!r}"


def _are_numbers(feature: Any) -> bool:
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    kinds = datasets.Value | datasets.Array2D | datasets.Array3D
    return isinstance(feature, kinds) and re.match("u?int|float|decimal", feature.dtype) is not None


def _flat(value: Any) -> list[Any]:
    return [x for inner in value for x in _flat(inner)] if isinstance(value, list | np.ndarray) else [value]
