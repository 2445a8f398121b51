"""Quadratic penalties on a product of factors, without ever holding the product.

Value and both gradients are computed in one sweep, in float32 at least and outside autocast; what is kept for the
backward pass is of the factors' size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 1 << 17  # entries of one row block: 512 KiB in fp32, which stays in a CPU's cache
GPU_TILE = 1 << 24  # large enough that starting kernels costs little

Anchor = tuple[Tensor, Tensor] | None
Sweep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Rows(Protocol):
    """A matrix (out, in) of which blocks of rows can be had."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """The block ``rows`` (n, in)."""


def blocks(shape: tuple[int, int], device: torch.device, tile: int | None = None) -> list[slice]:
    """Blocks of rows of a matrix of ``shape``, each of ``tile`` entries; by default what suits the device."""
    out, in_ = shape
    step = max(1, (tile or (TILE if device.type == "cpu" else GPU_TILE)) // in_)
    return [slice(start, min(start + step, out)) for start in range(0, out, step)]


def quadratic(
    B: Tensor, A: Tensor, fisher: Rows, scale: float = 1.0, anchor: Anchor = None, tile: int | None = None
) -> Tensor:
    """1/2 <D, F o D> with D = s (B A - B* A*): the predicted rise of the loss, in nats per example if F is.

    Equation: EWC-LoRA (arXiv 2602.17559), 1/2 vec(dW)^T diag(F) vec(dW). Value and gradients are those of the dense
    formula; memory is one tile and the gradients of the factors.

    Args:
        B: (out, r).
        A: (r, in).
        fisher: (out, in), non-negative; anything whose blocks of rows are tensors.
        scale: s of the adapter.
        anchor: (B* (out, q), A* (q, in)), in the same units, held constant; None: anchored at zero.
        tile: entries of D computed at a time; by default what suits the device.
    """

    def sweep(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right = difference(B, A, anchor)
        left, thin = scale * left, A.T.contiguous()
        grad_B, grad_A, values = torch.empty_like(B), torch.zeros_like(A), []
        whole = blocks((len(left), right.shape[1]), B.device, tile)
        buffers = B.new_empty(2, whole[0].stop, right.shape[1])
        for rows in whole:
            change, pull = buffers[:, : len(left[rows])]
            torch.mm(left[rows], right, out=change)
            torch.mul(fisher[rows], change, out=pull)
            values.append(torch.dot(pull.flatten(), change.flatten()))
            torch.mm(pull, thin, out=grad_B[rows])
            grad_A.addmm_(B[rows].T, pull)
        return 0.5 * torch.stack(values).sum(), scale * grad_B, scale * grad_A

    return _swept(B, A, sweep)


def separable(
    B: Tensor,
    A: Tensor,
    left: Callable[[Tensor], Tensor],
    right: Callable[[Tensor], Tensor],
    anchor: Anchor = None,
) -> Tensor:
    """1/2 sum_m tr(D' S_m D R_m) with D = B A - B* A*: the penalty of F = sum_m S_m (x) R_m.

    Costs two products with the S_m and R_m and O(m (out + in) r^2) more, whatever the dense size.

    Args:
        B: (out, r).
        A: (r, in).
        left: X (out, q) -> (out, m, q), the products of the symmetric S_m with X.
        right: X (in, q) -> (in, m, q), those of the R_m.
        anchor: (B* (out, q), A* (q, in)), held constant; None: anchored at zero.
    """

    def sweep(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        L, R = difference(B, A, anchor)
        SL, RR = left(L).flatten(1), right(R.T).flatten(1)  # (out, m q), (in, m q)
        P, Q = L.T @ SL, R @ RR  # (q, m q)
        # Of the rows of R, A is the first; of the columns of L, B is the sum of both halves.
        own = P if anchor is None else P[: len(P) // 2] + P[len(P) // 2 :]
        grad_B = SL @ Q[: len(A)].T
        return 0.5 * (P * Q).sum(), grad_B, own[: len(A)] @ RR.T

    return _swept(B, A, sweep)


def difference(B: Tensor, A: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
    """Factors of B A - B* A* = (B - B*) A + B* (A - A*), which cancel nothing: exactly zero at the anchor."""
    if anchor is None:
        return B, A
    rank = max(B.shape[1], anchor[0].shape[1])
    B, B0 = (F.pad(x.to(B), (0, rank - x.shape[1])) for x in (B, anchor[0]))
    A, A0 = (F.pad(x.to(A), (0, 0, 0, rank - len(x))) for x in (A, anchor[1]))
    return torch.cat([B - B0, B0], 1), torch.cat([A, A - A0], 0)


def _swept(B: Tensor, A: Tensor, sweep: Sweep) -> Tensor:
    value: Tensor = _Swept.apply(B, A, sweep)
    return value


class _Swept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, B: Tensor, A: Tensor, sweep: Sweep) -> Tensor:
        kind = torch.promote_types(B.dtype, torch.float32)
        with torch.autocast(B.device.type, enabled=False):
            value, grad_B, grad_A = sweep(B.to(kind), A.to(kind))
        ctx.save_for_backward(grad_B, grad_A)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_B, grad_A = ctx.saved_tensors
        return grads[0] * grad_B, grads[0] * grad_A, None
