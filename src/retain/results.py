"""The record of a run: what every stage found, and the score matrices, scores and costs that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from retain import scores
from retain.calibration import in_words
from retain.config import RunConfig
from retain.data import Stream
from retain.evaluate import Score
from retain.guard import guarded
from retain.metrics import OF_NUMBERS, Answered, Array, errors, unit
from retain.task import Task
from retain.tokenwise import headline as tokenwise_headline
from retain.tokenwise import tokenwise

INTERVALS = {
    "average_accuracy": scores.average_accuracy,
    "average_incremental_accuracy": scores.average_incremental_accuracy,
    "learning_accuracy": scores.learning_accuracy,
    "forgetting": scores.forgetting,
    "backward_transfer": scores.backward_transfer,
}
UNMEASURED = {"loss": np.nan}
# scenario -> what accuracy means in it, and what is reported beside it
KINDS = {"task": ("known", "unknown"), "class": ("unknown", "known"), "domain": ("known",)}


def record(number: int, found: Mapping[str, Score], guard: Task | None = None) -> dict[str, Any]:
    """The scores of one stage as JSON; outcomes of rows are strings of 0 and 1, in the order of the test rows.

    Among those ``found`` under the names of their tasks that of ``guard`` stands apart.
    """
    entries = {name: _entry(score) for name, score in found.items()}
    held = None if guard is None else entries.pop(guard.name)
    told = {"learned": number + 1, "tasks": entries}
    return told if guard is None else told | {"guard": {"name": guard.name} | (held or {})}


def _entry(score: Score) -> dict[str, Any]:
    outcomes = {key: _bits(value) for key, value in _outcomes(score).items() if value is not None}
    return {"rows": score.n, "loss": score.loss} | outcomes | _of_metric(score) | _of_losses(score)


def _of_metric(score: Score) -> dict[str, Any]:
    if score.said is None or score.wanted is None:
        return {}
    if score.said.dim() > 1:
        found = errors(score.metric, score.said.numpy(), score.wanted.numpy())
        return {"metric": score.metric, "errors": [float(f"{value:.7g}") for value in found.tolist()]}
    said, wanted = ([float(f"{value:.7g}") for value in values.tolist()] for values in (score.said, score.wanted))
    return {"metric": score.metric, "said": said, "wanted": wanted}


def _of_losses(score: Score) -> dict[str, Any]:
    """Of rows that are scored by their loss: sequences, and what has neither classes nor one number."""
    if score.losses is None or score.correct is not None or score.said is not None:
        return {}
    tokens = {} if score.tokens is None else {"tokens": score.tokens.tolist()}
    found: dict[str, Any] = tokens | {"losses": _short(score.losses)}
    return found | ({"answers": {k: _short(v) for k, v in score.answers.items()}} if score.answers else {})


def _short(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def row_losses(found: Mapping[str, Score]) -> dict[str, Tensor]:
    """The loss (n,) of each test row by task, to be compared with those after the next training."""
    return {name: score.losses.float() for name, score in found.items() if score.losses is not None}


def row_scores(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What each test row scored, the task known, by task; of a language model by the first of its metrics.

    Their mean is the task's score. ``entries`` are the "tasks" of a record; those without scores are left out.
    """
    found = {}
    for name, entry in entries.items():
        if "metric" in entry:
            found[name] = answered([entry]).rows()[0]
        elif "known" in entry:
            found[name] = np.array([int(bit) for bit in entry["known"]], dtype=float)
        elif "answers" in entry:
            found[name] = np.array(next(iter(entry["answers"].values())))
    return found


