"""What finished runs amount to: means and spread over seeds, paired differences, bytes by kind, and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from retain import paired, scores, store
from retain.commands.compare.measure import ACCURACY, GUARD, Measure
from retain.commands.many.cells import Cell
from retain.commands.many.entries import Entry
from retain.commands.many.spread import spread
from retain.guard import rows_of as guard_rows
from retain.results import KINDS, columns
from retain.tokenwise import answered, levels, losses_per_token, metrics_of

REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its scores.json of every stage, and per task the outcomes (T+1, rows) of its test rows.

    Their scores, means over rows or other metrics, are higher the better, but for losses.
    """

    records: list[dict[str, Any]]
    outcomes: Sequence[scores.Column]

    @property
    def matrix(self) -> np.ndarray:
        """(T+1, T) scores."""
        return scores.matrix_of(self.outcomes)

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The records of stages that trained."""
        return [record for record in self.records if record["learned"]]

    @property
    def guard(self) -> np.ndarray | None:
        """Rows (2, n) whose means are the guard's nats per token, untouched and at the end; None: there is none."""
        if "guard" not in self.records[0]:
            return None
        return np.stack([guard_rows(record["guard"]) for record in (self.records[0], self.records[-1])])


Runs = Mapping[str, Mapping[int, Run]]  # by label and seed
Draws = dict[str, np.ndarray]


def read(cell: Cell) -> Run:
    """The finished run of ``cell``.

    Raises:
        StoreError: a record that is missing or damaged.
    """
    stages = store.stage_folders(cell.folder)
    for stage in stages:
        store.verify(stage, "scores.json")
    records = sorted((store.read_json(s / "scores.json") for s in stages), key=lambda record: record["learned"])
    names = list(records[0]["tasks"])
    if cell.config.model.in_nats:
        return Run(records, losses_per_token(records, names))
    return Run(records, columns(records, names, KINDS[cell.config.scenario][0]))


def summarise(entries: Sequence[Entry], runs: Runs, against: str, by: Measure = ACCURACY) -> dict[str, Any]:
    """The methods by label: scores, curve, bytes and seconds, and the difference to ``against``.

    Intransigence is what a task right after its training lacks of a reference: of per-task, where each task is learned
    alone, if it is compared; else of a joint training at its end; else there is none.
    """
    alone = next((e for e in entries if e.method["name"] == "per-task" and runs[e.label]), None)
    measure = alone or next((e for e in entries if e.cumulative and runs[e.label]), None)
    there = {entry.label: runs[entry.label] for entry in entries if runs[entry.label]}
    draws = {label: _drawn(list(mine.values()), by) for label, mine in there.items()} if against in there else {}
    methods = {}
    for label, mine in there.items():
        methods[label] = _found(mine, runs[measure.label] if measure else {}, measure is alone, by)
        methods[label]["difference"] = {}
        if label != against and draws:
            methods[label]["difference"] = _difference(mine, there[against], draws[label], draws[against], by)
    return {
        "tasks": next((list(run.records[0]["tasks"]) for mine in there.values() for run in mine.values()), []),
        "against": against,
        "unit": by.unit,
        "intransigence": None if measure is None else {"reference": measure.label, "each_task_alone": measure is alone},
        "methods": methods,
        "verdict": verdict(methods, against, by),
    }


