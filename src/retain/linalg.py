"""Linear algebra of low-rank updates: singular values of a product of factors, orthonormal bases, projections.

Everything is computed and returned in float32 or better, whatever the precision of the input. `thin_svd` and
`truncate` carry no gradient: singular vectors have none at zero or repeated singular values, where adapters start.
"""

from functools import reduce

import torch
from torch import Tensor


@torch.no_grad()
def thin_svd(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor ``B`` (out, R) @ ``A`` (R, in) as U (out, k) diag(S) V' with S (k,) descending, V (in, k).

    k = min(R, out, in). Goes through thin QR of both factors, so no (out, in) matrix is formed: O((out + in) R^2).
    """
    if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
        raise ValueError(f"factors must be (out, R) and (R, in); got {tuple(B.shape)} and {tuple(A.shape)}")
    B, A = _precise(B, A)
    if not (B.isfinite().all() and A.isfinite().all()):
        raise ValueError("factors must be finite; got NaN or infinity")
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, S, Q_A @ Vh.T


def truncate(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best factors (out, r), (r, in) of ``B`` (out, R) @ ``A`` (R, in), r = min(rank, R, out, in), and their error.

    The factors are balanced, B' = U sqrt(S) and A' = sqrt(S) V'. The error is ||BA - B'A'|| / ||BA|| in the Frobenius
    norm, sqrt(sum of dropped S^2 / sum of S^2); 0 if the product is zero.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    U, S, V = thin_svd(B, A)
    energy = _energy(S)
    total = energy.sum().item()
    error = (energy[rank:].sum().item() / total) ** 0.5 if total else 0.0
    root = S[:rank].sqrt()
    return U[:, :rank] * root, (V[:, :rank] * root).T.contiguous(), error


def orthonormal_basis(X: Tensor) -> Tensor:
    """Orthonormal basis (n, p) of the span of the columns of ``X`` (n, m), p their numerical rank (0 for zeros)."""
    (X,) = _precise(X)
    U, S, _ = torch.linalg.svd(X, full_matrices=False)
    tolerance = max(X.shape) * torch.finfo(X.dtype).eps
    return U[:, S.gt(tolerance * S[:1])]


def project_out(X: Tensor, F: Tensor) -> Tensor:
    """Remove from ``X`` (n, m) its part in the span of ``F`` (n, p), whose columns are orthonormal: (I - FF')^2 X.

    Once leaves a residue the size of the rounding of F'X, which matters where X lies almost inside the span.
    """
    X, F = _precise(X, F)
    for _ in range(2):
        X = X - F @ (F.T @ X)
    return X


def rank_for_energy(S: Tensor, energy: float) -> int:
    """Smallest q for which the first q of the singular values ``S`` (k,), descending, hold ``energy`` of sum S^2.

    0 if ``energy`` is 0 or there is none to hold.
    """
    if not 0 <= energy <= 1:
        raise ValueError(f"energy must lie between 0 and 1; got {energy}")
    held = _energy(S).cumsum(0)
    if energy == 0 or not held[-1:].any():
        return 0
    return int((held / held[-1] < energy).sum()) + 1


def _precise(*tensors: Tensor) -> list[Tensor]:
    """Bring ``tensors`` to their common precision, float32 at least."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _energy(S: Tensor) -> Tensor:
    """Squares of ``S`` (k,) in float64 on the CPU: float32 would lose the squares of small updates to underflow."""
    return S.detach().to("cpu", torch.float64).square()
