"""A ``tasks:`` entry -> labelled rows: what ``datasets.load_dataset`` finds, split into train and test."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import datasets
import numpy as np

from retain.metrics import OF_NUMBERS
from retain.nearest import did_you_mean

if TYPE_CHECKING:
    from retain.config import TaskConfig

FORMATS = ("json", "csv", "parquet", "arrow", "text", "xml", "hdf5", "webdataset", "imagefolder")
Rows = Literal["test", "validation"]
LONG = 64 * 2**20  # bytes of files from which on a progress bar is worth its line


class DataError(ValueError):
    """Data that cannot be a task, told in one line."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows and the name of each row's class (n,)."""

    rows: datasets.Dataset
    names: np.ndarray

    def take(self, index: np.ndarray) -> Split:
        """The rows numbered ``index`` (m,)."""
        return Split(self.rows.select(index), self.names[index])

    def of(self, classes: Sequence[str]) -> Split:
        """The rows of ``classes``."""
        return self.take(np.flatnonzero(np.isin(self.names, classes)))

    def at_most(self, n: int | None, seed: int) -> Split:
        """A stratified subset of ``n`` rows; all of them if there are no more."""
        return self if n is None or n >= len(self.names) else self.take(stratified(self.names, n, seed))


def stratified(names: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Row numbers (n,), ascending, of a seeded subset in which every class of ``names`` keeps its share.

    The rows of a class are shuffled and ranked from 0 to 1; the lowest ranks are taken. So every class has a row as
    soon as there are as many rows as classes, and a smaller subset is part of a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(names))
    rank = np.empty(len(names))
    for name in np.unique(names):
        rows = np.flatnonzero(names[order] == name)
        rank[rows] = np.arange(len(rows)) / len(rows)
    return np.sort(order[np.argsort(rank, kind="stable")[:n]])


def natural(name: str) -> tuple[int, int, str]:
    """Sort key of class names: whole numbers by value, then text."""
    return (0, int(name), "") if re.fullmatch(r"[-+]?\d+", name) else (1, 0, name)


def read(
    entry: TaskConfig, seed: int | None, scored: Rows = "test", *, labelled: bool = True
) -> tuple[Split, Split, list[str]]:
    """The training rows of ``entry``, the rows to score, and its class names in order.

    Args:
        entry: of ``tasks``.
        seed: of the rows that are held out where no split is named; None: the last of them, as of a time series.
        scored: "test" or "validation". Validation rows are a split of their own, or held out of the training rows; the
            test rows are then kept out of both, and a file that holds nothing else is not opened.
        labelled: without labels, as texts for language models are, all rows are of one class "".

    Raises:
        DataError: what is missing, empty, without a label, or labelled with what training never shows.
    """
    named = list(entry.data_files) if isinstance(entry.data_files, dict) else None
    if named and scored == "validation":
        entry = _without_test(entry, *_names(entry, named))
    found = _load(entry)
    train_name, test_name, validation_name = _names(entry, named or list(found))
    named_rows = _labelled if labelled else _alike
    rows = train = named_rows(entry, "train", _split(entry, found, train_name))
    if test_name is None:
        train, rows = _held_out(train, entry.test_fraction, seed)
    elif scored == "test":
        rows = named_rows(entry, "test", _split(entry, found, test_name))
    if scored == "validation" and validation_name is None:
        train, rows = _held_out(train, entry.test_fraction, seed)
    elif scored == "validation":
        rows = named_rows(entry, "validation", _split(entry, found, str(validation_name)))
    classes = _classes(entry, train) if labelled else [""]
    if entry.classes:
        train, rows = train.of(classes), rows.of(classes)
    if not len(rows.names):
        raise DataError(f"task {entry.name!r}: the {scored} split is empty")
    for name in sorted(set(rows.names.tolist()) - set(classes), key=natural):
        raise DataError(
            f"task {entry.name!r}: {scored} label {name!r} is never seen in training; "
            f"labels there: {_few(classes)}{did_you_mean(name, classes)}"
        )
    return train, rows, classes


def _held_out(split: Split, fraction: float, seed: int | None) -> tuple[Split, Split]:
    """``split`` without a ``fraction`` of its rows, stratified by label or the last, and those."""
    count = len(split.names) - round(fraction * len(split.names))
    kept = np.arange(count) if seed is None else stratified(split.names, count, seed)
    return split.take(kept), split.take(np.setdiff1d(np.arange(len(split.names)), kept))


