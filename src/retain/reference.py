"""The reference model of DPO and GRPO, which TRL keeps as a second adapter: the model as the task begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from retain.method import Method

REFERENCE = "ref"  # the name that TRL gives it


def hold_reference(trainer: Any, method: Method) -> None:
    """Let the reference of ``trainer`` be what ``method`` trains as it is now; a ``ref_model`` is left alone.

    TRL copies the adapter when the trainer is made, before the method chose where the task starts, and takes an adapter
    of its own making for none at all. The past counts under every adapter.

    Raises:
        ValueError: the method goes on training the past, which the reference would follow.
    """
    if not method.sites or trainer.ref_model is not None or not trainer.beta:
        return
    model: Any = method.model
    if any(is_parametrized(site.layer, "past_B") for site in method.sites.values()):
        raise ValueError(
            f"{type(method).__name__} goes on training what earlier tasks left, which a reference adapter shares: give "
            f"{type(trainer).__name__} a ref_model of its own"
        )
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    adapter = next(iter(method.sites.values())).adapter
    if REFERENCE not in model.peft_config:
        model.add_adapter(REFERENCE, model.peft_config[adapter])
    with torch.no_grad():
        for site in method.sites.values():
            for factors, value in ((site.layer.lora_B, site.B), (site.layer.lora_A, site.A)):
                _hold(factors, value)
            site.layer.scaling[REFERENCE] = site.scale
        for name, parameter in model.named_parameters():
            if f".modules_to_save.{adapter}." in name:
                held = model.get_parameter(name.replace(f".{adapter}.", f".{REFERENCE}."))
                held.copy_(parameter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains.get(name, False) and f".{REFERENCE}." not in name)


def drop_reference(method: Method) -> None:
    """Take the reference adapter away, so that TRL can make the next one, and none is saved."""
    model: Any = method.model
    if method.sites and REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)


def _hold(factors: Any, value: torch.Tensor) -> None:
    """Let the reference's factor be ``value``: a parametrised one makes way for a plain one."""
    if is_parametrized(factors[REFERENCE], "weight"):
        plain = nn.Linear(value.shape[1], value.shape[0], bias=False, device=value.device, dtype=value.dtype)
        factors[REFERENCE] = plain.requires_grad_(False)
    factors[REFERENCE].weight.copy_(value.reshape(factors[REFERENCE].weight.shape))