def results(config: RunConfig, stream: Stream, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that ``results.json`` holds, from the records of all stages.

    ``accuracy`` is measured as the scenario says: the task known (task-incremental), unknown (class-incremental),
    or of no matter (domain-incremental). The first two are both reported. Where a task has another metric it is
    ``score``, and ``metric`` says each task's; a number is no class to be chosen among, so that with regressions the
    task is known. Where losses are the scores there are ``nats_per_token`` or ``nats_per_example`` instead, and
    ``guard`` if there is one.
    """
    names = [task.name for task in stream.tasks]
    rows = np.array([records[-1]["tasks"][name]["rows"] for name in names])
    summary: dict[str, Any] = {
        "retain": version("retain"),
        "method": config.method,
        "scenario": config.scenario,
        "seed": config.seed,
        "tasks": names,
        "rows": config.evaluation.rows or "test",
    }
    if config.model.in_nats:
        summary |= tokenwise(records, names)
        if "guard" in records[0]:
            summary["guard"] = guarded(records, len(names))
    else:
        summary |= _scores(records, names, KINDS[config.scenario], rows)
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


def _scores(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], kinds: Sequence[str], rows: np.ndarray
) -> dict[str, Any]:
    metrics = metrics_of(records[-1]["tasks"])
    own = _scored(columns(records, names, kinds[0]), rows)
    found: dict[str, Any] = (
        {"score": own, "metric": metrics} if {*metrics.values()} - {"accuracy"} else {"accuracy": own}
    )
    for kind in () if {*metrics.values()} & {*OF_NUMBERS} else kinds[1:]:
        found[f"accuracy_task_{kind}"] = _scored(columns(records, names, kind), rows)
        found["task_found"] = {"matrix": _rounded(scores.matrix_of(columns(records, names, "task_found")))}
    return found


def metrics_of(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each task is scored by; ``entries`` are the "tasks" of a record."""
    return {name: entry.get("metric", "accuracy") for name, entry in entries.items()}


def score_of(results: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Matrix, scores and intervals of what ``results`` hold but for language models, and what a score is, in words."""
    return results["score" if "score" in results else "accuracy"], unit_of(results)


def unit_of(results: Mapping[str, Any]) -> str:
    """What a score is in ``results`` of all but language models, in words."""
    return unit(results.get("metric", {"all tasks": "accuracy"}).values())


def columns(records: Sequence[Mapping[str, Any]], names: Sequence[str], kind: str) -> list[Array | Answered]:
    """Per task the outcomes (T+1, rows) of its test rows after every stage; NaN where nothing was measured.

    ``records`` are those of all stages, ``kind`` is one of ``KINDS``. A task that was added to a run is not measured
    before. With the task known, the metric of the task counts.
    """
    found: list[Array | Answered] = []
    for name in names:
        last = records[-1]["tasks"][name]
        asked = kind == "known" and "metric" in last
        column = np.full((len(names) + 1, last["rows"]), np.nan)
        for record in (record for record in records if name in record["tasks"]):
            entry = record["tasks"][name]
            column[record["learned"]] = _said(entry)[0] if asked else [int(bit) for bit in entry[kind]]
        found.append(Answered(last["metric"], column, np.array(_said(last)[1])) if asked else column)
    return found


def answered(entries: Sequence[Mapping[str, Any]]) -> Answered:
    """What was said to the test rows of one task, whose ``entries`` in S records have a metric."""
    said = np.array([_said(entry)[0] for entry in entries], dtype=float)
    return Answered(entries[0]["metric"], said, np.array(_said(entries[0])[1], dtype=float))


def _said(entry: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """What was said to the rows of a task, and what was wanted; of several numbers a row their error, and none."""
    return (entry["errors"], [0.0] * entry["rows"]) if "errors" in entry else (entry["said"], entry["wanted"])


def score_in(entry: Mapping[str, Any], kind: str) -> float:
    """What a task scored, by its entry in a record; ``kind`` is one of ``KINDS``."""
    if kind == "known" and "metric" in entry:
        return float(answered([entry]).scores()[0])
    return entry[kind].count("1") / len(entry[kind])


def headline(name: str, records: Sequence[Mapping[str, Any]], scenario: str) -> str:
    """What the last stage learned, what it did to the tasks before, and whether that was foreseen; a line or two."""
    line = (
        tokenwise_headline(name, records)
        if "losses" in next(iter(records[0]["tasks"].values()))
        else _score_headline(name, records, KINDS[scenario][0])
    )
    if found := records[-1].get("calibration"):
        many = " (summed)" if len(found["tasks"]) > 1 else ""
        line += f"\n  [dim]their test loss in nats an example{many}[/] {in_words(found['total'])}"
    return line


def _score_headline(name: str, records: Sequence[Mapping[str, Any]], kind: str) -> str:
    last = {task: score_in(entry, kind) for task, entry in records[-1]["tasks"].items()}
    learned = list(last)[: records[-1]["learned"]]
    if not learned:
        what = unit(metrics_of(records[-1]["tasks"]).values())
        return f"[dim]{name}:[/] {what} " + " ".join(f"{a:.3f}" for a in last.values())
    line = f"[bold]{name}[/] learned: {last[learned[-1]]:.3f}"
    if len(learned) > 1 and len(records) == records[-1]["learned"] + 1:
        before = [score_in(records[i + 1]["tasks"][task], kind) for i, task in enumerate(learned[:-1])]
        now = [last[task] for task in learned[:-1]]
        line += f"; the {len(now)} before: {np.mean(now):.3f} ({np.mean(now) - np.mean(before):+.3f} since learned)"
    return line


def _scored(outcomes: Sequence[Array | Answered], rows: np.ndarray) -> dict[str, Any]:
    matrix = scores.matrix_of(outcomes)
    intervals = {name: scores.bootstrap(outcomes, score) for name, score in INTERVALS.items()}
    return {
        "matrix": _rounded(matrix),
        "scores": {name: _number(value) for name, value in scores.summary(matrix, n=rows).items()},
        "intervals_95": {name: [_number(x) for x in pair] for name, pair in intervals.items()},
    }


def _loss(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    matrix = np.full((len(names) + 1, len(names)), np.nan)
    for entry in records:
        matrix[entry["learned"]] = [entry["tasks"].get(name, UNMEASURED)["loss"] for name in names]
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


def _rounded(matrix: np.ndarray) -> list[list[float | None]]:
    return [[_number(x) for x in row] for row in matrix]


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 6)
