"""A task's own forward under Trainer: the loss is what it is in a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import adapted, bare_bert, texts
from retain.hf import fit
from retain.methods import METHODS
from retain.task import Batch, Task, forward
from test_hf import arguments

pytestmark = pytest.mark.versions
ROWS, AT_ONCE = 7, 2  # so that the last step of an epoch has three rows, in two batches


def elsewhere(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Labels under another name, which Trainer does not know."""
    assert isinstance(batch, dict)
    return forward(model, {name: x for name, x in batch.items() if name != "wanted"} | {"labels": batch["wanted"]})


def rows_task() -> Task:
    batch = texts(sizes=(ROWS,)).train[0]
    named = {name: x for name, x in batch.items() if name != "labels"} | {"wanted": batch["labels"]}
    rows = [{name: x[i] for name, x in named.items()} for i in range(ROWS)]
    return Task("rows", rows, collate=torch.utils.data.default_collate, forward=elsewhere)


def still_bert() -> Any:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return adapted(bare_bert(**off), target_modules=["query", "value"], task_type="SEQ_CLS")


def test_the_loss_is_the_mean_over_the_rows_of_a_whole_step(tmp_path: Path) -> None:
    model, twin, task = still_bert(), still_bert(), rows_task()
    options = {"per_device_train_batch_size": AT_ONCE, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    options |= {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    options |= {"max_steps": -1, "train_sampling_strategy": "sequential"}
    assert fit(model, task, METHODS["sequential"](model), arguments(tmp_path, **options)) == 2
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.5)
    for step in (task.train[:4], task.train[4:]):
        optimizer.zero_grad()
        task.loss.nll(*elsewhere(twin, task.collate(step))).mean().backward()
        optimizer.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_rows_with_a_forward_of_their_own_are_not_packed(tmp_path: Path) -> None:
    model = still_bert()
    with pytest.raises(ValueError, match="packing: task 'rows' has a forward of its own"):
        fit(model, rows_task(), METHODS["sequential"](model), arguments(tmp_path), packing=True)
