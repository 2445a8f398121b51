"""Two processes under DistributedDataParallel end with the weights that one ends with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, TrainingArguments

from models import fit, texts
from processes import can_fork, together
from retain import ranks
from retain.hf import fit as fit_with_trainer
from retain.hooks import attach
from retain.method import Method
from retain.methods import METHODS
from retain.run import run
from retain.task import Task, default_collate, forward
from runs import left_by, quiet, settings
from test_laws import RULES, outputs, steady_bert

# Nineteen trainings in two processes each are made at once, which beside other work takes longer than a test may.
pytestmark = [can_fork, pytest.mark.slow, pytest.mark.timeout(900)]
# Two steps move the weights little: with these the extra term counted twice is far off.
STRONG = {"ewc-lora": {"strength": 1e4}, "ewc-lora, merged": {"strength": 1e4}, "lwf": {"weight": 30.0}}
# Seven rows, so that in the last step of an epoch one process has two and the other has one.
FIRST = texts("first", (4, 3))
SECOND = texts("second", (4, 3), seed=1)


def second_in_rows() -> Task:
    rows = [{k: v[i] for k, v in batch.items()} for batch in SECOND.train for i in range(len(batch["labels"]))]
    return Task("second", rows, collate=default_collate)


def elsewhere(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Labels under a name that Trainer does not know."""
    return forward(model, {k: v for k, v in batch.items() if k != "wanted"} | {"labels": batch["wanted"]})


def before_second(name: str) -> Method:
    """A method that has been through the first task, alike in every process but for the pass at its end."""
    method = RULES[name](steady_bert(), seed=0, **STRONG.get(name, {}))
    fit(method, FIRST)
    return method


def measured(method: Method, task: Task) -> dict[str, Tensor]:
    """What counts before and after a boundary: what the weights make of rows, whatever the signs of their factors."""
    found = {f"delta of {name}": site.delta() for name, site in method.sites.items()}
    found |= {name: p.detach().clone() for name, p in method.beside().items() if "lora_" not in name}
    found |= {f"rise of {name}": torch.tensor(rise) for name, rise in method.predicted_rise().items()}
    method.end_task(task)
    return found | {"outputs": outputs(method)}


def through_trainer(name: str, folder: Path, accumulation: int = 1, own: bool = False) -> dict[str, Tensor]:
    method, task = before_second(name), second_in_rows()
    if own:
        rows = [{"wanted" if k == "labels" else k: v for k, v in row.items()} for row in task.train]
        task = replace(task, train=rows, forward=elsewhere)
    if accumulation > 1:
        task = replace(task, train=[*task.train, task.train[0]])  # eight: each step takes two rounds of two
    method.begin_task(task)
    several = torch.distributed.is_initialized()
    arguments = TrainingArguments(
        str(folder / name / f"{accumulation}-{own}"),
        use_cpu=True,
        per_device_train_batch_size=4 // accumulation // (2 if several else 1),
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    fit_with_trainer(method.model, task, method, arguments)
    return measured(method, task)


def in_own_loop(name: str, folder: Path) -> dict[str, Tensor]:
    method = before_second(name)
    method.begin_task(SECOND)
    several = torch.distributed.is_initialized()
    model: Any = DistributedDataParallel(method.model) if several else method.model
    optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3)
    handles = attach(optimizer, method)
    method.model.train()
    for batch in SECOND.train:
        part = {k: v[ranks.share()] for k, v in batch.items()}
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        # DDP takes the mean over processes: of sums over their rows, divided by the rows that each would have had.
        loss = SECOND.loss.nll(logits, part["labels"]).sum() * (1 + several) / len(batch["labels"])
        (loss + method.extra_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    return measured(method, SECOND)


CASES: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    **{name: partial(through_trainer, name) for name in [*METHODS, "ewc-lora, merged", "dwd, running"]},
    "ewc-lora, accumulated": partial(through_trainer, "ewc-lora", accumulation=2),
    "ewc-lora, a forward of its own": partial(through_trainer, "ewc-lora", own=True),
    "ewc-lora in an own loop": partial(in_own_loop, "ewc-lora"),
    "replay in an own loop": partial(in_own_loop, "replay"),
}


def every_case(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {name: case(folder) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ddp")
    return together(partial(every_case, folder), folder)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(name: str, shared: Any, tmp_path: Path) -> None:
    alone, (one, other) = CASES[name](tmp_path), (found[name] for found in shared)
    assert one.keys() == other.keys() == alone.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(one[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        assert torch.equal(one[key], other[key]), key


def a_run(base: str, folder: Path, at_once: int) -> tuple[Any, dict[str, Any]]:
    training = {"max_steps": 3, "per_device_train_batch_size": at_once, "use_cpu": True}
    method = {"name": "ewc-lora", "strength": 30.0, "fisher": {"samples": 8}}
    with torch.random.fork_rng():
        found = run(settings(base, folder, "mood sport", training=training, method=method), quiet())
    return found, left_by(folder / "out")


def test_a_run_of_two_processes_writes_once_what_one_writes(bert: str, tmp_path: Path) -> None:
    base = str(shutil.copytree(bert, tmp_path / "base"))
    steady = AutoConfig.from_pretrained(base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    steady.save_pretrained(base)
    (one, files), (other, _) = together(partial(a_run, base, tmp_path / "two", 3), tmp_path)
    _, expected = a_run(base, tmp_path / "one", 6)
    assert one == other and files.keys() == expected.keys()
    ours, theirs = (load_file(tmp_path / which / "out/adapter/adapter_model.safetensors") for which in ("two", "one"))
    assert all(torch.allclose(ours[name], tensor, atol=1e-5) for name, tensor in theirs.items())
