"""How far an EBLoRA adapter is from its manifold, and the singular values of its updates from one another."""

from __future__ import annotations

import torch

from retain import EBLoRA
from retain.balanced import originals
from retain.linalg import thin_svd


def off_manifold(method: EBLoRA) -> float:
    """The largest entry of B'B - I, A A' - I and A F over the sites."""
    worst = 0.0
    for name, site in method.sites.items():
        Q, eye = originals(site)[0].detach().flatten(1), torch.eye(len(site.A))
        F = method.bases[name]["F"]
        parts = [Q.T @ Q - eye, site.A.detach() @ site.A.detach().T - eye, site.A.detach() @ F, torch.zeros(1)]
        worst = max(worst, *(float(part.abs().max()) for part in parts if part.numel()))
    return worst


def unevenness(method: EBLoRA) -> float:
    """The largest relative distance of a singular value of dW from |c s|."""
    worst = 0.0
    for site in method.sites.values():
        expected = site.scale * float(originals(site)[1].detach().abs())
        S = thin_svd(site.scale * site.B.detach(), site.A.detach())[1]
        worst = max(worst, float((S - expected).abs().max()) / expected)
    return worst