def _without_test(entry: TaskConfig, train: str, test: str | None, validation: str | None) -> TaskConfig:
    """``entry`` without the files of its test rows, unless other rows come from them too."""
    unread = _mentioned(test or "") - _mentioned(train) - _mentioned(validation or "")
    files = {split: files for split, files in entry.data_files.items() if split not in unread}  # type: ignore[union-attr]
    return entry.model_copy(update={"data_files": files})


def _classes(entry: TaskConfig, train: Split) -> list[str]:
    """The classes that training shows and ``classes`` keeps: a ClassLabel's in its own order, others sorted."""
    feature, present = train.rows.features[entry.label], set(train.names.tolist())
    ordered = feature.names if isinstance(feature, datasets.ClassLabel) else sorted(present, key=natural)
    kept = present if entry.classes is None else {str(c) for c in entry.classes}
    for name in sorted(kept - present, key=natural):
        raise DataError(
            f"task {entry.name!r}: unknown class {name!r} in `classes`; "
            f"labels in training: {_few(sorted(present, key=natural))}{did_you_mean(name, present)}"
        )
    return [name for name in ordered if name in kept]


def _labelled(entry: TaskConfig, split: str, rows: datasets.Dataset) -> Split:
    where = f"task {entry.name!r}: the {split} split"
    _check_any(where, rows)
    check_column(entry.name, rows, entry.label)
    feature = rows.features[entry.label]
    values = rows.select_columns(entry.label)[:][entry.label]
    if isinstance(feature, datasets.ClassLabel):
        names = [None if value in (None, -1) else feature.names[value] for value in values]
    elif isinstance(feature, datasets.Value) and re.match("(large_)?string|u?int|bool", feature.dtype):
        names = [None if value is None else str(value) for value in values]
    else:
        raise DataError(
            f"{where}: label column {entry.label!r} holds {feature}; expected text, whole numbers or booleans; of a "
            f"regression, say `metric: {OF_NUMBERS[0]}` (or {', '.join(OF_NUMBERS[1:])})"
        )
    if None in names:
        raise DataError(f"{where}: row {names.index(None)} has no label in column {entry.label!r}")
    return Split(rows, np.array(names))


def _alike(entry: TaskConfig, split: str, rows: datasets.Dataset) -> Split:
    """Rows without labels, as one class."""
    _check_any(f"task {entry.name!r}: the {split} split", rows)
    return Split(rows, np.full(len(rows), ""))


def _check_any(where: str, rows: datasets.Dataset) -> None:
    if not len(rows):
        raise DataError(f"{where} is empty")


def check_column(task: str, rows: datasets.Dataset, column: str) -> None:
    """Refuse a column that ``rows`` lack."""
    if column not in rows.column_names:
        known = rows.column_names
        raise DataError(f"task {task!r}: no column {column!r}; columns: {_few(known)}{did_you_mean(column, known)}")


def check_text(task: str, rows: datasets.Dataset, column: str) -> None:
    """Refuse a column that ``rows`` lack, or that has no text, or not in every row."""
    check_column(task, rows, column)
    if rows.features[column] not in (datasets.Value("string"), datasets.Value("large_string")):
        raise DataError(f"task {task!r}: column {column!r} holds {rows.features[column]}, not text")
    if missing := rows.select_columns(column)[:][column].count(None):
        raise DataError(f"task {task!r}: column {column!r} holds no text in {missing} of {len(rows)} rows")


def _names(entry: TaskConfig, found: Sequence[str]) -> tuple[str, str | None, str | None]:
    """What the training, test and validation rows are called among the splits ``found``; None: they are held out."""
    train = entry.train or ("train" if "train" in found or len(found) > 1 else found[0])
    for kind, expression in (("test", entry.test), ("validation", entry.validation)):
        if entry.train is None and expression is not None and train in _mentioned(expression):
            raise DataError(
                f"task {entry.name!r}: {kind} {expression!r} is part of {train!r}; name the rest with `train`"
            )
    test = entry.test or next((s for s in ("test", "validation") if s in found and s not in _mentioned(train)), None)
    taken = _mentioned(train) | _mentioned(test or "")
    validation = entry.validation or ("validation" if "validation" in found and "validation" not in taken else None)
    return train, test, validation


