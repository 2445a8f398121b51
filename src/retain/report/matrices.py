"""The score matrices of a report, as rows of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retain.report.read import Run
from retain.report.verdict import comparable

BOUNDS = ("joint", "per-task")
Cell = tuple[float, str, float]


@dataclass(frozen=True)
class Matrix:
    """A title, the names of the columns, and rows: label, whether it is a bound, and cells (value, kind, shade)."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, bool, list[Cell]]]


def matrices(run: Run, others: Sequence[Run]) -> list[Matrix]:
    """What tasks scored, with a guard's column if there is one; then what they were asked, a matrix a metric."""
    alike, guard = [other for other in others if other.name in BOUNDS and comparable(run, other)], run.guard
    note = "Lower is better." if run.tokenwise else ""
    if guard is not None:
        note += f" Last column, {guard['name']}: what the untouched model could do."
    sign = -1 if run.tokenwise else 1
    shades = np.nan_to_num(run.matrix) if run.unit == "accuracy" else _within(sign * _guarded(run))
    columns = run.columns if guard is None else [*run.columns, guard["name"]]
    first = _rows(run, _guarded(run), shades, [(other.name, _guarded(other)[-1]) for other in alike])
    found = [Matrix(run.unit.capitalize(), note, columns, first)]
    for metric, values in run.metrics.items():
        bounds = [(other.name, other.metrics[metric][-1]) for other in alike if metric in other.metrics]
        asked = [i for i in range(len(run.tasks)) if not np.isnan(values[:, i]).all()]
        whole = _rows(run, values, np.nan_to_num(values), bounds)
        rows = [(label, bound, [cells[i] for i in asked]) for label, bound, cells in whole]
        found.append(Matrix(metric, "Higher is better.", [run.tasks[i] for i in asked], rows))
    return found


def _rows(
    run: Run, matrix: np.ndarray, shades: np.ndarray, bounds: Sequence[tuple[str, np.ndarray]]
) -> list[tuple[str, bool, list[Cell]]]:
    """Rows of a score matrix, the untouched model first; below them the last rows of runs that are bounds."""
    rows: list[tuple[str, bool, list[Any]]] = []
    for t, values in enumerate(matrix):
        if not np.isnan(values).all():
            label = "nothing yet" if t == 0 else f"{run.tasks[t - 1]}" if run.in_turn else "all at once"
            kinds = ["later" if i >= t else "now" if i == t - 1 else "" for i in range(len(run.tasks))]
            kinds += [""] * (len(values) - len(kinds))
            rows.append((label, False, list(zip(values, kinds, shades[t], strict=True))))
    return rows + [(name, True, [(value, "", 0.0) for value in last[: matrix.shape[1]]]) for name, last in bounds]


def _guarded(run: Run) -> np.ndarray:
    """The score matrix (T+1, T), with the column of a guard if there is one."""
    if run.guard is None:
        return run.matrix
    return np.column_stack([run.matrix, np.array(run.guard["nats_per_token"], dtype=float)])


def _within(matrix: np.ndarray) -> np.ndarray:
    """How dark each cell is, 0 to 1, between the least and the most of its column."""
    least, most = np.nanmin(matrix, axis=0), np.nanmax(matrix, axis=0)
    return np.nan_to_num((matrix - least) / np.maximum(most - least, 1e-9))
