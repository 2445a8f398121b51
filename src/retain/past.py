"""The frozen past of a LoRA layer: in its forward, merge and load, whatever map it adapts."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

STOCK: Any = nn.Module  # stands for the stock LoRA layer that a past is mixed into: only ``lora`` knows peft


class Past(STOCK):
    """Mixed into a stock LoRA layer: it adds s B_past A_past x, at the scale s of ``past_adapter``.

    The past is on under any active adapter, off when adapters are disabled, and goes where the adapter goes. Factors
    are flat, past_A (R, in) and past_B (out, R).
    """

    past_A: Tensor
    past_B: Tensor
    past_adapter: str
    past_merged: bool

    @abstractmethod
    def past_output(self, x: Tensor) -> Tensor:
        """B_past A_past x."""

    @abstractmethod
    def as_weight(self, change: Tensor) -> Tensor:
        """A flat ``change`` (out, in) in the layout of the base layer's weight."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.past_merged:
            self.unmerge()
        result: Tensor = super().forward(x, *args, **kwargs)
        if self.disable_adapters or self.past_merged or not len(self.past_A):
            return result
        past = self.past_output(x.to(self.past_A.dtype)) * self.scaling[self.past_adapter]
        if names := kwargs.get("adapter_names"):
            on = torch.tensor([n != "__base__" for n in names], device=x.device)
            past = past * on.view(-1, *[1] * (past.dim() - 1))
        return result + past.to(result.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        if len(self.past_A) and not self.past_merged:
            self._shift_base(1)

    def unmerge(self) -> None:
        super().unmerge()
        if self.past_merged:
            self._shift_base(-1)

    def _shift_base(self, sign: int) -> None:
        past = sign * self.scaling[self.past_adapter] * (self.past_B @ self.past_A)
        weight = self.get_base_layer().weight
        weight.data += self.as_weight(past).to(weight.dtype)
        self.past_merged = sign > 0

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Another adapter of a layer whose factors are parametrised has factors of the same make, to be copied into."""
        super().update_layer(adapter_name, *args, **kwargs)
        for factors in (self.lora_A, self.lora_B) if adapter_name != self.past_adapter else ():
            if is_parametrized(factors[self.past_adapter], "weight"):
                factors[adapter_name] = copy.deepcopy(factors[self.past_adapter]).requires_grad_(False)

    def delete_adapter(self, adapter_name: str) -> None:
        """An adapter is its present and its past: both go."""
        super().delete_adapter(adapter_name)
        if adapter_name == self.past_adapter:
            self.past_A, self.past_B = self.past_A[:0], self.past_B[:, :0]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Split baked factors of a higher rank into the present, which comes first, and the past.

        What a plain factor is to a parametrised one, its inverse says. (peft names the adapter of a factor only where
        the model has a factor of that name, which a parametrised one is not.)
        """
        for x, other in ("AB", "BA"):
            if (weight := state_dict.pop(f"{prefix}lora_{x}.weight", None)) is not None:
                adapters = (name for name in self.r if f"{prefix}lora_{other}.{name}.weight" in state_dict)
                state_dict[f"{prefix}lora_{x}.{next(adapters, self.past_adapter)}.weight"] = weight
        key_A, key_B = (f"{prefix}lora_{x}.{self.past_adapter}.weight" for x in "AB")
        rank = self.r.get(self.past_adapter, 0)
        if key_A in state_dict and key_B in state_dict and len(state_dict[key_A]) > rank:
            A, B = state_dict[key_A], state_dict[key_B]
            self.past_A = A[rank:].flatten(1).to(self.past_A, copy=True)
            self.past_B = B[:, rank:].flatten(1).to(self.past_B, copy=True)
            state_dict[key_A], state_dict[key_B] = A[:rank], B[:, :rank]
        for name, module in self.named_modules():
            if is_parametrized(module, "weight") and f"{prefix}{name}.weight" in state_dict:
                weight = state_dict.pop(f"{prefix}{name}.weight")
                state_dict |= _originals(module.parametrizations.weight, f"{prefix}{name}", weight)
        super()._load_from_state_dict(state_dict, prefix, *args)


class OnLinear(Past):
    """The past of a Linear or Conv1D."""

    def past_output(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.past_A), self.past_B)

    def as_weight(self, change: Tensor) -> Tensor:
        return change.T if self.fan_in_fan_out else change


class OnConv2d(Past):
    """The past of a Conv2d; in = channels x height x width of the kernel."""

    def past_output(self, x: Tensor) -> Tensor:
        base = self.get_base_layer()
        inner = F.conv2d(x, self.past_A.view(-1, *base.weight.shape[1:]), None, base.stride, base.padding)
        return F.conv2d(inner, self.past_B[:, :, None, None])

    def as_weight(self, change: Tensor) -> Tensor:
        return change.view(self.get_base_layer().weight.shape)


class OnQuantized(OnLinear):
    """The past of a linear map whose weight is kept in 4 or 8 bits, and never written."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(
            f"an adapter that is merged into a {type(self.get_base_layer()).__name__} is rounded to its few bits, past "
            "and present: export it, load the base without quantization, and merge there"
        )


@torch.no_grad()
def _originals(parametrization: Any, name: str, weight: Tensor) -> dict[str, Tensor]:
    """What a parametrised module called ``name`` keeps, by its keys, where its weight is to be ``weight``."""
    value: Any = weight
    for step in reversed(parametrization):
        value = step.right_inverse(value)
    originals = {"original": value} if parametrization.is_tensor else {f"original{i}": v for i, v in enumerate(value)}
    return {f"{name}.parametrizations.weight.{key}": v for key, v in originals.items()}
