"""The quadratic penalty of a diagonal Fisher on a product of factors, without ever holding the product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 1 << 18  # entries of one row block: 1 MiB in fp32, which stays in cache


def quadratic(
    B: Tensor, A: Tensor, fisher: Tensor, scale: float, anchor: tuple[Tensor, Tensor] | None = None, tile: int = TILE
) -> Tensor:
    """1/2 <D, F o D> with D = s (B A - B* A*): the predicted rise of the loss, in nats per example if F is.

    Equation: EWC-LoRA (arXiv 2602.17559), 1/2 vec(dW)^T diag(F) vec(dW). Value and gradients are those of the dense
    formula; memory is one tile and the gradients of the factors, since both are computed in one sweep over blocks of
    rows.

    Args:
        B: (out, r).
        A: (r, in).
        fisher: (out, in), non-negative.
        scale: s of the adapter.
        anchor: (B* (out, q), A* (q, in)), in the same units, held constant; None: anchored at zero.
        tile: entries of D computed at a time.
    """
    return _Quadratic.apply(B, A, fisher, scale, anchor, tile)


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, B: Tensor, A: Tensor, fisher: Tensor, scale: float, anchor: tuple[Tensor, Tensor] | None, tile: int
    ) -> Tensor:
        kind = torch.promote_types(B.dtype, torch.float32)
        here, there = B.to(kind), A.to(kind)
        left, right = _difference(here, there, anchor)
        left = scale * left
        grad_B, grad_A, values = torch.empty_like(here), torch.zeros_like(there), []
        step = max(1, tile // right.shape[1])
        for start in range(0, len(left), step):
            rows = slice(start, start + step)
            difference = left[rows] @ right
            pull = fisher[rows].to(kind) * difference
            values.append(torch.dot(pull.flatten(), difference.flatten()))
            grad_B[rows] = pull @ there.T
            grad_A.addmm_(here[rows].T, pull)
        ctx.save_for_backward(scale * grad_B, scale * grad_A)
        return 0.5 * torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_B, grad_A = ctx.saved_tensors
        return grads[0] * grad_B, grads[0] * grad_A, None, None, None, None


def _difference(B: Tensor, A: Tensor, anchor: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Factors of B A - B* A* = (B - B*) A + B* (A - A*), which cancel nothing: exactly zero at the anchor."""
    if anchor is None:
        return B, A
    rank = max(B.shape[1], anchor[0].shape[1])
    B, B0 = (F.pad(x.to(B), (0, rank - x.shape[1])) for x in (B, anchor[0]))
    A, A0 = (F.pad(x.to(A), (0, 0, 0, rank - len(x))) for x in (A, anchor[1]))
    return torch.cat([B - B0, B0], 1), torch.cat([A, A - A0], 0)
