"""A run that is asked to end finishes its step, saves it, says how to continue, and ends as if it had not been."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from models import texts, tiny_bert
from processes import can_fork
from retain import checkpoints, cli, stopping, store
from retain import run as running
from retain.config import load
from retain.hf import fit
from retain.methods import METHODS
from retain.run import run
from runs import document, left_by, quiet, yaml_file
from test_hf import arguments, rows_task

pytestmark = can_fork

TRAINING = {
    "max_steps": 5,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.02,
    "logging_steps": 3,
}


class Signalling(TrainerCallback):
    """Sends signals to its own process in the middle of the third step of a training."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number in self.numbers if state.global_step == 2 else ():
            os.kill(os.getpid(), number)
            time.sleep(0.01)


def in_the_second_training(*numbers: int) -> None:
    """Let signals come in the middle of a step of the second training."""
    true, calls = running.fit, iter(range(9))

    def fit(*args: Any, **kwargs: Any) -> int:
        kwargs["callbacks"] += [Signalling(*numbers)] * (next(calls) == 1)
        return true(*args, **kwargs)

    running.fit = fit


def after_the_second_training(number: int) -> None:
    """Let a signal come while the second task's importance is measured."""
    true, method = METHODS["ewc-lora"].end_task, METHODS["ewc-lora"]

    def end_task(self: Any, task: Any) -> None:
        true(self, task)
        if task.name == "sport":
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    method.end_task = end_task  # type: ignore[method-assign]


def command(file: str, log: Path, prepare: Callable[..., None], *arguments: Any) -> int:
    """Exit code of ``retain run FILE`` in a process of its own, which ``prepare`` has changed; output in ``log``."""

    def work() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepare(*arguments)
        sys.argv = ["retain", "run", file]
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
        cli.main()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def make(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Writes the configuration of the same run to a folder of such a name."""
    folder = tmp_path_factory.mktemp("stopping")
    method = {"name": "ewc-lora", "strength": 30.0, "fisher": {"samples": 8}}

    def write(name: str) -> str:
        content = document(bert, folder, "mood sport", method=method, training=TRAINING, output=str(folder / name))
        return yaml_file(content, folder / f"{name}.yaml")

    return write


@pytest.fixture(scope="module")
def whole(make: Callable[[str], str]) -> dict[str, Any]:
    """What a run leaves that nobody has stopped."""
    config = load(make("whole"))
    run(config, quiet())
    return left_by(config.output)


@pytest.mark.slow
def test_a_signal_in_a_step_ends_the_run_after_it(make: Callable, whole: dict[str, Any], tmp_path: Path) -> None:
    file, log = make("step"), tmp_path / "log"
    assert command(file, log, in_the_second_training, signal.SIGINT) == 130
    line = f"stopped by SIGINT: the training of sport is saved at step 3 of 5; to continue: retain run {file}"
    assert log.read_text().splitlines()[-1] == line
    config = load(file)
    stage = Path(config.output, "tasks", "01-sport")
    assert [path.name for path in stage.rglob("checkpoint-*")] == ["checkpoint-3"]
    run(config, quiet())
    assert store.read_json(stage / "scores.json")["steps"] == 2
    ours = left_by(config.output)
    assert ours.pop("config.yaml") != whole["config.yaml"]
    assert ours == {key: value for key, value in whole.items() if key != "config.yaml"}


@pytest.mark.slow
def test_a_signal_while_importance_is_measured_does_not_cost_the_training(
    make: Callable, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, log = make("boundary"), tmp_path / "log"
    assert command(file, log, after_the_second_training, signal.SIGTERM) == 143
    line = f"stopped by SIGTERM: what was finished is saved; to continue: retain run {file}"
    assert log.read_text().splitlines()[-1] == line
    monkeypatch.setattr(running, "fit", lambda *_, **__: pytest.fail("trained again"))
    config = load(file)
    run(config, quiet())
    ours = left_by(config.output)
    assert ours.pop("config.yaml") != whole["config.yaml"]
    assert ours == {key: value for key, value in whole.items() if key != "config.yaml"}


@pytest.mark.slow
def test_a_second_signal_ends_at_once(make: Callable, tmp_path: Path) -> None:
    def prepare() -> None:
        stopping.ONE = 0.0
        in_the_second_training(signal.SIGTERM, signal.SIGTERM)

    file = make("twice")
    assert command(file, tmp_path / "log", prepare) == -signal.SIGTERM
    assert not list(Path(load(file).output).rglob("checkpoint-*"))


def test_two_signals_in_a_moment_are_one() -> None:
    stop = stopping.Stop()
    with pytest.raises(stopping.Stopped) as stopped, stop.listening(), stop.stepping("mood"):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert stopped.value.code == 130 and "the training of mood is saved" in str(stopped.value)


def test_signals_mean_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.Stop().listening():
        pass
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_a_checkpoint_goes_when_a_newer_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kill between both would leave none, or half of one."""
    seen, true = list[list[str]](), checkpoints.drop_folder

    def drop(path: Path) -> None:
        seen.append(sorted(done.parent.name for done in tmp_path.glob("*/done")))
        true(path)

    monkeypatch.setattr(checkpoints, "drop_folder", drop)
    method = METHODS["sequential"](tiny_bert())
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    fit(method.model, rows_task(), method, arguments(tmp_path, **options))
    assert seen == [[f"checkpoint-{step}" for step in (n, n + 1, n + 2)] for n in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_what_follows_a_training_in_mixed_precision_sees_what_is_saved(tmp_path: Path) -> None:
    model, batch = tiny_bert(), texts().train[0]
    fit(model, rows_task(), METHODS["sequential"](model), arguments(tmp_path, max_steps=2, bf16=True, use_cpu=True))
    saved = tiny_bert()
    saved.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, saved.eval()(**batch).logits)
