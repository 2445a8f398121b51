"""What a run of a causal language model found: nats per token, and how they changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retain import scores

Records = Sequence[Mapping[str, Any]]
Array = np.ndarray
LEVELS = ("untouched", "just_learned", "final", "gained", "forgetting")
READING = {
    "untouched": "of the model before any training, a mean over tasks",
    "just_learned": "right after a task's own training, a mean over tasks",
    "final": "after the last task, a mean over tasks",
    "gained": "what a task's own training made better, from untouched to just_learned: above zero is better",
    "forgetting": "what the tasks before the last lost, from the best since they were learned: above zero is worse",
}


def tokenwise(records: Records, names: Sequence[str]) -> dict[str, Any]:
    """The entries of ``results.json`` that sequences have, from the records of all stages.

    ``nats_per_token`` is the negative log-likelihood of a task's test rows over the number of their target tokens;
    lower is better, its exponential is the perplexity. ``gained`` is better above zero, and ``forgetting`` worse.
    """
    columns = [linear(*_losses(records, name)) for name in names]
    matrix = np.stack([column.mean(1) for column in columns], axis=1)
    return {"nats_per_token": _summary(columns) | {"perplexity": _rounded(np.exp(matrix))}}


def headline(name: str, records: Records) -> str:
    """What the last stage learned, and what it did to the tasks before and to a guard; a line."""
    first, last = records[0]["tasks"], records[-1]["tasks"]
    learned, guard = list(last)[: records[-1]["learned"]], ""
    if "guard" in records[0]:
        base, kept = (per_token(entry["guard"]) for entry in (records[0], records[-1]))
        guard = f"; {records[0]['guard']['name']}: {kept:.3f}" + (f" ({kept - base:+.3f})" if learned else "")
    if not learned:
        return f"[dim]{name}:[/] nats a token " + " ".join(f"{per_token(entry):.3f}" for entry in last.values()) + guard
    mine = learned[-1]
    line = f"[bold]{name}[/] learned: {per_token(last[mine]):.3f} nats a token (untouched {per_token(first[mine]):.3f})"
    if len(learned) > 1 and len(records) == records[-1]["learned"] + 1:
        now = np.mean([per_token(last[task]) for task in learned[:-1]])
        then = np.mean([per_token(records[i + 1]["tasks"][task]) for i, task in enumerate(learned[:-1])])
        word = "worse" if now > then else "better"
        line += f"; the {len(learned) - 1} before: {now:.3f} ({now - then:+.3f} since learned, {word})"
    return line + guard


def per_token(entry: Mapping[str, Any]) -> float:
    """Nats per token of a task in a record: over all target tokens of its test rows."""
    return entry["loss"] * entry["rows"] / sum(entry["tokens"])


def levels(matrix: Array) -> dict[str, float]:
    """What ``matrix`` (T+1, T) of losses comes down to; what needs a row that was not measured is NaN."""
    learned = np.diagonal(matrix[1:])
    lost = [matrix[-1, i] - matrix[i + 1 :, i].min() for i in range(matrix.shape[1] - 1)]
    return {
        "untouched": float(matrix[0].mean()),
        "just_learned": float(learned.mean()),
        "final": float(matrix[-1].mean()),
        "gained": float((matrix[0] - learned).mean()),
        "forgetting": float(np.mean(lost)) if lost else np.nan,
    }


def _summary(columns: Sequence[Array]) -> dict[str, Any]:
    def level(name: str) -> Callable[[Array], float]:
        return lambda matrix: levels(matrix)[name]

    matrix = np.stack([column.mean(1) for column in columns], axis=1)
    intervals = {name: scores.bootstrap(columns, level(name)) for name in LEVELS}
    return {
        "better": "lower",
        "matrix": _rounded(matrix),
        "scores": {name: _number(value) for name, value in levels(matrix).items()},
        "intervals_95": {name: [_number(x) for x in pair] for name, pair in intervals.items()},
        "reading": READING,
    }


def _losses(records: Records, name: str) -> tuple[Array, Array]:
    """Losses (T+1, rows) and numbers of target tokens (rows,) of a task's test rows."""
    return _filled(records, name, "losses"), np.array(records[0]["tasks"][name]["tokens"], dtype=float)


def linear(losses: Array, tokens: Array) -> Array:
    """Values (T+1, rows) whose mean over rows is the ratio sum(losses) / sum(tokens), and which vary as it does.

    The ratio's linear expansion in its rows: r + (loss - r tokens) / mean tokens. Resampling its rows gives the ratio's
    own interval, where long rows weigh more than short ones.
    """
    ratio = losses.sum(1, keepdims=True) / tokens.sum()
    return ratio + (losses - ratio * tokens) / tokens.mean()


def _filled(records: Records, name: str, key: str) -> Array:
    tasks = len(records[0]["tasks"])
    column = np.full((tasks + 1, records[0]["tasks"][name]["rows"]), np.nan)
    for entry in records:
        if (values := entry["tasks"][name].get(key)) is not None:
            column[entry["learned"]] = values
    return column


def _rounded(matrix: Array) -> list[list[float | None]]:
    return [[_number(x) for x in row] for row in matrix]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
