"""Adapters on the manifold: dW = c s Q A with Q'Q = A A' = I, as stock factors whose B is parametrised as s Q."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from retain.lora import Site
from retain.stiefel import Points
from retain.subspace import Basis


class Balanced(nn.Module):
    """The weight of B (out, r, ...) as s Q, Q of orthonormal columns: one size for all directions."""

    def forward(self, Q: Tensor, s: Tensor) -> Tensor:
        return Q * s

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Q and s > 0 of a weight that is balanced; Q = weight/s, of columns of unit length on average, of any other.

        s = 0 and the first r axes for zeros.
        """
        s = weight.norm() / weight.shape[1] ** 0.5
        axes = torch.eye(*weight.shape[:2], dtype=weight.dtype, device=weight.device).view(weight.shape)
        return torch.where(s > 0, weight / torch.where(s > 0, s, 1), axes).contiguous(), s.reshape(1)


def balance(site: Site) -> None:
    """Make the B of ``site`` s Q, unless it is."""
    module = site.layer.lora_B[site.adapter]
    if site.B.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{site.name}: factors in {site.B.dtype} are orthonormal to three digits only; keep them in float32 "
            "(peft's autocast_adapter_dtype=True)"
        )
    if not is_parametrized(module, "weight"):
        register_parametrization(module, "weight", Balanced())
    elif [type(step) for step in module.parametrizations.weight] != [Balanced]:
        raise ValueError(f"{site.name}: B has another parametrisation already")


def originals(site: Site) -> tuple[nn.Parameter, nn.Parameter]:
    """Q (out, r, ...) and s (1,) behind the B of ``site``."""
    behind = site.layer.lora_B[site.adapter].parametrizations.weight
    return behind.original0, behind.original1


def points(sites: Mapping[str, Site], bases: Mapping[str, Basis]) -> Iterator[Points]:
    """The factors of all ``sites``, those of one shape together; A stays clear of the basis of its site."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, site in sites.items():
        groups["A", site.A.shape, site.A.device].append(name)
        groups["B", site.B.shape, site.B.device].append(name)
    for (which, *_), names in groups.items():
        if which == "B":
            yield Points([originals(sites[n])[0] for n in names], names=[f"B of {n}" for n in names])
            continue
        columns = max(bases[n].F.shape[1] for n in names)
        padded = [nn.functional.pad(bases[n].F, (0, columns - bases[n].F.shape[1])) for n in names]
        factors = [sites[n].layer.lora_A[sites[n].adapter].weight for n in names]
        F = torch.stack(padded) if columns else None
        yield Points(factors, turned=True, F=F, names=[f"A of {n}" for n in names])


@contextmanager
def without_adapter(sites: Mapping[str, Site]) -> Iterator[None]:
    """The block sees the pretrained weights, with whatever trains beside the adapter."""
    past = {name: site.past for name, site in sites.items()}
    present = {name: originals(site)[1].detach().clone() for name, site in sites.items()}
    try:
        for site in sites.values():
            site.set_past(site.B[:, :0], site.A[:0])
            originals(site)[1].data.zero_()
        yield
    finally:
        for name, site in sites.items():
            site.set_past(*past[name])
            originals(site)[1].data.copy_(present[name])
