"""How a method sits beside an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer

from retain.gradients import Gradients
from retain.method import Method
from retain.sharding import average, check_sharding, is_sharded

IN_BACKWARD = "it steps inside backward, before gradients are whole and clipped"
HIDDEN = "its engine keeps gradients and steps to itself"
AVERAGED = "what it evaluates is an average of what it trains, so no constraint on a step would hold there"
# What cannot be hooked: why, and what to use instead.
UNHOOKABLE = {
    "Lomo": (IN_BACKWARD, "AdamW"),
    "AdaLomo": (IN_BACKWARD, "AdamW"),
    "LayerWiseDummyOptimizer": (IN_BACKWARD, "an optim without 'layerwise', such as AdamW"),
    "OptimizerInBackwardWrapper": (IN_BACKWARD, "AdamW"),
    "DeepSpeedOptimizerWrapper": (HIDDEN, "accelerate without DeepSpeed, such as DDP"),
    "DeepSpeedEngine": (HIDDEN, "accelerate without DeepSpeed, such as DDP"),
    "AdamWScheduleFree": (AVERAGED, "AdamW with a constant or cosine schedule"),
    "RAdamScheduleFree": (AVERAGED, "AdamW with a constant or cosine schedule"),
    "SGDScheduleFree": (AVERAGED, "SGD with a constant or cosine schedule"),
}


def attach(optimizer: torch.optim.Optimizer, method: Method, gradients: Gradients | None = None) -> list[Any]:
    """Call ``method``'s before_step and after_step around every ``optimizer.step``; returns handles with ``remove()``.

    Before a step ``gradients`` looks at its gradients; left out, one that is not finite stops the training. Where the
    base is in parts (FSDP2), gradients of the adapter, whole in every process, are averaged at the end of a backward.

    Raises:
        ValueError: an optimizer whose step cannot be hooked, or a model whose adapter is in parts, with what to do
            instead.
        FloatingPointError: from ``optimizer.step``; see ``Gradients``.
    """
    refuse(type(optimizer))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"attach needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    trains = [p for group in optimizer.param_groups for p in group["params"]]
    check_sharding(method.model, trains, type(method).__name__)
    looking, sound = gradients or Gradients(method.model), True

    def before(*_: Any) -> None:
        nonlocal sound
        if sound := looking.sound(optimizer):
            method.before_step()

    def after(*_: Any) -> None:
        if sound:
            method.after_step()

    handles: list[Any] = average(trains) if is_sharded(method.model) else []
    return [*handles, optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]


def refuse(kind: type) -> None:
    """Refuse a class of optimizers whose step cannot be hooked, or one derived from it.

    Raises:
        ValueError: its name, why, and what to use instead.
    """
    for name in (cls.__name__ for cls in kind.__mro__):
        if name in UNHOOKABLE:
            why, instead = UNHOOKABLE[name]
            raise ValueError(f"{kind.__name__} has no step that can be hooked: {why}; use {instead}")


def stepping(optimizer: Any) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer that steps, out of accelerate's wrapper, and the gradient scaler, if one is at work."""
    refuse(type(optimizer))
    if isinstance(optimizer, AcceleratedOptimizer):
        return optimizer.optimizer, optimizer.scaler
    return optimizer, None
