"""The restricted Stiefel manifold {X'X = I, F'X = 0}: its tangent projection and its retractions (arXiv 2602.00722).

Pure functions of points X (..., m, r) with orthonormal columns; every leading dimension is a batch. Computed and
returned in float32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Metric = Literal["euclidean", "canonical"]
Retraction = Literal["eigh", "svd", "newton-schulz"]

# Of eigenvalues of Y'Y: beyond, their square roots lose too many digits, and singular values are taken of Y itself.
CONDITION = 1e6
# A tangent step of spectral norm 1 is orthonormal to 1e-7 after so many.
ITERATIONS = 8


def tangent(X: Tensor, Z: Tensor, F: Tensor | None = None, *, metric: Metric = "euclidean") -> Tensor:
    """Project ``Z`` (..., m, r) onto the tangent space of {X'X = I, F'X = 0} at ``X`` (..., m, r).

    Z - X sym(X'Z) of what is left of Z outside ``F`` (..., m, p), whose columns are orthonormal (or zero): orthogonal
    in the Euclidean metric, hence idempotent and self-adjoint. ``metric="canonical"`` gives Z - X Z'X instead, the
    gradient in the canonical metric, which is no projection (it doubles a tangent Z's part in the span of X) and which
    the reference code of EBLoRA takes for one.
    """
    X, Z = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (X, Z))
    if F is not None:
        Z = _outside(Z, F)
    inner = X.mT @ Z
    return Z - X @ ((inner + inner.mT) / 2 if metric == "euclidean" else inner.mT)


def retract(Y: Tensor, method: Retraction = "eigh") -> Tensor:
    """The polar factor Y (Y'Y)^(-1/2) of ``Y`` (..., m, r): the nearest matrix with orthonormal columns.

    A right factor, so that F'Y = 0 is kept.

    Args:
        Y: of full column rank.
        method: "eigh" decomposes Y'Y (r, r), or Y where Y'Y is ill-conditioned; "svd" always decomposes Y;
            "newton-schulz" needs only matrix products, and singular values in (0, sqrt(3)), such as those of a point
            plus a tangent step of spectral norm up to 1.

    Raises:
        FloatingPointError: ``Y`` is not finite.
        ValueError: columns of ``Y`` that are dependent, whose polar factor would be arbitrary, or too long for
            Newton-Schulz.
    """
    if method not in get_args(Retraction):
        raise ValueError(f"unknown retraction {method!r}; known: {', '.join(get_args(Retraction))}")
    Y = Y.to(torch.promote_types(Y.dtype, torch.float32))
    gram = Y.mT @ Y
    if not gram.isfinite().all():
        raise FloatingPointError("a step has left the Stiefel manifold for NaN or infinity: lower the learning rate")
    if method == "svd":
        return _by_svd(Y)
    if method == "newton-schulz":
        return _by_newton_schulz(Y)
    values, vectors = torch.linalg.eigh(gram)
    if bool((values[..., :1] * CONDITION <= values[..., -1:]).any()):
        return _by_svd(Y)
    return Y @ (vectors * values.rsqrt().unsqueeze(-2) @ vectors.mT)


class Points:
    """Parameters of one shape as points X (n, m, r), around the step of any optimizer that does not know of manifolds.

    Args:
        parameters: n of them, each X (m, r, ...), or its transpose (r, m...) where they are ``turned``; what follows
            the first dimension is flattened.
        turned: see above.
        F: (n, m, p) of orthonormal columns that the points stay orthogonal to, padded with columns of zeros.
        names: of the parameters, for errors.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        turned: bool = False,
        F: Tensor | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.parameters, self.turned, self.F, self.names = parameters, turned, F, names
        self.start = self._read(parameters)

    def project_gradients(self, metric: Metric) -> None:
        """Remember where the factors are, and leave of their gradients what is tangent there."""
        self.start = self._read(self.parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        projected = tangent(self.start, self._read(gradients), self.F, metric=metric)
        self._write([p.grad for p in self.parameters], projected)

    def retract(self, scale: float, metric: Metric) -> None:
        """Take ``scale`` times the tangent part of the step that was made, and come back to the manifold.

        Raises:
            FloatingPointError, ValueError: as of ``retract``, naming the parameter.
        """
        step = tangent(self.start, scale * (self._read(self.parameters) - self.start), self.F, metric=metric)
        moved = self.start + step
        moved = moved if self.F is None else _outside(moved, self.F)
        try:
            there = retract(moved)
        except (FloatingPointError, ValueError):
            for name, alone in zip(self.names, moved, strict=False):
                _named(name, alone)
            raise
        self._write([p if p.requires_grad else None for p in self.parameters], there)

    def _read(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = torch.stack([t.detach().flatten(1) for t in tensors])
        return flat.mT if self.turned else flat

    def _write(self, targets: Sequence[Tensor | None], values: Tensor) -> None:
        for target, value in zip(targets, values.mT if self.turned else values, strict=True):
            if target is not None:
                target.copy_(value.reshape(target.shape))


def _named(name: str, Y: Tensor) -> None:
    """What keeps ``Y`` (m, r) from the manifold, if anything does, with its name in front."""
    try:
        retract(Y)
    except (FloatingPointError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _outside(Z: Tensor, F: Tensor) -> Tensor:
    """(I - FF') Z, once: a step is projected as a tangent and again with its point, which ``F`` hardly meets."""
    return Z - F.to(Z) @ (F.to(Z).mT @ Z)


def _by_svd(Y: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(Y, full_matrices=False)
    least, most = S[..., -1], S[..., 0]
    if bool((least <= most * torch.finfo(S.dtype).eps * Y.shape[-2]).any()):
        worst = (least / most.clamp(min=torch.finfo(S.dtype).tiny)).min().item()
        raise ValueError(
            f"no orthonormal columns are nearest to dependent ones: of {tuple(Y.shape)}, the smallest singular value "
            f"is {worst:.1e} of the largest"
        )
    return U @ Vh


def _by_newton_schulz(Y: Tensor) -> Tensor:
    for _ in range(ITERATIONS):
        Y = 1.5 * Y - 0.5 * Y @ (Y.mT @ Y)
    error = (Y.mT @ Y - torch.eye(Y.shape[-1], dtype=Y.dtype, device=Y.device)).abs().max().item()
    if not error < 1e-3:
        raise ValueError(
            f"Newton-Schulz has not converged ({error:.1e} off orthonormal after {ITERATIONS} iterations): singular "
            "values must lie in (0, sqrt(3)) and not near its ends; use 'eigh'"
        )
    return Y
