"""A run on a disk that fails, whoever writes just then: one clear error, and the next run ends as if it had not."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from disks import FAULTS, Disk, count_of
from retain.config import RunConfig
from retain.run import run
from retain.store import StoreError
from runs import left_by, quiet, settings

pytestmark = pytest.mark.usefixtures("fast_runs")

METHOD = {"name": "ewc-lora", "fisher": {"samples": 8}}
SAVING = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 1}


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the system refuses it to Python, to torch and to safetensors alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def sizes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def whole(bert: str, tmp_path: Path) -> RunConfig:
    """A finished run of two tasks, which has also filled the caches of the data."""
    config = settings(bert, tmp_path, "mood sport", method=METHOD, training=SAVING, output=str(tmp_path / "whole"))
    run(config, quiet())
    return config


@pytest.mark.slow
def test_a_checkpoint_that_trainer_cannot_write_is_one_clear_error(
    whole: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its writers: peft's safetensors, torch's zip files, JSON."""
    from retain import hf

    config = whole.model_copy(update={"output": str(tmp_path / "broken")})
    written, true = dict[str, int](), hf.Saving._save_checkpoint

    def measured(trainer: hf.Saving, *args: object) -> None:
        true(trainer, *args)  # type: ignore[arg-type]
        written.update(sizes(Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"))

    with monkeypatch.context() as patch:
        patch.setattr(hf.Saving, "_save_checkpoint", measured)
        run(config.model_copy(update={"output": str(tmp_path / "measured")}), quiet())
    limits = {size - 1 for name, size in written.items() if name in ("optimizer.pt", "adapter_model.safetensors")}
    for limit in (*limits, 100):

        def limited(trainer: hf.Saving, *args: object, limit: int = limit) -> None:
            with full(limit):
                true(trainer, *args)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(hf.Saving, "_save_checkpoint", limited)
            with pytest.raises(
                StoreError, match=r"trainer/checkpoint-\d: cannot be written: .*what was there"
            ) as error:
                run(config, quiet())
        assert "\n" not in str(error.value)
    run(config, quiet())
    ours, theirs = left_by(config.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml") and ours == theirs


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_size_of_file_is_told_and_the_run_goes_on_when_there_is_room(
    whole: RunConfig, tmp_path: Path
) -> None:
    config, told = whole.model_copy(update={"output": str(tmp_path / "broken")}), 0
    for size in sorted(set(sizes(Path(whole.output)).values()))[::3]:
        try:
            with full(max(size - 1, 1)):
                run(config, quiet())
        except StoreError as error:
            told += 1
            assert "cannot be written: " in str(error) and "\n" not in str(error)
    assert told > 3
    run(config, quiet())
    ours, theirs = left_by(config.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml") and ours == theirs


@pytest.mark.slow
def test_a_disk_that_fails_at_any_call_of_a_run_is_told_and_nothing_is_lost(whole: RunConfig, tmp_path: Path) -> None:
    """Every 5th call, each way in turn; what was finished before a fault is not done again."""
    counted = whole.model_copy(update={"output": str(tmp_path / "counted")})
    calls = count_of(lambda: run(counted, quiet()))
    config = whole.model_copy(update={"output": str(tmp_path / "broken")})
    told, faults = 0, [*FAULTS, "short"]
    for number, at in enumerate(range(1, calls, 5)):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a folder that cannot be locked
            Disk(patch, faults[number % len(faults)], at)
            try:
                run(config, quiet())
            except (ValueError, OSError) as error:  # of reading the rows, too
                told += 1
                assert str(error)
    assert told > 3
    run(config, quiet())
    ours, theirs = left_by(config.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml") and ours == theirs
