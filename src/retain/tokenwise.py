"""What a run found whose tasks are scored by their loss: nats per token of texts, or per example; how they changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from retain import scores

Records = Sequence[Mapping[str, Any]]
Array = np.ndarray
Better = Literal["lower", "higher"]
TOKEN, EXAMPLE = "nats_per_token", "nats_per_example"
UNITS = {
    TOKEN: "nats a token",
    EXAMPLE: "nats an example",
}  # where ``results.json`` has a loss as the score -> its unit
LEVELS = ("untouched", "just_learned", "final", "gained", "forgetting")
READING = {
    "untouched": "of the model before any training, a mean over tasks",
    "just_learned": "right after a task's own training, a mean over tasks",
    "final": "after the last task, a mean over tasks",
    "gained": "what a task's own training made better, from untouched to just_learned: above zero is better",
    "forgetting": "what the tasks before the last lost, from the best since they were learned: above zero is worse",
}


def tokenwise(records: Records, names: Sequence[str]) -> dict[str, Any]:
    """The entries of ``results.json`` where losses are scores, from the records of all stages.

    ``nats_per_token`` is the negative log-likelihood of a task's test rows over the number of their target tokens;
    lower is better, its exponential is the perplexity. Of rows that are no sequences ``nats_per_example`` is the mean.
    ``metrics`` has what tasks are asked, each a mean over rows;
    higher is better, and tasks that are not asked have null. Of both ``gained`` is better above zero, and
    ``forgetting`` worse.
    """
    columns = losses_per_token(records, names)
    matrix = np.stack([column.mean(1) for column in columns], axis=1)
    key, more = key_of(records[-1]["tasks"]), {}
    if key == TOKEN:
        more = {"perplexity": _rounded(np.exp(matrix))}
    found = {key: _summary(columns, "lower") | more}
    asked = {metric: _summary(answered(records, names, metric), "higher") for metric in metrics_of(records)}
    return found | ({"metrics": asked} if asked else {})


def key_of(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Where ``results.json`` has the losses of ``entries``, the "tasks" of a record."""
    return TOKEN if "tokens" in next(iter(entries.values())) else EXAMPLE


def in_nats(results: Mapping[str, Any]) -> tuple[Any, str]:
    """What ``results`` say of the losses that tasks are scored by, and their unit; None where scores are others."""
    return next(((results[key], unit) for key, unit in UNITS.items() if results.get(key)), (None, ""))


def losses_per_token(records: Records, names: Sequence[str]) -> list[Array]:
    """Per task values (T+1, rows) whose means over rows are its nats per token or example; NaN: not measured."""
    return [linear(*_losses(records, name)) for name in names]


def metrics_of(records: Records) -> list[str]:
    """The metrics that any task is asked, in their order."""
    return list(dict.fromkeys(m for entry in records[-1]["tasks"].values() for m in entry.get("answers", {})))


def answered(records: Records, names: Sequence[str], metric: str) -> list[Array]:
    """Per task the values (T+1, rows) of ``metric`` after every stage; NaN where nothing was measured or asked."""
    columns = []
    for name in names:
        columns.append(np.full((len(names) + 1, records[-1]["tasks"][name]["rows"]), np.nan))
        for entry in records:
            if (values := entry["tasks"].get(name, {}).get("answers", {}).get(metric)) is not None:
                columns[-1][entry["learned"]] = values
    return columns


