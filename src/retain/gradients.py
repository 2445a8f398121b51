"""Gradients that are no numbers: found before a step is made of them, by name, and refused or left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

NotFinite = Literal["stop", "skip"]
MOST = 10  # steps that are left out in a row


class Gradients:
    """Looks at gradients when they are final, before anything is done with them.

    Args:
        model: whose parameters are named.
        not_finite: "stop" raises; "skip" leaves the step out, up to ``MOST`` in a row: nothing moves, the optimizer's
            own averages neither.

    Attributes:
        left_out: how many steps were.
    """

    def __init__(self, model: nn.Module, not_finite: NotFinite = "stop") -> None:
        if not_finite not in get_args(NotFinite):
            raise ValueError(f"not_finite={not_finite!r} is not allowed; known: {', '.join(get_args(NotFinite))}")
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.not_finite, self.left_out, self._row = not_finite, 0, 0
        self._seen: dict[str, Tensor] = {}

    def watch(self, parameters: Iterable[nn.Parameter]) -> list[Any]:
        """Note the gradients of ``parameters`` as they come, before clipping makes NaN of all; handles, to remove."""
        return [
            p.register_post_accumulate_grad_hook(partial(self._see, self.names.get(id(p), "a parameter")))
            for p in parameters
            if p.requires_grad
        ]

    def sound(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step may be made; else the gradients are gone, so that ``optimizer`` does nothing.

        Raises:
            FloatingPointError: naming the parameters whose gradients are not finite.
        """
        owners = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = _not_finite({self.names.get(id(p), "a parameter"): _total(p.grad) for p in owners})
        first, self._seen = _not_finite(self._seen) or found, {}
        self._row = self._row + 1 if found else 0
        if found and (self.not_finite == "stop" or self._row > MOST):
            more = f" and of {len(first) - 1} others" if len(first) > 1 else ""
            rows = f", {self._row} steps in a row" if self._row > 1 else ""
            raise FloatingPointError(
                f"the gradient of {first[0]}{more} is not finite{rows}: lower the learning rate, or train in a wider "
                "dtype"
            )
        for p in owners if found else ():
            p.grad = None
        self.left_out += bool(found)
        return not found

    def _see(self, name: str, parameter: Tensor) -> None:
        self._seen[name] = _total(parameter.grad)


def _total(gradient: Any) -> Tensor:
    """A number that is finite if all of ``gradient`` is, without waiting for a device."""
    return gradient.detach().sum(dtype=torch.promote_types(gradient.dtype, torch.float32))


def _not_finite(totals: Mapping[str, Tensor]) -> list[str]:
    if not totals:
        return []
    device = next(iter(totals.values())).device
    finite = torch.stack([total.to(device, torch.float32) for total in totals.values()]).isfinite().tolist()
    return [name for name, good in zip(totals, finite, strict=True) if not good]
