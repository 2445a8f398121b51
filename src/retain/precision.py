"""Factors that a trainer narrows behind a method's back: they get back the type and the values that they had.

TRL casts what trains beside a 4- or 8-bit base to bfloat16 whenever a trainer is made, also what earlier tasks have
learned: three digits of it, while the method holds the others to what they were.
"""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from retain.lora import adapter_parameters
from retain.method import Method

_left: WeakKeyDictionary[Method, dict[str, Tensor]] = WeakKeyDictionary()


def keep_values(method: Method) -> None:
    """Remember what ``method`` has trained, where the base is one beside which TRL narrows it."""
    if _is_quantised(method):
        _left[method] = {name: p.detach().clone() for name, p in adapter_parameters(method.model).items()}


@torch.no_grad()
def widen(method: Method) -> None:
    """Give narrowed factors float32 again, with the values that ``keep_values`` saw; without these a warning says so.

    Call it when the trainer has been made, and nothing trained yet.
    """
    if not _is_quantised(method):
        return
    left, rounded = _left.get(method, {}), []
    for name, parameter in adapter_parameters(method.model).items():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            before = left.get(name)
            if before is not None and torch.equal(before.to(parameter.dtype), parameter):
                parameter.data = before.clone()
            else:
                parameter.data = parameter.data.float()
                rounded.append(name)
    if rounded and method.learned:
        warnings.warn(
            f"{rounded[0]} and {len(rounded) - 1} others were rounded to half precision when the trainer was made, "
            "after the method remembered them: train with retain.learn in one process, or make the trainer first and "
            "load the adapter and the method's state then",
            stacklevel=3,
        )


def _is_quantised(method: Method) -> bool:
    model = method.model
    return bool(method.sites) and any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
