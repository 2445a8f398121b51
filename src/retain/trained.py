"""What a training has come to, kept until its stage is finished: a stop while measuring does not cost the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from retain import store
from retain.lora import adapter_parameters
from retain.workshop import Stage, Workshop

MODEL, PROGRESS, RECORD = "model.safetensors", "progress.safetensors", "record.json"


def folder_of(stage: Stage) -> Path:
    """Beside the Trainer's checkpoints, and like them gone when the stage is finished."""
    return stage.folder / "trainer" / "trained"


def keep(shop: Workshop, stage: Stage, steps: int, history: list[Any]) -> None:
    """Write what model and method have become between ``begin_task`` and ``end_task``."""
    folder = folder_of(stage)
    store.write_tensors(folder / MODEL, adapter_parameters(shop.model))
    store.write_tensors(folder / PROGRESS, shop.method.progress())
    store.write_json(folder / RECORD, {"steps": steps, "step": shop.method.steps, "history": history})
    store.close(folder)


def take_back(shop: Workshop, stage: Stage) -> tuple[int, list[Any]] | None:
    """Put model and method, after ``begin_task``, to where ``keep`` saw them; None if the training has not ended.

    Returns:
        The steps, and what was logged of them.

    Raises:
        StoreError: a file that is missing or damaged.
    """
    folder = folder_of(stage)
    if not store.is_closed(folder):
        return None
    store.verify(folder, MODEL, PROGRESS, RECORD)
    tensors, record = store.read_tensors(folder / MODEL), store.read_json(folder / RECORD)
    with torch.no_grad():
        for name, parameter in adapter_parameters(shop.model).items():
            parameter.copy_(tensors[name])
    shop.method.load_progress(store.read_tensors(folder / PROGRESS))
    shop.method.steps = record["step"]
    return record["steps"], record["history"]
