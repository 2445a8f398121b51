"""Factors confined to frozen bases and a few free columns: stock LoRA layers whose weights are parametrised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from retain.linalg import project_out
from retain.lora import Site

ROUNDING = 1e-6  # of the norm of a factor


class Spanned(nn.Module):
    """A factor (n, r), its transpose where it is ``turned``: anything, or confined to gain [basis, free] coefficients.

    ``basis`` (n, k) is frozen; ``coefficients`` (k + f, r) and ``free`` (n, f) train. gain = sqrt(n / (k + f)): under
    AdamW, which moves every entry by about the learning rate, the factor then moves as far as a stock one, whose n r
    entries all move, so that learning rates carry over. A factor that is not confined is its own coefficients.
    """

    basis: Tensor | None

    def __init__(self, shape: torch.Size, *, turned: bool) -> None:
        super().__init__()
        self.shape, self.turned = shape, turned
        self.gain = 1.0
        self.register_buffer("basis", None, persistent=False)
        self.register_buffer("start", None, persistent=False)

    def confine(self, basis: Tensor, free: Tensor) -> None:
        """Say what the factor is confined to, and where ``free`` starts."""
        self.basis, self.start = basis, free
        self.gain = math.sqrt(len(basis) / (basis.shape[1] + free.shape[1]))

    def forward(self, coefficients: Tensor, free: Tensor) -> Tensor:
        if self.basis is None:
            return coefficients
        factor = self.gain * torch.cat([self.basis, free], 1) @ coefficients
        return (factor.T if self.turned else factor).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and free columns that give ``weight``, or what is nearest to it.

        What the basis lacks of it says where the free columns are; those that it does not need stay at their start.
        """
        if self.basis is None:
            return weight, weight.new_zeros(0)
        factor = weight.flatten(1).T if self.turned else weight.flatten(1)
        U, S, _ = torch.linalg.svd(project_out(factor, self.basis), full_matrices=False)
        needed = int((ROUNDING * factor.norm() < S[: self.start.shape[1]]).sum())
        free = torch.cat([U[:, :needed], self.start[:, needed:]], 1)
        columns = self.gain * torch.cat([self.basis, free], 1)
        return torch.linalg.lstsq(columns, factor).solution.contiguous(), free.contiguous()


def confinable(site: Site) -> None:
    """Parametrise both factors of ``site``, which stay what they are.

    Raises:
        ValueError: they have another parametrisation.
    """
    for module, turned in _modules(site):
        if not is_parametrized(module, "weight"):
            register_parametrization(module, "weight", Spanned(module.weight.shape, turned=turned))
        elif [type(step) for step in module.parametrizations.weight] != [Spanned]:
            raise ValueError(f"{site.name}: its factors have another parametrisation already")


def span(site: Site, U: Tensor, V: Tensor, free_U: Tensor, free_V: Tensor) -> tuple[Spanned, Spanned]:
    """Confine B (out, r) of ``site`` to [U, free_U] and A (r, in) to [V, free_V], all coefficients zero."""
    for (module, _), basis, free in zip(_modules(site), (U, V), (free_U, free_V), strict=True):
        module.parametrizations.weight[0].confine(basis, free)
        rank = site.layer.r[site.adapter]
        _replace(module, basis.new_zeros(basis.shape[1] + free.shape[1], rank), free)
    of_B, of_A = (module.parametrizations.weight[0] for module, _ in _modules(site))
    return of_B, of_A


def coefficients(site: Site) -> tuple[nn.Parameter, nn.Parameter]:
    """Those of B (k_o + f, r) and of A (k_i + f, r), of a site that is confined."""
    of_B, of_A = (module.parametrizations.weight.original0 for module, _ in _modules(site))
    return of_B, of_A


@torch.no_grad()
def inside(site: Site) -> tuple[Tensor | None, Tensor | None]:
    """What the bases alone give of B (out, r) and of A (r, in), without the free columns; None where not confined."""
    found: list[Tensor | None] = []
    for module, turned in _modules(site):
        behind = module.parametrizations.weight
        if (basis := behind[0].basis) is None:
            found.append(None)
        else:
            part = behind[0].gain * basis @ behind.original0[: basis.shape[1]]
            found.append(part.T if turned else part)
    of_B, of_A = found
    return of_B, of_A


def release(site: Site) -> None:
    """Let the factors of ``site`` be anything again, from what they are."""
    if any(module.parametrizations.weight[0].basis is not None for module, _ in _modules(site)):
        put(site, *(module.weight.detach() for module, _ in _modules(site)))


@torch.no_grad()
def put(site: Site, B: Tensor, A: Tensor) -> None:
    """Let the factors of ``site`` be ``B`` and ``A``, and then anything."""
    for (module, _), value in zip(_modules(site), (B, A), strict=True):
        behind = module.parametrizations.weight
        value = value.reshape(behind[0].shape)
        if behind[0].basis is None:
            behind.original0.copy_(value)
        else:
            behind[0].basis = behind[0].start = None
            _replace(module, value, value.new_zeros(0))


def _modules(site: Site) -> Iterator[tuple[Any, bool]]:
    yield site.layer.lora_B[site.adapter], False
    yield site.layer.lora_A[site.adapter], True


def _replace(module: Any, *values: Tensor) -> None:
    """New parameters, of new shapes, behind a parametrised weight."""
    behind = module.parametrizations.weight
    for i, value in enumerate(values):
        trains = getattr(behind, f"original{i}").requires_grad
        setattr(behind, f"original{i}", nn.Parameter(value.detach().clone(), requires_grad=trains))
