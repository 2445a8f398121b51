"""Trackers such as TensorBoard, W&B, MLflow and trackio: one run of theirs for a stream, by transformers' callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from retain import ranks, scores
from retain.results import KINDS, metrics_of, score_in
from retain.tokenwise import key_of, levels, per_token

Records = Sequence[Mapping[str, Any]]


class Trackers(TrainerCallback):
    """Passes on what every training logs, on one axis of optimizer steps, and what is scored after it.

    A Trainer begins and ends the trackers of its own ``report_to`` with its training. These stay from task to task, and
    of a Trainer they hear only what it logs and saves.

    Args:
        arguments: whose ``report_to`` names the trackers; what they write themselves goes to its ``output_dir``.
        model: that they may describe.
        learned: records of the stages that are finished, behind which the axis goes on.

    Raises:
        RuntimeError: a tracker that is not installed.
    """

    def __init__(self, arguments: TrainingArguments, model: Any, learned: Records) -> None:
        self.callbacks = [callback() for callback in get_reporting_integration_callbacks(arguments.report_to)]
        self.arguments, self.model, self.start = arguments, model, sum(map(_steps, learned))
        first = ranks.first()
        self.state = TrainerState(global_step=self.start, is_world_process_zero=first, is_local_process_zero=first)

    def __enter__(self) -> Trackers:
        self._pass("on_train_begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._pass("on_train_end")

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **_: Any) -> None:
        self.state.global_step = self.start + state.global_step
        self._pass("on_log", logs=logs)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        for callback in self.callbacks:
            callback.on_save(args, state, control, **more)

    def tell(self, records: Records, scenario: str) -> None:
        """Log the scores of the last of ``records``, at the step where its training has ended."""
        self.start = self.state.global_step = sum(map(_steps, records))
        self._pass("on_log", logs={f"eval_{name}": value for name, value in reading(records, scenario).items()})

    def _pass(self, event: str, **more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.arguments, self.state, TrainerControl(), model=self.model, **more)


def reading(records: Records, scenario: str) -> dict[str, float]:
    """What the last of ``records`` says of the tasks learned so far, or of all where none is: numbers by name.

    ``accuracy/TASK``, or that of its metric, or ``nats_per_token/TASK``, ``nats_per_example/TASK``; ``loss/TASK`` in
    nats an example; what tasks are asked, as ``METRIC/TASK``; the average of the first, ``average_accuracy``
    (``average_score`` of several metrics), and ``forgetting`` as in ``results.json`` up to here; and the
    ``foreseen_rise`` of the earlier tasks' loss beside the ``measured_rise``.
    """
    last = records[-1]
    names = list(last["tasks"])[: last["learned"]] or list(last["tasks"])
    nats = "losses" in last["tasks"][names[0]]
    units = {name: key_of(last["tasks"]) for name in names} if nats else metrics_of(last["tasks"])
    unit, kind = _unit([units[name] for name in names]), KINDS[scenario][0]

    def level(entry: Mapping[str, Any]) -> float:
        return per_token(entry) if nats else score_in(entry, kind)

    found = {f"{units[name]}/{name}": level(last["tasks"][name]) for name in names}
    found[f"average_{unit}"] = float(np.mean(list(found.values())))
    for name in names:
        found[f"loss/{name}"] = last["tasks"][name]["loss"]
        answers = last["tasks"][name].get("answers", {})
        found |= {f"{metric}/{name}": float(np.mean(values)) for metric, values in answers.items()}
    if "guard" in last:
        found[f"{unit}/{last['guard']['name']}"] = level(last["guard"])
    if len(names) > 1 and len(records) == len(names) + 1:
        told = [record["tasks"] for record in records]  # of a task that was added later, not all of them
        matrix = np.array([[level(tasks[name]) if name in tasks else np.nan for name in names] for tasks in told])
        found["forgetting"] = levels(matrix)["forgetting"] if nats else scores.forgetting(matrix)
    if rise := last.get("calibration"):
        found |= {f"{key}_rise": rise["total"][key] for key in ("foreseen", "measured")}
    return found


def _unit(units: Sequence[str]) -> str:
    return units[0] if len(set(units)) == 1 else "score"


def _steps(record: Mapping[str, Any]) -> int:
    """The optimizer steps of a stage, those of earlier sittings too."""
    return max([record.get("steps", 0), *(entry["step"] for entry in record.get("history", ()))])
