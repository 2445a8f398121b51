"""Task 0: what the untouched model can do, measured before the first task and held from there on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import numpy as np

from retain.method import Method
from retain.paired import lost
from retain.task import Task
from retain.tokenwise import linear, per_token

Entry = Mapping[str, Any]
READING = (
    "the loss over all target tokens of the guard's test rows after every task, the untouched model first; rise: what "
    "it has become more, with its 95 % interval over rows, drawn in pairs: above zero is worse"
)


def learn_base(method: Method, task: Task) -> None:
    """Remember what the model can do as it is, as if ``task`` had been learned before the first. Nothing is trained.

    ``method.end_task`` measures on the rows of ``task`` whatever it measures after a training, so that the first task
    is already held by it. From there on it counts like any finished task, the oldest: in the penalty, in
    ``predicted_rise`` and in ``remembered``; where there is a decay it fades like one. Its number in
    ``method.learned`` is -1, and what later tasks draw at random is what they would have drawn without it.

    A method that keeps nothing of an untrained adapter protects nothing of this, and is warned of.

    Args:
        method: before its first ``begin_task``.
        task: rows, such as general text, and the loss under which the untouched model is good at them. A head that has
            just been initialised is good at nothing.

    Raises:
        ValueError: something has been learned already.
    """
    if method.learned:
        raise ValueError(f"the base model comes first, and {', '.join(method.learned)} has been learned already")
    if not method.guards:
        warnings.warn(
            f"{type(method).__name__} measures nothing on an untrained adapter: {task.name!r}, what the model could do "
            "before the first task, is not protected",
            stacklevel=2,
        )
        return
    method.first_number = -1
    try:
        method.end_task(task)
    finally:
        method.first_number = 0


def guarded(records: Sequence[Mapping[str, Any]], tasks: int) -> dict[str, Any]:
    """What ``results.json`` says of the guard: nats per token (T+1) after every stage, and how they rose.

    Args:
        records: of all stages, each with a "guard".
        tasks: T.
    """
    first, last = records[0]["guard"], records[-1]["guard"]
    nats: list[float | None] = [None] * (tasks + 1)
    for entry in records:
        nats[entry["learned"]] = round(per_token(entry["guard"]), 6)
    rise, low, high = risen(first, last)
    return {
        "name": first["name"],
        "rows": first["rows"],
        "held": first["held"],
        "nats_per_token": nats,
        "perplexity": [None if x is None else round(exp(x), 6) for x in nats],
        "rise": round(rise, 6),
        "interval_95": [round(low, 6), round(high, 6)],
        "reading": READING,
    }


def risen(then: Entry, now: Entry) -> tuple[float, float, float]:
    """The rise of nats per token from one record of a guard to another, and its 95 % interval over rows in pairs.

    The interval is that of the difference of two ratios, by their linear expansion in the rows (``tokenwise.linear``).
    """
    return lost(-np.stack([rows_of(then), rows_of(now)]), relative=False)


def rows_of(entry: Entry) -> np.ndarray:
    """Values (n,) whose mean is the nats per token of a guard's record, and which vary as it does over its rows."""
    return linear(np.array([entry["losses"]]), np.array(entry["tokens"], dtype=float))[0]
