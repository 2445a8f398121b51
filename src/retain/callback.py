"""A method beside the optimizer of a transformers Trainer, or of one that is built on it (TRL's)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from retain import ranks
from retain.checkpoints import (
    checkpoint_folder,
    restore_beside,
    restore_running,
    seal,
    write_beside,
    write_running,
)
from retain.gradients import Gradients, NotFinite
from retain.hooks import attach, stepping
from retain.lora import adapter_parameters
from retain.method import Method


class ContinualCallback(TrainerCallback):
    """Puts a method beside the optimizer of any transformers Trainer.

    The extra loss is differentiated once per optimizer step, before the first micro-batch, so that accumulation
    does not multiply it, and clipping and the gradient scaler see it with the rest. Call ``method.begin_task``
    before the optimizer is built and ``method.end_task`` after training; ``retain.learn`` does both.

    Trainer's checkpoints hold stock factors. What a parametrised factor is made of does not come back from them to the
    bit, so it is written beside them, before Trainer declares a checkpoint whole, and read when it continues. So is
    what a method measures while it trains. Last comes ``done``, with the hashes of all files: ``retain.learn`` and runs
    check them before Trainer loads a checkpoint; with ``trainer.train`` of one's own call ``checkpoints.check``.

    What Trainer logs has the method's gauge in it (``Method.reading``), and the latest ``extra_loss``, which its
    ``loss`` leaves out. Trackers stand before a user's callbacks: for
    them to hear of it, call ``lead(trainer)``.

    Args:
        method: sits beside the optimizer from the beginning of the training to its end.
        tokens: target tokens of an example, on average, where the training loss is a mean over tokens. An extra loss
            that is ``strength`` times a rise in nats per example is divided by it: both are in one unit.
        began: the ``checkpoints.boundary`` before ``begin_task``, for ``restore_boundary`` to start from in a new
            process; left out where that is kept elsewhere.
        checkpoint: what the training continues from, if that does not lie in the trainer's own ``output_dir``.
        not_finite: what is done with a step whose gradients are not finite: "stop", or "skip" it; see ``Gradients``.
    """

    def __init__(
        self,
        method: Method,
        tokens: float = 1.0,
        *,
        began: Mapping[str, Tensor] | None = None,
        checkpoint: str | Path | None = None,
        not_finite: NotFinite = "stop",
    ) -> None:
        self.method, self.share = method, 1 / tokens if method.strength or method.limit else 1.0
        self.began, self.checkpoint = began or {}, checkpoint
        self.gradients = Gradients(method.model, not_finite)
        self.handles: list[Any] = []
        self.frozen: list[nn.Parameter] = []
        self.extra: Tensor | None = None
        self.scaler: Any = None
        self.trainer: Any = None

    def lead(self, trainer: Any) -> None:
        """Stand before all other callbacks of ``trainer``, its trackers among them."""
        self.trainer = trainer
        others = trainer.callback_handler.callbacks
        others.remove(self)
        others.insert(0, self)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **_: Any) -> None:
        reading = self.method.reading()
        if self.extra is not None and "loss" in logs:
            reading |= {"extra_loss": float(self.extra)}
        if self.gradients.left_out:
            reading |= {"left_out": self.gradients.left_out}
        logs |= reading
        state.log_history[-1] |= reading

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        self.detach()
        optimizer, self.scaler = stepping(optimizer)
        self.handles = attach(optimizer, self.method, self.gradients)
        self.handles += self.gradients.watch(p for group in optimizer.param_groups for p in group["params"])
        owned = adapter_parameters(self.method.model).values() if self.method.sites else ()
        self.frozen = [p for p in owned if not p.requires_grad]
        if state is None:
            return
        if state.global_step:
            checkpoint = Path(self.checkpoint or checkpoint_folder(args, state))
            restore_beside(checkpoint, self.method)
            if self.trainer is not None:
                self.gradients.left_out = restore_running(checkpoint, self.trainer)

        # Of all that Trainer does between a checkpoint's first file and its last, this alone can be seen from here.
        def write(_: Any) -> None:
            if control.should_save and state.is_world_process_zero:
                write_beside(checkpoint_folder(args, state), self.method, self.began)

        self.handles.append(optimizer.register_state_dict_pre_hook(write))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer is not None:
            write_running(checkpoint_folder(args, state), self.trainer, self.gradients.left_out)
        ranks.wait()  # until each process has written that, and the state of its generators
        if state.is_world_process_zero:
            seal(checkpoint_folder(args, state))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._freeze()
        self.method.model.train()  # which Trainer does only before its own forward
        if state is not None:
            self.method.steps = state.global_step
        loss = self.method.extra_loss()
        if isinstance(loss, Tensor):
            loss = loss * self.share if self.share != 1 else loss
            self.extra = loss.detach()
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._freeze()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.method.finish()
        self.detach()
        self.trainer = None

    def detach(self) -> None:
        """Leave the optimizer alone, also after a training that did not reach its end."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _freeze(self) -> None:
        """Switching adapters, as TRL does for a reference, makes all of the active one trainable again."""
        for parameter in self.frozen:
            parameter.requires_grad_(False)
