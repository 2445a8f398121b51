"""How a method sits beside an optimizer."""

from __future__ import annotations

from typing import Any

import torch

from retain.method import Method

# These run inside backward or hide their step, so that nothing can be done before and after it.
UNHOOKABLE = {"Lomo": "AdamW", "AdaLomo": "AdamW", "DeepSpeedOptimizerWrapper": "accelerate without DeepSpeed"}


def attach(optimizer: torch.optim.Optimizer, method: Method) -> list[Any]:
    """Call ``method``'s before_step and after_step around every ``optimizer.step``; returns handles with ``remove()``.

    Raises:
        ValueError: an optimizer whose step cannot be hooked, by name, with what to use instead.
    """
    kind = type(optimizer).__name__
    if kind in UNHOOKABLE:
        raise ValueError(f"{kind} has no step that can be hooked; use {UNHOOKABLE[kind]}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"attach needs a torch.optim.Optimizer, got {kind}")
    return [
        optimizer.register_step_pre_hook(lambda *_: method.before_step()),
        optimizer.register_step_post_hook(lambda *_: method.after_step()),
    ]
