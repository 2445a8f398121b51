"""transformers' Trainer as a run needs it: what it writes, and whose forward it calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from retain.files import writing
from retain.heads import apart
from retain.task import Batch, Forward, rows_in


class Saving(Trainer):
    """A Trainer that tells in one line what kept it from writing a checkpoint, whichever library was at it.

    Under FSDP2 every process has the adapter whole, and the first alone writes it.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with apart(self.model) if self.is_fsdp_enabled else nullcontext():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with apart(self.model) if self.is_fsdp_enabled else nullcontext():
            super()._load_from_checkpoint(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with writing(folder):
            try:
                super()._save_checkpoint(model, trial)
            except RuntimeError as error:  # which is how torch tells of a file
                raise OSError(f"torch: {str(error).splitlines()[0]}") from error


class Forwarding(Saving):
    """A Trainer in which a task's ``own`` forward makes the outputs and targets that ``compute_loss_func`` takes.

    Trainer counts what its losses are a mean over by the labels of a step, where batches have any; else rows count.
    """

    def __init__(self, own: Forward, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own = own

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | None]:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is None and batches:
            count = torch.tensor(sum(map(rows_in, batches)), device=device)
            if self._averages:
                count = self.accelerator.gather(count).sum()
        return batches, count

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        outputs, targets = self.own(model, inputs)
        loss = self.compute_loss_func(outputs, targets, num_items_in_batch)
        if self._averages and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which DDP's mean of gradients takes away
        return (loss, outputs) if return_outputs else loss

    @property
    def _averages(self) -> bool:
        """Whether the mean is over the rows of all processes."""
        return bool(self.args.average_tokens_across_devices) and self.args.world_size > 1