def headline(name: str, records: Records) -> str:
    """What the last stage learned, and what it did to the tasks before and to a guard; a line."""
    first, last = records[0]["tasks"], records[-1]["tasks"]
    learned, guard, unit = list(last)[: records[-1]["learned"]], "", UNITS[key_of(last)]
    if "guard" in records[0]:
        base, kept = (per_token(entry["guard"]) for entry in (records[0], records[-1]))
        guard = f"; {records[0]['guard']['name']}: {kept:.3f}" + (f" ({kept - base:+.3f})" if learned else "")
    if not learned:
        return f"[dim]{name}:[/] {unit} " + " ".join(f"{per_token(entry):.3f}" for entry in last.values()) + guard
    mine, before = learned[-1], learned[:-1]
    line = f"[bold]{name}[/] learned: {per_token(last[mine]):.3f} {unit}"
    line += f" (untouched {per_token(first[mine]):.3f})" if mine in first else ""
    line += "".join(f", {metric} {np.mean(values):.3f}" for metric, values in last[mine].get("answers", {}).items())
    if before and len(records) == records[-1]["learned"] + 1:
        then = {task: records[i + 1]["tasks"][task] for i, task in enumerate(before)}
        now, ago = (np.mean([per_token(entries[task]) for task in before]) for entries in (last, then))
        word = "worse" if now > ago else "better"
        line += f"; the {len(before)} before: {now:.3f} ({now - ago:+.3f} since learned, {word})"
        for metric in metrics_of(records):
            asked = [task for task in before if metric in then[task].get("answers", {})]
            if asked:
                now, ago = (np.mean([np.mean(e[task]["answers"][metric]) for task in asked]) for e in (last, then))
                line += f", {metric} {now:.3f} ({now - ago:+.3f})"
    return line + guard


def per_token(entry: Mapping[str, Any]) -> float:
    """Nats per token of a task in a record, over all target tokens of its test rows; else per example."""
    return entry["loss"] * entry["rows"] / sum(_tokens(entry))


def _tokens(entry: Mapping[str, Any]) -> Sequence[int]:
    """How many tokens each test row has; one where rows are no sequences."""
    return entry["tokens"] if "tokens" in entry else [1] * entry["rows"]


def levels(matrix: Array, better: Better = "lower") -> dict[str, float]:
    """What ``matrix`` (T+1, T) comes down to, over the tasks that were measured at all.

    What needs a row that was not measured is NaN.
    """
    sign, tasks = (1 if better == "lower" else -1), [i for i in range(matrix.shape[1]) if not np.isnan(matrix[-1, i])]
    untouched, final = (sign * matrix[row, tasks] for row in (0, -1))
    learned = sign * np.array([matrix[i + 1, i] for i in tasks])
    lost = [sign * matrix[-1, i] - (sign * matrix[i + 1 :, i]).min() for i in tasks if i + 1 < matrix.shape[1]]
    return {
        "untouched": float((sign * untouched).mean()),
        "just_learned": float((sign * learned).mean()),
        "final": float((sign * final).mean()),
        "gained": float((untouched - learned).mean()),
        "forgetting": float(np.mean(lost)) if lost else np.nan,
    }


def _summary(columns: Sequence[Array], better: Better) -> dict[str, Any]:
    def level(name: str) -> Callable[[Array], float]:
        return lambda matrix: levels(matrix, better)[name]

    matrix = np.stack([column.mean(1) for column in columns], axis=1)
    intervals = {name: scores.bootstrap(columns, level(name)) for name in LEVELS}
    return {
        "better": better,
        "matrix": _rounded(matrix),
        "scores": {name: _number(value) for name, value in levels(matrix, better).items()},
        "intervals_95": {name: [_number(x) for x in pair] for name, pair in intervals.items()},
        "reading": READING,
    }


def _losses(records: Records, name: str) -> tuple[Array, Array]:
    """Losses (T+1, rows) and numbers of target tokens (rows,) of a task's test rows."""
    return _filled(records, name, "losses"), np.array(_tokens(records[-1]["tasks"][name]), dtype=float)


def linear(losses: Array, tokens: Array) -> Array:
    """Values (T+1, rows) whose mean over rows is the ratio sum(losses) / sum(tokens), and which vary as it does.

    The ratio's linear expansion in its rows: r + (loss - r tokens) / mean tokens. Resampling its rows gives the ratio's
    own interval, where long rows weigh more than short ones.
    """
    ratio = losses.sum(1, keepdims=True) / tokens.sum()
    return ratio + (losses - ratio * tokens) / tokens.mean()


def _filled(records: Records, name: str, key: str) -> Array:
    tasks = len(records[-1]["tasks"])
    column = np.full((tasks + 1, records[-1]["tasks"][name]["rows"]), np.nan)
    for entry in records:
        if (values := entry["tasks"].get(name, {}).get(key)) is not None:
            column[entry["learned"]] = values
    return column


def _rounded(matrix: Array) -> list[list[float | None]]:
    return [[_number(x) for x in row] for row in matrix]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
