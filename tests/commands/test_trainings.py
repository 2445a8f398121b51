"""How long the rows of a plan are, and what it refuses of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from retain.commands import costs
from retain.commands.plan import make
from retain.config import parse
from runs import document
from streams import jsonl, rows


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PATIENCE", 0)
    monkeypatch.setattr(costs, "SAMPLE", {"cpu": 48})


@pytest.mark.parametrize(("size", "each", "cut"), [(1, 7.5, 3.9), (20, 12.0, 4.0)])
def test_rows_count_as_they_are_padded(size: int, each: float, cut: float, bert: str, tmp_path: Path) -> None:
    """Twenty rows of one to ten words, between two tokens that open and close them."""
    texts = [{"text": " ".join(["glad"] * n), "label": label} for n in range(1, 11) for label in "ab"]
    files = {"train": jsonl(tmp_path / "train.jsonl", texts), "test": jsonl(tmp_path / "test.jsonl", texts[:2])}
    whole = {"name": "whole", "path": "json", "data_files": files}
    tasks = [whole, whole | {"name": "cut", "max_length": 4}]
    made = make(parse(document(bert, tmp_path, tasks=tasks, training={"per_device_train_batch_size": size})))
    assert [task.tokens for task in made.tasks] == pytest.approx([each, cut])
    assert made.found.tokens == round((each + cut) / 2) and made.found.row == 3 * 8 * 32
    steps = made.tasks[0].steps
    assert steps and made.training(0) == pytest.approx(steps * made.step(size) * each / made.found.tokens)


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_a_task_of_one_class_is_refused_as_it_will_be(scenario: str, bert: str, tmp_path: Path) -> None:
    one = {"name": "one", "path": "json", "data_files": jsonl(tmp_path / "one.jsonl", rows(["a"], 10))}
    with pytest.raises(ValueError, match="task 'one' has one class, 'a': there is nothing to tell apart"):
        make(parse(document(bert, tmp_path, tasks=[one], scenario=scenario)))


def test_a_machine_without_a_gpu_plans_for_one_that_has_it(bert: str, tmp_path: Path) -> None:
    training = {"max_steps": 3, "bf16": True, "per_device_train_batch_size": 2}
    assert [task.steps for task in make(parse(document(bert, tmp_path, "mood", training=training))).tasks] == [3]
