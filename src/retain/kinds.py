"""Which keys of a task and of a guard a model of a kind has a use for."""

from __future__ import annotations

from collections.abc import Iterable

from retain.mistakes import Within
from retain.sections import ASKED, LANGUAGE, OF_CLASSES, OF_LANGUAGE, GuardConfig, TaskConfig


def check_guard(guard: GuardConfig, kind: str, tasks: Iterable[str]) -> None:
    """Refuse a ``guard`` that cannot be one beside ``tasks`` of a model of ``kind``.

    Raises:
        ValueError: what came, and what would be allowed.
    """
    if kind not in LANGUAGE:
        raise ValueError(
            f"a section is not allowed with model.kind {kind!r}: its head is new, so that there is nothing yet for the "
            "model to lose; of a head that the checkpoint has learned retain.learn_base takes rows"
        )
    check_task_kind(guard, kind)
    if guard.training:
        raise Within("training", f"{guard.training!r} is not allowed: nothing is trained on the rows of a guard")
    for key in ASKED:
        if (value := getattr(guard, key)) is not None:
            raise Within(key, f"{value!r} is not allowed: of a guard the loss is measured")
    if guard.name in tasks:
        raise Within("name", f"{guard.name!r} is a task, too; tasks: {', '.join(tasks)}")


def check_task_kind(task: TaskConfig, kind: str) -> None:
    """Refuse keys of ``task`` that a model of ``kind`` has no use for.

    Raises:
        Within: naming the key and its value.
    """
    language = kind in LANGUAGE
    for key in OF_CLASSES if language else OF_LANGUAGE:
        if key == "image" and kind == "image-text-to-text":
            continue
        if (value := getattr(task, key)) != TaskConfig.model_fields[key].default:
            has = "has no classes" if language else "tells classes apart"
            raise Within(key, f"{value!r} is not allowed with model.kind {kind!r}, which {has}")
    if language and not isinstance(task.text, str):
        raise Within("text", f"{task.text!r} is not allowed with model.kind {kind!r}; expected one column")
