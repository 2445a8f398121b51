"""Tasks with next to nothing in them: learned like others by every method, or refused by name."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import filled, fit, layers, texts, tiny_bert
from retain.fisher.estimate import measure
from retain.methods import METHODS
from retain.run import run
from retain.task import Task
from runs import quiet, settings, slow_but
from streams import jsonl


def of_one_class() -> Task:
    task = texts("one class")
    return replace(task, train=[batch | {"labels": torch.ones_like(batch["labels"])} for batch in task.train])


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: texts("one example", (1,)), of_one_class], ids=["one example", "one class"])
@pytest.mark.parametrize("name", slow_but(METHODS, "ewc-lora", "eblora", "share"))
def test_a_task_of_one_example_or_one_class_leaves_numbers(name: str, make: object) -> None:
    method = METHODS[name](tiny_bert())
    for task in (make(), texts("usual", (3,), seed=1), replace(make(), name="again")):  # type: ignore[operator]
        fit(method, task)
    assert len(method.learned) == 3
    for key, tensor in (method.state_dict() | dict(method.model.named_parameters())).items():
        assert tensor.isfinite().all(), key


def test_an_empty_task_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="task 'nothing' has no training rows"):
        Task("nothing", [])
    empty = [{key: tensor[:0] for key, tensor in texts().train[0].items()}]
    with pytest.raises(ValueError, match="task 'nothing' has no training rows"):
        METHODS["ewc-lora"](tiny_bert()).end_task(Task("nothing", empty))


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs")
def test_a_run_on_two_rows_a_task(bert: str, tmp_path: Path) -> None:
    tasks = []
    for name in ("first", "second"):
        rows = [{"text": f"{word} {name}", "label": word} for word in ("glad", "sad")]
        test = jsonl(tmp_path / f"{name}-test.jsonl", rows)
        files = {"train": jsonl(tmp_path / f"{name}.jsonl", rows), "test": test}
        tasks.append({"name": name, "path": "json", "data_files": files})
    for method in ("ewc-lora", "eblora"):
        output = str(tmp_path / method)
        config = settings(bert, tmp_path, "mood", tasks=tasks, method={"name": method}, output=output)
        assert run(config, quiet())["accuracy"]["scores"]["average_accuracy"] is not None


def narrow(size: float, dtype: torch.dtype) -> list[str]:
    """What measuring importance warns of where gradients are ``size`` times as large as usual."""
    model = filled(tiny_bert())
    model.base_model.model.classifier.modules_to_save["default"].weight.data *= size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        measure(model.to(dtype), layers(model), texts(), form="diagonal", samples=None)
    return [str(warning.message) for warning in caught if "float16" in str(warning.message)]


def test_gradients_that_float16_cannot_tell_apart_are_told_of() -> None:
    assert narrow(1.0, torch.float16) == narrow(1e-3, torch.float32) == narrow(1e-3, torch.bfloat16) == []
    (told,) = narrow(1e-3, torch.float16)
    assert told.startswith("at bert.encoder.layer.") and "their importance is not measured" in told