def _mentioned(expression: str) -> set[str]:
    return {part.split("[")[0].strip() for part in expression.split("+")}


def _split(entry: TaskConfig, found: datasets.DatasetDict, expression: str) -> datasets.Dataset:
    if expression in found:
        return found[expression]
    for name in _mentioned(expression) - set(found):
        hint = did_you_mean(name, found)
        raise DataError(f"task {entry.name!r}: no split {name!r}; splits: {_few(list(found))}{hint}")
    return _load(entry, expression)


def _load(entry: TaskConfig, split: str | None = None) -> Any:
    """``datasets.load_dataset`` of the entry: all splits, or those of an expression."""
    files = _local(entry)
    keywords = {"name": entry.config, "data_files": entry.data_files, "data_dir": entry.data_dir, "split": split}
    keywords |= separator(entry.path, _flat(entry.data_files))
    try:
        with progress(files is None or sum(map(_size, files)) > LONG):
            return datasets.load_dataset(entry.path, **keywords)
    except Exception as error:  # whatever a reader or the hub stumbles over, to the user these data do not load
        reason = str(error.__cause__ or error).strip().split("\n")[0] or type(error).__name__
        named = files or _flat(entry.data_files)
        what = f"read {_few(named)} as {entry.path}" if named else f"load {entry.path!r}, which is no folder here"
        raise DataError(f"task {entry.name!r}: cannot {what}: {reason}") from error


def separator(path: str, files: Sequence[str]) -> dict[str, Any]:
    """What ``datasets.load_dataset`` is to be told of ``files`` of the format ``path``: those named .tsv have tabs."""
    return {"sep": "\t"} if path == "csv" and files and all(name.endswith(".tsv") for name in files) else {}


def _local(entry: TaskConfig) -> list[str] | None:
    """The entry's files or folders, each of which must exist and hold something; None if they are elsewhere.

    Raises:
        DataError: naming the path that is missing or empty, or the format that is not one.
    """
    where, path, formats = f"task {entry.name!r}", entry.path, ", ".join(FORMATS)
    named = [os.path.join(entry.data_dir or "", name) for name in _flat(entry.data_files)] or _flat(entry.data_dir)
    if os.path.isfile(path):
        raise DataError(f"{where}: path {path!r} is a file; path takes its format ({formats}), data_files the file")
    if path in FORMATS and not named:
        raise DataError(f"{where}: path {path!r} is a format and needs data_files or data_dir")
    if path in FORMATS:
        remote = any("://" in name for name in named)
        return None if remote else [file for name in named for file in _existing(where, name)]
    hint = did_you_mean(path, FORMATS)
    if os.path.isdir(path) or path.startswith((".", "/")):
        return _existing(where, path)
    if named and hint:
        raise DataError(f"{where}: unknown format {path!r}; known: {formats}{hint}")
    return None


def _existing(where: str, name: str) -> list[str]:
    """The files or the folder that ``name``, maybe a pattern, stands for."""
    found = [name] if os.path.exists(name) else glob.glob(name, recursive=True)
    if not found:
        folder = os.path.dirname(name) or "."
        hint = did_you_mean(os.path.basename(name), os.listdir(folder) if os.path.isdir(folder) else [])
        raise DataError(f"{where}: no such file or folder: {os.path.abspath(name)}{hint}")
    if not sum(map(_size, found)):
        raise DataError(f"{where}: {os.path.abspath(name)} is empty")
    return found


def _flat(files: Any) -> list[str]:
    if isinstance(files, dict):
        files = list(files.values())
    return [name for item in files for name in _flat(item)] if isinstance(files, list) else [files] if files else []


def _size(path: str) -> int:
    files = Path(path).rglob("*") if os.path.isdir(path) else [Path(path)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:20])) + (f", ... ({len(names)})" if len(names) > 20 else "")


@contextmanager
def progress(shown: bool) -> Iterator[None]:
    """Show the progress bars and the log of ``datasets`` only if it is going to take long."""
    silenced = not shown and not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    if silenced:
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if silenced:
            datasets.enable_progress_bars()