def verdict(methods: Mapping[str, Any], against: str, by: Measure = ACCURACY) -> dict[str, list[str]]:
    """The methods whose final score is better than that of ``against``, worse, and not told apart from it."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for label, found in methods.items():
        if label != against and (difference := found["difference"].get(by.decides)):
            low, high = sorted(-x if by.lower else x for x in difference["interval_95"])
            told["better" if low > 0 else "worse" if high < 0 else "not told apart"].append(label)
    return told


def _found(mine: Mapping[int, Run], reference: Mapping[int, Run], alone: bool, by: Measure) -> dict[str, Any]:
    values: dict[str, list[float | None]] = {"intransigence": []}
    for seed, run in mine.items():
        for name, value in _values(run, by).items():
            values.setdefault(name, []).append(_number(value))
        other, sign = reference.get(seed), -1 if by.lower else 1
        best = None if other is None else np.diagonal(other.matrix[1:]) if alone else other.matrix[-1]
        lack = None if best is None else _number(scores.intransigence(sign * run.matrix, sign * best))
        values["intransigence"].append(lack)
    every = list(mine.values())
    last = [run.trained[-1]["bytes"] for run in every]
    kinds = sorted({kind for size in last for kind in size["kinds"]})
    return {
        "seeds": list(mine),
        "scores": {name: spread(found) for name, found in values.items()},
        "curve": [spread([_number(x) for x in column]) for column in np.stack([_curve(run) for run in every], axis=1)],
        "bytes": {
            "adapter": _mean([size["adapter"] for size in last]),
            "state": _mean([size["state"] for size in last]),
            "kinds": {kind: _mean([size["kinds"].get(kind, 0) for size in last]) for kind in kinds},
            "after": {
                stage[0]["learned"]: _mean([record["bytes"]["adapter"] + record["bytes"]["state"] for record in stage])
                for stage in zip(*(run.trained for run in every), strict=True)
            },
        },
        "seconds_per_step": spread([_per_step(run) for run in every]),
        "seconds_per_boundary": spread([_per_boundary(run) for run in every]),
    }


def _values(run: Run, by: Measure) -> dict[str, float]:
    """Every score of a run, also of its guard, and of what tasks are asked: at the end, and how much is forgotten."""
    found = {name: score(run.matrix) for name, score in {**by.compared, **by.beside}.items()}
    if run.guard is not None:
        found[GUARD] = _rise(run.guard.mean(1, keepdims=True))
    names = list(run.records[0]["tasks"])
    for metric in metrics_of(run.records):
        matrix = np.stack([column.mean(1) for column in answered(run.records, names, metric)], axis=1)
        level = levels(matrix, "higher")
        found |= {f"{metric}_{name}": level[name] for name in ("final", "forgetting")}
    return found


def _rise(guard: np.ndarray) -> float:
    return float(guard[1, 0] - guard[0, 0])


def _drawn(runs: Sequence[Run], by: Measure) -> Draws:
    """Every score (S, R) of S runs on R resampled test sets."""
    matrices = paired.resampled([run.outcomes for run in runs], replicates=REPLICATES)
    found = {name: paired.each(matrices, score) for name, score in by.compared.items()}
    guards = [[run.guard] for run in runs if run.guard is not None]
    if len(guards) == len(runs):
        found[GUARD] = paired.each(paired.resampled(guards, replicates=REPLICATES), _rise)
    return found


def _difference(
    ours: Mapping[int, Run], theirs: Mapping[int, Run], our_draws: Draws, their_draws: Draws, by: Measure
) -> dict[str, Any]:
    """Ours less theirs under the seeds that both have, with its interval over seeds and test rows, score by score."""
    seeds = [seed for seed in ours if seed in theirs]
    mine, other = ([list(runs).index(seed) for seed in seeds] for runs in (ours, theirs))
    found = {}
    for name in (name for name in our_draws if name in their_draws):
        gains = [_values(ours[seed], by)[name] - _values(theirs[seed], by)[name] for seed in seeds]
        if gains and not np.isnan(gains).any():
            low, high = paired.interval(our_draws[name][mine] - their_draws[name][other])
            found[name] = {"mean": _number(float(np.mean(gains))), "interval_95": [_number(low), _number(high)]}
    return found


def _curve(run: Run) -> np.ndarray:
    """Average score (T,) on the tasks learned so far, after each."""
    return np.array([row[: t + 1].mean() for t, row in enumerate(run.matrix[1:])])


def _per_step(run: Run) -> float | None:
    steps = sum(record.get("steps", 0) for record in run.trained)
    return sum(record["seconds"]["train"] for record in run.trained) / steps if steps else None


def _per_boundary(run: Run) -> float:
    return float(np.mean([record["seconds"]["boundary"] for record in run.trained]))


def _mean(sizes: Sequence[int]) -> int:
    return round(float(np.mean(sizes)))


def _number(value: float) -> float | None:
    return None if isnan(value) else round(float(value), 6)
