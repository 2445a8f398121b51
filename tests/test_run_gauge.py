"""The gauge of a run: logged through Trainer, kept with the stage's record, calibrated at boundaries; and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from models import fit as fit_in_a_loop
from models import texts, tiny_bert, train
from retain import EWCLoRA, Method, Task, ledger
from retain.calibration import shares_lost
from retain.hf import fit
from retain.protection import SHARE_OF_NAT
from retain.run import run
from retain.store import read_json
from retain.task import default_collate
from runs import LEARNING, quiet, settings

pytestmark = pytest.mark.usefixtures("fast_runs")

EXACT = {"labels": "exact", "samples": None}


class Tracker(TrainerCallback):
    """Hears what is logged, and looks at ``method``."""

    def __init__(self, method: Method) -> None:
        self.method, self.heard, self.strengths = method, list[dict[str, float]](), list[float]()

    def on_log(self, args: object, state: object, control: object, *, logs: dict[str, float], **_: object) -> None:
        self.heard.append(dict(logs))
        self.strengths.append(self.method.strength)


def test_trainers_own_log_has_the_gauge(tmp_path: Path) -> None:
    method = EWCLoRA(tiny_bert(), strength={"budget": 0.05})
    tracker = Tracker(method)
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
    assert [logs["strength"] for logs in tracker.heard] == tracker.strengths and tracker.strengths[-1] > 0


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
    ends = [entry for entry in ledger.read(Path(config.output, ledger.LEDGER)) if entry["event"] == "end"]
    assert [end["calibration"] for end in ends if "calibration" in end] == [
        entry["calibration"] for entry in (second, third)
    ]


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


STEEP: dict[str, Any] = {"learning_rate": 0.05, "epochs": 3}  # so fast that the budget below is missed


def test_a_training_that_ends_beyond_its_budget_goes_back_to_where_it_was_last_inside() -> None:
    method = EWCLoRA(tiny_bert(), strength={"budget": 0.05, "rollback": True}, fisher=EXACT)
    fit_in_a_loop(method, texts("a"))
    seen, look = dict[float, torch.Tensor](), method.before_step
    site = next(iter(method.sites.values()))

    def before_step() -> None:
        look()
        seen[method.predicted_rise()["total"]] = site.B.detach().clone()

    method.before_step = before_step  # type: ignore[method-assign]
    train(method, texts("b", seed=1), **STEEP)
    allowed = method.multiplier.allowed
    assert method.predicted_rise()["total"] > allowed
    last = [rise for rise in seen if rise <= allowed][-1]
    assert last
    method.finish()
    assert method.predicted_rise()["total"] == pytest.approx(last) and torch.equal(site.B, seen[last])
    method.end_task(texts("b", seed=1))
    assert method.boundary["budget_used"] <= 1
    assert method.boundary["rolled_back"] == len(seen) - [*seen].index(last)


def test_what_was_undone_outlives_a_stop_after_it_and_is_told_of() -> None:
    method, other = (EWCLoRA(tiny_bert(), strength={"budget": 1e-4, "rollback": True}, fisher=EXACT) for _ in range(2))
    fit_in_a_loop(method, texts("a"))
    other.load_state_dict(method.state_dict())
    task = texts("b", seed=1)
    for each in (method, other):
        each.begin_task(task)
    train(method, task, **STEEP)
    method.finish()
    other.load_progress(method.progress())
    method.finish()  # once more changes nothing
    found = []
    for each in (method, other):
        with pytest.warns(
            UserWarning, match=r"of \d+ steps that trained 'b' were undone, for they lay beyond the budget"
        ):
            each.end_task(task)
        found.append(each.boundary["rolled_back"])
    assert found[0] == found[1] > 0


def test_what_is_used_of_a_budget_is_what_the_last_step_has_left() -> None:
    method = EWCLoRA(tiny_bert(), strength={"budget": 0.05}, fisher=EXACT)
    fit_in_a_loop(method, texts("a"))
    train(method, texts("b", seed=1), **STEEP)
    method.finish()
    foreseen = method.predicted_rise()["total"]
    with pytest.warns(UserWarning, match=r"the budget of 0.05 nats could not be kept .*: it ended at"):
        method.end_task(texts("b", seed=1))
    assert method.boundary["budget_used"] == pytest.approx(foreseen / method.multiplier.allowed)


def test_where_it_was_last_inside_outlives_a_stop_and_is_not_forgotten() -> None:
    method, other = (EWCLoRA(tiny_bert(), strength={"budget": 0.05, "rollback": True}, fisher=EXACT) for _ in range(2))
    fit_in_a_loop(method, texts("a"))
    other.model.load_state_dict(method.model.state_dict())
    other.load_state_dict(method.state_dict())
    other.begin_task(texts("b", seed=1))
    train(method, texts("b", seed=1), **STEEP)
    other.model.load_state_dict(method.model.state_dict())
    other.load_progress(method.progress())
    for each in (method, other):
        each.finish()
    assert all(torch.equal(x.B, y.B) for x, y in zip(method.sites.values(), other.sites.values(), strict=True))
    assert (other.predicted_rise(), other._since) == (method.predicted_rise(), method._since)
    train(method, texts("c", seed=2), **STEEP)
    with pytest.warns(UserWarning, match=r"rollback to the budget of 0.05 nats .* call method.finish\(\)"):
        method.end_task(texts("c", seed=2))


@pytest.mark.slow
def test_a_share_of_the_score_is_a_budget_that_runs_calibrate(bert: str, tmp_path: Path) -> None:
    method = {"name": "ewc-lora", "strength": {"budget": "20%", "rollback": True}, "fisher": EXACT}
    config = settings(bert, tmp_path, method=method, training=LEARNING)
    found = run(config, quiet())["calibration"]
    first, second = (read_json(path) for path in sorted(Path(config.output).glob("tasks/*/scores.json"))[:2])
    had, has = (entry["tasks"][next(iter(first["tasks"]))]["known"] for entry in (first, second))
    lost = (had.count("1") - has.count("1")) / had.count("1")
    assert found[0]["total"]["share_lost"]["measured"] == pytest.approx(lost)
    assert found[0]["total"]["share_lost"]["standard_error"] >= 1 / had.count("1") - 1e-9
    assert second["boundary"]["budget_used"] <= 1 and second["boundary"]["rolled_back"] >= 0


def test_the_share_lost_is_paired_by_row_and_summed_over_tasks() -> None:
    before = {"a": np.array([1.0, 1, 1, 0]), "b": np.array([0.0, 0]), "c": np.array([1.0, 1])}
    after = {"a": np.array([1.0, 0, 1, 1]), "b": np.array([1.0, 0]), "c": np.array([0.0, 0])}
    share, error = shares_lost({"a": 1.0, "b": 1.0, "c": 0.5, "no scores": 1.0}, before, after) or (0, 0)
    a, c = np.array([0, 1, 0, -1]) / 0.75, np.array([1, 1])
    assert share == pytest.approx(a.mean() + 0.5 * c.mean())
    assert error == pytest.approx(((a.std() / 2) ** 2 + (0.5 * 0.5) ** 2) ** 0.5)
    assert shares_lost({"b": 1.0}, before, after) is None


def test_measured_shares_move_what_a_share_allows() -> None:
    method = EWCLoRA(tiny_bert(), strength={"budget": "2%"})
    fit_in_a_loop(method, texts("a"))
    assert method.shares.middle == pytest.approx(method.default * SHARE_OF_NAT)
    for task in "bcdef":
        method.calibrate(task, 0.01, 0.05, 0.001, (0.04, 0.001))
    assert method.shares.middle == pytest.approx(4, rel=0.15)
    method.begin_task(texts("b", seed=1))
    assert method.multiplier.allowed == pytest.approx(0.02 / method.shares.middle)
