"""A method beside the optimizer of a transformers Trainer, or of one that is built on it (TRL's)."""

from __future__ import annotations

from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from transformers import TrainerCallback

from retain.checkpoints import ORIGINALS, PROGRESS, checkpoint_folder, originals, restore_originals, restore_progress
from retain.hooks import attach
from retain.method import Method
from retain.store import write_tensors


class ContinualCallback(TrainerCallback):
    """Puts a method beside the optimizer of any transformers Trainer.

    The extra loss is differentiated once per optimizer step, before the first micro-batch, so that accumulation
    does not multiply it, and clipping and the gradient scaler see it with the rest. Call ``method.begin_task``
    before the optimizer is built and ``method.end_task`` after training.

    Trainer's checkpoints hold stock factors. What a parametrised factor is made of does not come back from them to the
    bit, so it is written beside them, and read when Trainer continues. So is what a method measures while it trains.

    What Trainer logs has the method's gauge in it (``Method.reading``). Trackers stand before a user's callbacks: for
    them to hear of it, call ``lead(trainer)``.
    """

    def __init__(self, method: Method, tokens: float = 1.0) -> None:
        """``tokens``: target tokens of an example, on average, where the training loss is a mean over tokens.

        An extra loss that is ``strength`` times a rise in nats per example is divided by it: both are in one unit.
        """
        self.method, self.share = method, 1 / tokens if method.strength else 1.0
        self.handles: list[Any] = []
        self.scaler: Any = None

    def lead(self, trainer: Any) -> None:
        """Stand before all other callbacks of ``trainer``, its trackers among them."""
        others = trainer.callback_handler.callbacks
        others.remove(self)
        others.insert(0, self)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **_: Any) -> None:
        reading = self.method.reading()
        logs |= reading
        state.log_history[-1] |= reading

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        if isinstance(optimizer, AcceleratedOptimizer):
            self.scaler, optimizer = optimizer.scaler, optimizer.optimizer
        self.handles = attach(optimizer, self.method)
        if state is not None and state.global_step:
            restore_originals(self.method, checkpoint_folder(args, state))
            restore_progress(self.method, checkpoint_folder(args, state))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for file, found in ((ORIGINALS, originals(self.method)), (PROGRESS, self.method.progress())):
            if found and state.is_world_process_zero:
                write_tensors(checkpoint_folder(args, state) / file, found)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.method.model.train()  # which Trainer does only before its own forward
        if state is not None:
            self.method.steps = state.global_step
        loss = self.method.extra_loss()
        if isinstance(loss, Tensor):
            loss = loss * self.share if self.share != 1 else loss
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for handle in self.handles:
            handle.remove()
