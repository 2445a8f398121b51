"""Task 0: what the untouched model can do, measured before the first task and held from there on."""

from __future__ import annotations

import warnings

from retain.method import Method
from retain.task import Task


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
