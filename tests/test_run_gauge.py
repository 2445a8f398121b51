"""The gauge of a run: logged through Trainer, kept with the stage's record, calibrated at boundaries; and a budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from models import fit as fit_in_a_loop
from models import texts, tiny_bert
from retain import EWCLoRA, Task
from retain.hf import fit
from retain.run import run
from retain.store import read_json
from retain.task import default_collate
from runs import LEARNING, quiet, settings

EXACT = {"labels": "exact", "samples": None}


class Tracker(TrainerCallback):
    """Hears what is logged."""

    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []

    def on_log(self, args: object, state: object, control: object, *, logs: dict[str, float], **_: object) -> None:
        self.heard.append(dict(logs))


def test_trainers_own_log_has_the_gauge(tmp_path: Path) -> None:
    method, tracker = EWCLoRA(tiny_bert(), strength={"budget": 0.05}), Tracker()
    fit_in_a_loop(method, texts("a"))
    method.calibrate("a", 0.01, 0.05, 0.001)
    task = texts("b", (4, 4), 1)
    rows = [{k: v[i] for k, v in batch.items()} for batch in task.train for i in range(4)]
    method.begin_task(task)
    quietly = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=4, logging_steps=2, remove_unused_columns=False, **quietly)
    fit(method.model, Task("b", rows, collate=default_collate), method, arguments, callbacks=[tracker])
    assert len(tracker.heard) == 3 and all("foreseen_rise" in logs for logs in tracker.heard)
    last = tracker.heard[-1]
    assert last["foreseen_rise"] == pytest.approx(method.predicted_rise()["total"])
    assert last["calibrated_rise"] == pytest.approx(method.factor.middle * last["foreseen_rise"])
    assert last["strength"] == pytest.approx(method.strength)


def test_a_run_keeps_what_its_gauge_said_and_calibrates_it(bert: str, tmp_path: Path) -> None:
    method = {"name": "ewc-lora", "strength": {"budget": 0.2}, "fisher": EXACT}
    config = settings(bert, tmp_path, method=method, training=LEARNING)
    console = quiet()
    found = run(config, console)["calibration"]
    second, third = (read_json(Path(config.output, "tasks", f"0{i}", "scores.json")) for i in ("1-sport", "2-greek"))
    assert second["history"][-1]["foreseen_rise"] > 0 and "calibrated_rise" not in second["history"][-1]
    assert {"step", "loss", "foreseen_rise", "calibrated_rise", "strength"} <= third["history"][0].keys()
    assert "calibrated" not in found[0]["total"] and found[0]["total"]["factor"]["boundaries"] == 1
    total = found[1]["total"]
    assert total["calibrated"] == pytest.approx(found[0]["total"]["factor"]["middle"] * total["foreseen"])
    assert total["low"] < total["calibrated"] < total["high"] and total["factor"]["boundaries"] == 2
    assert "calibrated" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert third["boundary"]["budget_used"] < 2


def test_a_training_that_was_stopped_goes_on_with_its_multiplier() -> None:
    method, other = (EWCLoRA(tiny_bert(), strength={"budget": 0.05}) for _ in range(2))
    for each in (method, other):
        fit_in_a_loop(each, texts("a"))
        each.begin_task(texts("b", seed=1))
    for _ in range(3):
        method.multiplier.weigh(torch.tensor(0.02))
        method.after_step()
    other.load_progress(method.progress())
    assert other.strength == method.strength and other.multiplier.steps == 3
    with pytest.raises(ValueError, match="of another kind of `strength`"):
        EWCLoRA(tiny_bert()).load_progress(method.progress())


def test_a_budget_that_nobody_looks_after_is_missed() -> None:
    method = EWCLoRA(tiny_bert(), strength={"budget": 0.05})
    fit_in_a_loop(method, texts("a"))
    method.begin_task(texts("b", seed=1))
    with pytest.warns(UserWarning, match=r"call attach\(optimizer, method\)"):
        method.end_task(texts("b", seed=1))
