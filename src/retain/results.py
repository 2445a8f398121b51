"""The record of a run: what every stage found, and the score matrices, scores and costs that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from retain import scores
from retain.config import RunConfig
from retain.data import Stream
from retain.evaluate import Score
from retain.method import Method
from retain.tokenwise import headline as tokenwise_headline
from retain.tokenwise import tokenwise

INTERVALS = {
    "average_accuracy": scores.average_accuracy,
    "average_incremental_accuracy": scores.average_incremental_accuracy,
    "learning_accuracy": scores.learning_accuracy,
    "forgetting": scores.forgetting,
    "backward_transfer": scores.backward_transfer,
}
# scenario -> what accuracy means in it, and what is reported beside it
KINDS = {"task": ("known", "unknown"), "class": ("unknown", "known"), "domain": ("known",)}

CLEAR = 2.0  # standard errors from zero
SLIGHT = 0.01  # nats an example of each earlier task that nobody need be warned of
INERT = 0.01  # of a nat paid for a nat lost


def record(number: int, found: Mapping[str, Score]) -> dict[str, Any]:
    """The scores of one stage as JSON; outcomes of rows are strings of 0 and 1, in the order of the test rows."""
    return {
        "learned": number + 1,
        "tasks": {
            name: {"rows": score.n, "loss": score.loss}
            | {key: _bits(value) for key, value in _outcomes(score).items() if value is not None}
            | _of_tokens(score)
            for name, score in found.items()
        },
    }


def _of_tokens(score: Score) -> dict[str, Any]:
    if score.tokens is None or score.losses is None:
        return {}
    return {"tokens": score.tokens.tolist(), "losses": [round(loss, 4) for loss in score.losses.tolist()]}


def row_losses(found: Mapping[str, Score]) -> dict[str, Tensor]:
    """The loss (n,) of each test row by task, to be compared with those after the next training."""
    return {name: score.losses.float() for name, score in found.items() if score.losses is not None}


def results(config: RunConfig, stream: Stream, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that ``results.json`` holds, from the records of all stages.

    ``accuracy`` is measured as the scenario says: the task known (task-incremental), unknown (class-incremental),
    or of no matter (domain-incremental). The first two are both reported. Of a causal language model there are
    ``nats_per_token`` instead.
    """
    names = [task.name for task in stream.tasks]
    rows = np.array([records[0]["tasks"][name]["rows"] for name in names])
    summary: dict[str, Any] = {
        "retain": version("retain"),
        "method": config.method,
        "scenario": config.scenario,
        "seed": config.seed,
        "tasks": names,
        "rows": config.evaluation.rows or "test",
    }
    if config.model.kind == "causal-lm":
        summary |= tokenwise(records, names)
    else:
        summary |= _accuracies(records, names, KINDS[config.scenario], rows)
    summary["loss"] = {"matrix": _rounded(_loss(records, names)), "unit": "nats per example"}
    summary["calibration"] = [
        {"after": r["learned"], **r["calibration"]} for r in records if r.get("calibration") is not None
    ]
    summary["warnings"] = {f"after {r['learned']}": r["warnings"] for r in records if r.get("warnings")}
    summary["bytes"] = records[-1].get("bytes", {})
    summary["boundary"] = {f"after {r['learned']}": r["boundary"] for r in records if r.get("boundary")}
    summary["steps"] = sum(entry.get("steps", 0) for entry in records)
    summary["seconds"] = _seconds(records)
    return summary


def _accuracies(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], kinds: Sequence[str], rows: np.ndarray
) -> dict[str, Any]:
    found = {"accuracy": _scored(records, names, kinds[0], rows)}
    for kind in kinds[1:]:
        found[f"accuracy_task_{kind}"] = _scored(records, names, kind, rows)
    if len(kinds) > 1:
        found["task_found"] = {"matrix": _rounded(_matrix(columns(records, names, "task_found")))}
    return found


