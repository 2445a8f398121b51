"""What a boundary of Share's release keeps of a task, where it departs from the paper: only to reproduce it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from retain.bases import ROUNDING, Bases
from retain.linalg import squared_norm
from retain.lora import Site
from retain.spanned import inside

Quirk = Literal["dropped temporaries", "centring"]


@torch.no_grad()
def released(site: Site, quirks: Collection[Quirk]) -> tuple[Tensor, Tensor]:
    """Factors B (out, r) and A (r, in) of what is kept of the change that ``site`` holds, confined or not.

    "dropped temporaries": of each factor the part that the bases of earlier tasks carry. "centring": of each factor
    what lies in the span of its columns (those of that part and of the temporary one) less their mean.
    """
    whole, parts = site.factors(), inside(site)
    B = _kept(whole[0], parts[0], quirks)
    A = _kept(whole[1].T, None if parts[1] is None else parts[1].T, quirks).T
    return B, A


def recorded(bases: Bases, task: str, B: Tensor, A: Tensor) -> Bases:
    """``bases`` whose core of ``task`` is that of B A instead. Its residual then says how much smaller B A is."""
    core = bases.cores[task]
    left, right = bases.U.T @ B, A @ bases.V
    gone = torch.cat([core.left, -left], 1), torch.cat([core.right, right])
    kept, cut = (float(squared_norm(*(x.double() for x in factors))) for factors in ((left, right), gone))
    other = replace(core, left=left, right=right, kept=kept, cut=core.cut + cut**0.5)
    return replace(bases, cores={**bases.cores, task: other})


def _kept(whole: Tensor, part: Tensor | None, quirks: Collection[Quirk]) -> Tensor:
    """Of the columns ``whole`` (n, r), of which ``part`` lies in a basis."""
    kept = part if part is not None and "dropped temporaries" in quirks else whole
    if "centring" not in quirks:
        return kept
    columns = whole if part is None else torch.cat([part, whole - part], 1)
    U, S, _ = torch.linalg.svd(columns - columns.mean(1, keepdim=True), full_matrices=False)
    U = U[:, S.gt(ROUNDING * S[0])]
    return U @ (U.T @ kept)
