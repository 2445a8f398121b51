"""Which sections, and which keys of a task and of a guard, a model of a kind has a use for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from retain.forecasters import FORECASTS
from retain.mistakes import Within
from retain.sections import (
    ASKED,
    DRAWS,
    IN_NATS,
    LANGUAGE,
    LEARNS,
    OF_CLASSES,
    OF_LANGUAGE,
    OF_SERIES,
    GuardConfig,
    ModelConfig,
    TaskConfig,
)

SETTLED = {"scenario": "domain", "metric": "neg_mean_absolute_error"}  # of time series


def settled(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` with that said in which its kind of model leaves no choice: of time series, scenario and metric.

    Of a model that draws, ``lora`` is looked at also if it is not there: what is adapted depends on the kind.
    """
    model, tasks = document.get("model"), document.get("tasks")
    if isinstance(model, dict) and model.get("kind") == DRAWS:
        return {"lora": {}} | document
    if not isinstance(model, dict) or model.get("kind") != FORECASTS or not isinstance(tasks, list):
        return document
    told = [{"metric": SETTLED["metric"]} | task if isinstance(task, dict) else task for task in tasks]
    return {"scenario": SETTLED["scenario"]} | document | {"tasks": told}


def check_section(name: str, value: Any, default: Any, kind: str) -> None:
    """Refuse a ``value`` of the section ``name`` that a model of ``kind`` has no use for.

    Raises:
        ValueError: naming the value, and what the model is like.
    """
    if kind == FORECASTS and name == "scenario":
        default, has = SETTLED["scenario"], "has no heads: its tasks share all outputs ('domain')"
    elif kind == "causal-lm" if name == "language" else kind not in (*IN_NATS, FORECASTS):
        return
    elif name == "language":
        has = LEARNS.get(kind, "tells classes apart")
    else:
        has = "has no heads"
    if value != default:
        given = f"{value!r} is" if isinstance(value, str) else "a section is"
        raise ValueError(f"{given} not allowed with model.kind {kind!r}, which {has}")


def check_guard(guard: GuardConfig, kind: str, tasks: Iterable[str]) -> None:
    """Refuse a ``guard`` that cannot be one beside ``tasks`` of a model of ``kind``.

    Raises:
        ValueError: what came, and what would be allowed.
    """
    if kind == FORECASTS:
        raise ValueError(f"a section is not allowed with model.kind {kind!r}: of series no task is guarded")
    if kind == DRAWS:
        raise ValueError(f"a section is not allowed with model.kind {kind!r}; with {', '.join(LANGUAGE)}")
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


def check_method(model: ModelConfig | None, name: str, *, keeps_rows: bool) -> None:
    """Refuse a method called ``name`` that cannot work on ``model``.

    Raises:
        Within: what it would have to do.
    """
    if model is not None and model.kind == DRAWS and keeps_rows:
        raise Within("name", f"{name!r} is not allowed with model.kind {model.kind!r}: no state holds what noise is")


def check_task_kind(task: TaskConfig, kind: str) -> None:
    """Refuse keys of ``task`` that a model of ``kind`` has no use for.

    Raises:
        Within: naming the key and its value.
    """
    unused, has = _unused(kind)
    for key in (key for key in TaskConfig.model_fields if key in unused):
        if (value := getattr(task, key)) != TaskConfig.model_fields[key].default:
            raise Within(key, f"{value!r} is not allowed with model.kind {kind!r}, which {has}")
    if kind == FORECASTS and task.metric != (only := SETTLED["metric"]):
        raise Within("metric", f"{task.metric!r} is not allowed with model.kind {kind!r}; expected {only!r}")
    if kind in IN_NATS and not isinstance(task.text, str):
        raise Within("text", f"{task.text!r} is not allowed with model.kind {kind!r}; expected one column")
    if task.prompt is not None and task.text != TaskConfig.model_fields["text"].default:
        raise Within("prompt", f"{task.prompt!r} beside text {task.text!r}: pictures are called one or the other")
    if kind == DRAWS and task.label != TaskConfig.model_fields["label"].default and task.classes is None:
        raise Within("label", f"{task.label!r} without `classes`: nothing is chosen by it")


def _unused(kind: str) -> tuple[set[str], str]:
    """The keys of a task that a model of ``kind`` has no use for, and what it is like."""
    if kind == FORECASTS:
        return {*OF_CLASSES, *OF_LANGUAGE, "text", "max_length", "prompt"} - {"metric"}, "forecasts series"
    if kind == DRAWS:
        used = {"label", "classes", "image"}
        return {*OF_CLASSES, *OF_LANGUAGE, *OF_SERIES, "max_length"} - used, "draws pictures"
    if kind not in LANGUAGE:
        return {*OF_LANGUAGE, *OF_SERIES, "prompt"}, "tells classes apart"
    used = {"image"} if kind == "image-text-to-text" else set()
    return {*OF_CLASSES, *OF_SERIES, "prompt"} - used, "has no classes"
