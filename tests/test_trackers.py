"""Trackers: what TensorBoard's own files hold after a run, and what is told of a stage."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from reported import FORGETFUL, told
from retain.config import ConfigError, parse
from retain.run import run
from retain.trackers import reading
from runs import TRAINING, document, quiet


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By name, step -> value of all event files below ``folder``."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.*")):
        for event in map(Event.FromString, _records(file.read_bytes())):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: a length of 8 bytes, 4 of a sum, the record, 4 of a sum."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


@pytest.mark.slow
def test_a_stream_is_one_curve_with_the_scores_of_every_task(bert: str, tmp_path: Path) -> None:
    """On one axis of steps, also where the run is stopped and continued."""
    method = {"name": "ewc-lora", "fisher": {"samples": 4}}
    training = TRAINING | {"report_to": "tensorboard"}
    config = parse(document(bert, tmp_path, "mood sport", method=method, training=training))
    assert run(config, quiet(), tasks=1) == {}
    # tensorboardX names its files by the second, in which a test may begin twice, and no user's run does
    (tmp_path / "out" / "runs").rename(tmp_path / "out" / "first sitting")
    results = run(config, quiet())
    found = scalars(tmp_path / "out")
    assert list(found["train/loss"]) == list(range(1, 7)) and found["train/foreseen_rise"][6] >= 0
    matrix = results["accuracy"]["matrix"]
    for i, name in enumerate(results["tasks"]):
        stages = {0: 0} | {3 * t: t for t in range(i + 1, 3)}  # the step after which a task was scored: which row
        assert found[f"eval/accuracy/{name}"] == pytest.approx({step: matrix[t][i] for step, t in stages.items()})
    total = results["calibration"][-1]["total"]
    for key in ("foreseen", "measured"):
        assert found[f"eval/{key}_rise"][6] == pytest.approx(total[key])
    assert found["eval/forgetting"][6] == pytest.approx(results["accuracy"]["scores"]["forgetting"])
    files = sorted((tmp_path / "out").rglob("events.*"))
    run(config, quiet())
    assert sorted((tmp_path / "out").rglob("events.*")) == files and not (tmp_path / "out" / "base" / "runs").exists()


def test_a_stage_is_told_in_numbers() -> None:
    records = told("ewc-lora", FORGETFUL).records
    rise = {"foreseen": 0.1, "measured": 0.2, "standard_error": 0.0, "ratio": 0.5}
    found = reading([*records[:3], records[3] | {"calibration": {"total": rise}}], "task")
    assert found == pytest.approx(
        {"accuracy/faq": 0.5, "accuracy/sql": 1.0, "accuracy/law": 1.0, "average_accuracy": 5 / 6}
        | {"loss/faq": 1.0, "loss/sql": 1.0, "loss/law": 1.0}
        | {"forgetting": (1.0 - 0.5 + 0.0) / 2, "foreseen_rise": 0.1, "measured_rise": 0.2}
    )
    assert set(reading(records[:2], "task")) == {"accuracy/faq", "loss/faq", "average_accuracy"}


def test_language_models_are_told_in_nats_a_token() -> None:
    def entry(loss: float, score: float) -> dict[str, Any]:
        return {"rows": 2, "loss": loss, "tokens": [1, 3], "losses": [loss] * 2, "answers": {"rouge_l": [score, 0.0]}}

    levels = [(4.0, 4.0), (2.0, 4.0), (3.0, 1.0)]
    records = [
        {"learned": t, "tasks": {"faq": entry(a, 0.5), "sql": entry(b, 1.0)}, "guard": {"name": "web"} | entry(a, 0.0)}
        for t, (a, b) in enumerate(levels)
    ]
    found = reading(records, "task")
    assert found["nats_per_token/faq"] == 1.5 and found["nats_per_token/web"] == 1.5
    assert found["average_nats_per_token"] == 1.0 and found["rouge_l/sql"] == 0.5
    assert found["forgetting"] == 0.5 and found["loss/faq"] == 3.0


def test_trackers_are_the_run_s(tmp_path: Path) -> None:
    files = document("nowhere", tmp_path)
    files["tasks"][1]["training"] = {"report_to": "wandb"}
    with pytest.raises(ConfigError, match=r"tasks\.1\.training: 'report_to' cannot be set here: trackers follow"):
        parse(files)