def columns(records: Sequence[Mapping[str, Any]], names: Sequence[str], kind: str) -> list[np.ndarray]:
    """Per task the outcomes (T+1, rows) of its test rows after every stage; NaN where nothing was measured.

    ``records`` are those of all stages, ``kind`` is one of ``KINDS``.
    """
    found = []
    for name in names:
        column = np.full((len(names) + 1, records[0]["tasks"][name]["rows"]), np.nan)
        for entry in records:
            column[entry["learned"]] = [int(bit) for bit in entry["tasks"][name][kind]]
        found.append(column)
    return found


def calibrate(
    foreseen: Mapping[str, float],
    remembered: Mapping[str, float],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The foreseen beside the measured rise of the earlier tasks' test loss over one training, nats per example.

    A measured rise is a mean over a task's test rows, and its standard error that of their paired differences. "ratio"
    is foreseen over measured, null unless the measured rise is clear: more than two standard errors.

    Args:
        foreseen: what ``Method.predicted_rise`` gave before the boundary.
        remembered: how much each earlier task counts in the "total", by name.
        before: the loss (n,) of each test row at the last boundary, by task.
        after: the same now.
    """
    total, variance, tasks = 0.0, 0.0, {}
    for name, share in remembered.items():
        rises = (after[name].double() - before[name].double()).numpy()
        error = rises.std(ddof=1) / len(rises) ** 0.5 if len(rises) > 1 else np.nan
        tasks[name] = _compared(foreseen.get(name), rises.mean(), error)
        total, variance = total + share * rises.mean(), variance + (share * error) ** 2
    return {"total": _compared(foreseen["total"], total, variance**0.5), "tasks": tasks}


def note(method: Method, task: str, rise: Mapping[str, Any]) -> dict[str, Any]:
    """Tell ``method`` what a training has cost; returns how it had read its gauge, and the factor from now on.

    Args:
        method: after ``end_task``.
        task: the one just learned.
        rise: the "total" of ``calibrate``.
    """
    before = method.factor
    if before is None:
        return {}
    error = math.inf if rise["standard_error"] is None else rise["standard_error"]
    method.calibrate(task, rise["foreseen"], rise["measured"], error)
    after = method.factor or before
    return (before.read(rise["foreseen"]) if before.boundaries else {}) | {"factor": asdict(after)}


def doubts(calibration: Mapping[str, Any], strength: float, task: str, loss: float) -> list[str]:
    """What to tell a user of a protection that does nothing, or that leaves no room for anything else.

    Args:
        calibration: of one boundary.
        strength: what a foreseen nat weighed during training.
        task: the one just learned.
        loss: its test loss before it was learned. No training that goes downhill pays more than that.
    """
    total, named = calibration["total"], f"method.strength is {strength:g}"
    paid, lost, ratio = strength * total["foreseen"], total["measured"], total["ratio"]
    if paid > loss:
        return [
            f"learning {task!r} has paid {paid:.3g} nats an example to its own protection, more than the whole loss of "
            f"{loss:.3g} that there was to gain: the protection dominates, and training cannot follow it. {named}: "
            "lower it, or the learning rate"
        ]
    if strength and ratio is not None and paid < INERT * lost and lost > SLIGHT * len(calibration["tasks"]):
        fair = f"about {float(format(1 / ratio, '.1g')):g}" if ratio > 0 else "far more"
        return [
            f"learning {task!r} has cost the earlier tasks {lost:.3g} ± {total['standard_error']:.2g} nats an example, "
            f"and protecting them weighed {paid:.1g}: the protection is inert. {named}: raise it ({fair} would weigh a "
            "nat lost like a nat gained)"
        ]
    return []


def headline(name: str, records: Sequence[Mapping[str, Any]], scenario: str) -> str:
    """What the last stage learned, what it did to the tasks before, and whether that was foreseen; a line or two."""
    line = (
        tokenwise_headline(name, records)
        if "tokens" in next(iter(records[0]["tasks"].values()))
        else _accuracy_headline(name, records, KINDS[scenario][0])
    )
    if found := records[-1].get("calibration"):
        many = " (summed)" if len(found["tasks"]) > 1 else ""
        line += f"\n  [dim]their test loss in nats an example{many}[/] {in_words(found['total'])}"
    return line


def _accuracy_headline(name: str, records: Sequence[Mapping[str, Any]], kind: str) -> str:
    last = {task: _mean(entry[kind]) for task, entry in records[-1]["tasks"].items()}
    learned = list(last)[: records[-1]["learned"]]
    if not learned:
        return f"[dim]{name}:[/] accuracy " + " ".join(f"{a:.3f}" for a in last.values())
    line = f"[bold]{name}[/] learned: {last[learned[-1]]:.3f}"
    if len(learned) > 1 and len(records) == records[-1]["learned"] + 1:
        before = [_mean(records[i + 1]["tasks"][task][kind]) for i, task in enumerate(learned[:-1])]
        now = [last[task] for task in learned[:-1]]
        line += f"; the {len(now)} before: {np.mean(now):.3f} ({np.mean(now) - np.mean(before):+.3f} since learned)"
    return line


def in_words(rise: Mapping[str, Any]) -> str:
    """A measured rise beside what was foreseen of it, as a sentence's end."""
    error = "" if rise["standard_error"] is None else f" ± {rise['standard_error']:.3f}"
    if rise["ratio"] is None:
        words = f"changed by {rise['measured']:+.3f}{error}, no clear rise; foreseen {rise['foreseen']:+.2g}"
    else:
        words = (
            f"rose by {rise['measured']:.3f}{error}; foreseen {rise['foreseen']:.2g}, {share_in_words(rise['ratio'])}"
        )
    if "calibrated" in rise:
        words += f", calibrated {rise['calibrated']:.2g} ({rise['low']:.2g} to {rise['high']:.2g})"
    return words


def share_in_words(ratio: float) -> str:
    """``ratio`` as people say it: "1/30 of it", "1.4 times that"."""
    if not 0 < ratio < 0.7:
        return f"{ratio:.2g} times that"
    return f"1/{1 / ratio:.0f} of it" if ratio < 0.1 else f"1/{1 / ratio:.1f} of it"


def _compared(foreseen: float | None, measured: float, error: float) -> dict[str, float | None]:
    ratio = foreseen / measured if foreseen is not None and measured > CLEAR * error else None
    return {"foreseen": foreseen, "measured": _number(measured), "standard_error": _number(error), "ratio": ratio}


def _scored(records: Sequence[Mapping[str, Any]], names: Sequence[str], kind: str, rows: np.ndarray) -> dict[str, Any]:
    outcomes = columns(records, names, kind)
    matrix = _matrix(outcomes)
    intervals = {name: scores.bootstrap(outcomes, score) for name, score in INTERVALS.items()}
    return {
        "matrix": _rounded(matrix),
        "scores": {name: _number(value) for name, value in scores.summary(matrix, n=rows).items()},
        "intervals_95": {name: [_number(x) for x in pair] for name, pair in intervals.items()},
    }


def _matrix(outcomes: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([column.mean(1) for column in outcomes], axis=1)


def _loss(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    matrix = np.full((len(names) + 1, len(names)), np.nan)
    for entry in records:
        matrix[entry["learned"]] = [entry["tasks"][name]["loss"] for name in names]
    return matrix


def _seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for entry in records:
        for name, value in entry["seconds"].items():
            total[name] = round(total.get(name, 0.0) + value, 3)
    return total


def _outcomes(score: Score) -> dict[str, Any]:
    return {"known": score.correct, "unknown": score.correct_unknown, "task_found": score.task_found}


def _bits(outcomes: Any) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)


def _mean(bits: str) -> float:
    return bits.count("1") / len(bits)


def _rounded(matrix: np.ndarray) -> list[list[float | None]]:
    return [[_number(x) for x in row] for row in matrix]


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 6)
