"""Inputs and output gradients of examples at one linear map, for what is made of per-example gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retain.fisher.forms import FORMS, Form

Pair = tuple[Tensor, Tensor]


def examples(
    n: int = 12, places: int = 3, out: int = 24, in_: int = 30, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Pair:
    """x (n, places, in), d (n, places, out): uneven over units and examples, and d depends on x."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, places, in_, generator=g, dtype=torch.float64) * torch.logspace(-1, 1, in_).double()
    d = torch.randn(n, places, out, generator=g, dtype=torch.float64) + x @ torch.randn(
        in_, out, generator=g, dtype=torch.float64
    )
    d = d * torch.rand(n, 1, 1, generator=g, dtype=torch.float64) * torch.logspace(0, 1, out).double()
    return x.to(dtype), d.to(dtype)


def even(n: int = 12, out: int = 24, in_: int = 30, seed: int = 0) -> Pair:
    """x (n, 1, in), d (n, 1, out) that differ in sign and scale only: G o G has rank one, and one direction for all."""
    g = torch.Generator().manual_seed(seed)
    x, d = (torch.logspace(-1, 1, w, dtype=torch.float64).repeat(n, 1, 1) for w in (in_, out))
    x, d = (t * torch.randn(n, 1, 1, generator=g) * (2 * torch.randint(0, 2, t.shape, generator=g) - 1) for t in (x, d))
    return x, d


def collect(form: str, data: Pair, batch: int | None = None, count: float | None = None, **options: Any) -> Form:
    """The form of ``data``, collected in batches of ``batch``."""
    x, d = data
    collector = FORMS[form].collector(d.shape[2], x.shape[2], x.device, x.dtype, **options)
    for some in range(0, len(x), batch or len(x)):
        part = slice(some, some + (batch or len(x)))
        collector.add(x[part], d[part])
    return collector.done(count or len(x))


def factors(out: int, in_: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pair:
    """B (out, r), A (r, in)."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(out, r, generator=g, dtype=torch.float64).to(dtype),
        torch.randn(r, in_, generator=g, dtype=torch.float64).to(dtype),
    )
