"""Linear algebra of low-rank updates: singular values of a product of factors, orthonormal bases, projections.

Everything is computed and returned in float32 or better, whatever the precision of the input. `thin_svd` and
`truncate` carry no gradient: singular vectors have none at zero or repeated singular values, where adapters start.
"""

import math
from functools import reduce

import torch
from torch import Tensor

OVERSAMPLING, POWER_ITERATIONS = 16, 4  # with these a leading subspace is found whatever the gap behind it


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


def squared_norm(B: Tensor, A: Tensor) -> Tensor:
    """||B A||^2, the squared Frobenius norm of a product of factors (out, R) and (R, in), in O((out + in) R^2)."""
    B, A = _precise(B, A)
    return ((B.T @ B) * (A @ A.T)).sum().clamp(min=0)


def orthonormal_basis(X: Tensor) -> Tensor:
    """Orthonormal basis (n, p) of the span of the columns of ``X`` (n, m), p their numerical rank (0 for zeros)."""
    (X,) = _precise(X)
    U, S, _ = torch.linalg.svd(X, full_matrices=False)
    tolerance = max(X.shape) * torch.finfo(X.dtype).eps
    return U[:, S.gt(tolerance * S[:1])]


def project_out(X: Tensor, F: Tensor) -> Tensor:
    """Remove from ``X`` (..., n, m) its part in the span of ``F`` (..., n, p), of orthonormal columns: (I - FF')^2 X.

    Once leaves a residue the size of the rounding of F'X, which matters where X lies almost inside the span. Columns of
    zeros in ``F`` change nothing.
    """
    X, F = _precise(X, F)
    for _ in range(2):
        X = X - F @ (F.mT @ X)
    return X


def complement(F: Tensor) -> Tensor:
    """Orthonormal columns (n, n - p) for all that those of ``F`` (n, p), 0 < p, leave of the space."""
    (F,) = _precise(F)
    return torch.linalg.qr(F, mode="complete").Q[:, F.shape[1] :].contiguous()


def orthonormalised(X: Tensor) -> Tensor:
    """Orthonormal columns with the span of those of ``X`` (n, p), of full rank, and close to them: QR, R_ii > 0."""
    (X,) = _precise(X)
    Q, R = torch.linalg.qr(X)
    return Q * torch.where(R.diagonal() < 0, -1, 1).to(Q)


@torch.no_grad()
def leading_svd(H: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading singular triplets of ``H`` (n, m): U (n, k), S (k,), V (m, k), k = min(rank, n, m).

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011), O(n m (rank + 16)): exact where there are no more
    than rank + 16 singular values. The largest entry of each column of U is positive.
    """
    (H,) = _precise(H)
    size = min(rank + OVERSAMPLING, *H.shape)
    probe = torch.randn(H.shape[1], size, generator=generator, dtype=torch.float64).to(H)
    Q = torch.linalg.qr(H @ probe).Q
    for _ in range(POWER_ITERATIONS):
        Q = torch.linalg.qr(H @ torch.linalg.qr(H.T @ Q).Q).Q
    U, S, V = (x[..., :rank] for x in thin_svd(Q, Q.T @ H))
    return U * signs(U), S, V * signs(U)


def signs(X: Tensor) -> Tensor:
    """What makes the largest entry of each column of ``X`` (n, k) positive, (1, k): SVD leaves signs to rounding."""
    largest = X.gather(0, X.abs().argmax(0, keepdim=True)) if len(X) else X.new_zeros(1, X.shape[1])
    return torch.where(largest < 0, -1, 1).to(X)


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


def energy_concentration(S: Tensor, rank: int) -> float:
    """Share of sum S^2 that the ``rank`` largest of the singular values ``S`` (k,) hold; 0 if there is none to hold."""
    energy = _energy(S).sort(descending=True).values
    return float(energy[:rank].sum() / energy.sum()) if energy.any() else 0.0


def spectral_entropy(S: Tensor) -> float:
    """-sum p log p in nats of p = S / sum S, for singular values ``S`` (k,): log k if all are equal, 0 for one."""
    values = S.detach().to("cpu", torch.float64)
    values = values[values > 0]
    return float(torch.special.entr(values / values.sum()).sum()) if len(values) else 0.0


def effective_rank(S: Tensor) -> float:
    """exp of the spectral entropy of ``S`` (k,) (Roy and Vetterli 2007): k if all are equal; 0 if all are zero."""
    return math.exp(spectral_entropy(S)) if S.any() else 0.0


def stable_rank(S: Tensor) -> float:
    """sum S^2 / max S^2 for singular values ``S`` (k,): the squared Frobenius by the squared spectral norm."""
    energy = _energy(S)
    return float(energy.sum() / energy.max()) if energy.any() else 0.0


def _precise(*tensors: Tensor) -> list[Tensor]:
    """Bring ``tensors`` to their common precision, float32 at least."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _energy(S: Tensor) -> Tensor:
    """Squares of ``S`` (k,) in float64 on the CPU: float32 would lose the squares of small updates to underflow."""
    return S.detach().to("cpu", torch.float64).square()
