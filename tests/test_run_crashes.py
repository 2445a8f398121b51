"""Runs that were stopped anywhere end with what an uninterrupted run leaves, and damage is refused by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processes import Forked, can_fork
from retain import cli, files, scoring, store
from retain import run as running
from retain.config import RunConfig, parse
from retain.methods import METHODS
from retain.run import run
from retain.store import StoreError
from runs import document, left_by, quiet, settings, slow_but, yaml_file

pytestmark = pytest.mark.usefixtures("fast_runs")

VARIANTS = {name: {"name": name} for name, method in METHODS.items() if not method.cumulative} | {
    "ewc-lora": {"name": "ewc-lora", "strength": 30.0, "fisher": {"samples": 8}},
    "merge": {"name": "ewc-lora", "strength": 30.0, "mode": "merge", "rank": 3, "fisher": {"samples": 8}},
    "kronecker": {"name": "ewc-lora", "strength": 3.0, "fisher": {"form": "kronecker", "rank": 2, "sketches": 2}},
    "eblora": {"name": "eblora", "subspace": "second moment", "rank": 3, "samples": 8},
    "share": {"name": "share", "components": 3, "route": True},
    "replay": {"name": "replay", "share": 0.5, "match": 0.5, "batch_size": 3},
    "lwf": {"name": "lwf", "weight": 3.0, "batch_size": 3},
    "dwd": {"name": "dwd", "strength": 1e5, "every": 2, "rows": 4, "probes": 4, "graph": "features"},
}


class Crash(BaseException):
    """What nobody catches, as little as a kill."""


def crashing(
    monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: type[BaseException], owner: Any = running
) -> None:
    """The ``call``-th call of ``owner.name`` fails half-way: what it does is done, what it says is lost."""
    true, count = getattr(owner, name), iter(range(1, 1000))

    def broken(*args: Any, **kwargs: Any) -> Any:
        result = true(*args, **kwargs)
        if next(count) == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, broken)


def stopped(config: RunConfig, name: str, call: int, error: type[BaseException] = Crash, owner: Any = running) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crashing(patch, name, call, error, owner)
        with pytest.raises(error):
            run(config, quiet())


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(VARIANTS, "ewc-lora", "share", "replay"))
def test_a_run_killed_in_its_second_and_third_task_ends_as_if_it_had_not(
    method: str, bert: str, tmp_path: Path
) -> None:
    whole, broken = (
        settings(bert, tmp_path, method=VARIANTS[method], output=str(tmp_path / name)) for name in ("whole", "broken")
    )
    results = run(whole, quiet())
    stopped(broken, "fit", 2)
    assert not Path(broken.output, "results.json").exists()
    stopped(broken, "fit", 2)  # continues with the second task; this is the third's training
    assert sorted(p.parent.name for p in Path(broken.output, "tasks").glob("*/done")) == ["00-mood", "01-sport"]
    again = run(broken, quiet())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in results.items() if k != "seconds"}
    ours, theirs = left_by(broken.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml")  # of another output
    assert ours == theirs


@pytest.mark.slow
def test_a_run_stopped_again_and_again_while_it_scores_and_saves_ends_as_if_it_had_not(
    bert: str, tmp_path: Path
) -> None:
    whole, broken = (
        settings(bert, tmp_path, "mood sport", method=VARIANTS["merge"], output=str(tmp_path / name))
        for name in ("whole", "broken")
    )
    run(whole, quiet())
    for name, call, error, owner in (
        ("evaluate", 1, KeyboardInterrupt, scoring),  # of the untouched model
        ("evaluate", 3, KeyboardInterrupt, scoring),  # in the middle of the scores after the first task
        ("write_adapter", 1, Crash, store),
        ("write_tensors", 2, KeyboardInterrupt, store),
        ("write_json", 2, Crash, store),  # of the first task's scores
        ("close", 1, Crash, store),  # the first task is done
        ("write_tensors", 1, Crash, store),  # of the second
        ("copy_folder", 1, Crash, running),
    ):
        stopped(broken, name, call, error, owner)
    run(broken, quiet())
    ours, theirs = left_by(broken.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml")
    assert ours == theirs


def test_what_a_killed_write_left_is_swept_away(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood", training={"max_steps": 1})
    output = Path(config.output)
    output.mkdir()
    (output / f".config.yaml.77{files.PARTIAL}").write_text("mod")  # killed while it took the folder
    half = output / "tasks" / "00-mood" / f".adapter.77{files.PARTIAL}"
    run(config, quiet())
    half.mkdir()
    (half / "adapter_model.safetensors").write_text("half")
    run(config, quiet())
    assert not [p for p in output.rglob("*") if p.suffix == files.PARTIAL]


@pytest.fixture(scope="module")
def stopped_run(bert: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of three tasks, two of them finished."""
    config = settings(bert, tmp_path_factory.mktemp("stopped"), training={"max_steps": 1})
    stopped(config, "fit", 3)
    return config


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("tasks/01-sport/state/model.safetensors", Path.unlink, "missing, though its stage is finished"),
        ("tasks/01-sport/state/method.safetensors", truncate, "damaged, its hash is not the one in"),
        ("tasks/00-mood/scores.json", Path.unlink, "missing, though its stage is finished"),
        ("base/scores.json", truncate, "damaged, its hash is not the one in"),
        ("tasks/01-sport/done", truncate, "not readable as JSON"),
        ("config.yaml", lambda path: path.write_text("model: {"), "damaged: not YAML"),
    ],
)
def test_a_damaged_or_missing_file_is_refused_with_path_and_reason(
    file: str, harm: Callable[[Path], Any], message: str, stopped_run: RunConfig
) -> None:
    path = Path(stopped_run.output, file)
    content = path.read_bytes()
    try:
        harm(path)
        before = left_by(stopped_run.output)
        with pytest.raises(StoreError) as error:
            run(stopped_run, quiet())
        assert left_by(stopped_run.output) == before
    finally:
        path.write_bytes(content)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_adapter_is_not_handed_on(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood", training={"max_steps": 1})
    run(config, quiet())
    truncate(Path(config.output, "tasks", "00-mood", "adapter", "adapter_model.safetensors"))
    with pytest.raises(StoreError, match=r"00-mood/adapter/adapter_model.safetensors: damaged"):
        run(config, quiet())


def test_a_training_that_diverges_leaves_what_was_finished(bert: str, tmp_path: Path) -> None:
    content = document(bert, tmp_path, "mood sport")
    content["tasks"][1]["training"] = {"learning_rate": 1e30}
    config = running.configuration.parse(content)
    with pytest.raises(FloatingPointError, match="loss on task 'sport' is (nan|inf): lower training.learning_rate"):
        run(config, quiet())
    assert Path(config.output, "tasks", "00-mood", "done").exists()
    assert not Path(config.output, "tasks", "01-sport", "done").exists()


@pytest.mark.slow
def test_kill_9(bert: str, tmp_path: Path) -> None:
    """A true process, killed without warning, against one that was not; ``test_kills`` has many that are copies."""
    training = {"max_steps": 4, "per_device_train_batch_size": 4}
    whole, killed = (
        document(bert, tmp_path, method=VARIANTS["ewc-lora"], training=training, output=str(tmp_path / name))
        for name in ("whole", "killed")
    )
    command = [sys.executable, "-m", "retain", "run", yaml_file(killed, tmp_path / "killed.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (tmp_path / "killed/tasks/00-mood/done").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for content in (killed, whole):
        run(parse(content), quiet())
    ours, theirs = left_by(killed["output"]), left_by(whole["output"])
    assert ours.pop("config.yaml") != theirs.pop("config.yaml")
    assert ours == theirs


@can_fork
@pytest.mark.slow
def test_of_two_processes_that_race_for_one_run_one_proceeds(bert: str, tmp_path: Path) -> None:
    file = yaml_file(document(bert, tmp_path, "mood", training={"max_steps": 1}), tmp_path / "run.yaml")

    def race(said: Path) -> None:
        sys.argv, sys.stderr = ["retain", "run", file], said.open("w", buffering=1)
        cli.main()

    said = [tmp_path / name for name in ("one", "other")]
    racing = [Forked(partial(race, path)) for path in said]
    ends = {process.wait(): (process.process.pid, path.read_text()) for process, path in zip(racing, said, strict=True)}
    assert sorted(ends) == [0, 1], ends
    assert f"is in use by process {ends[0][0]}; wait for it, or stop it" in ends[1][1]
    assert Path(tmp_path, "out", "results.json").exists()
