"""The Kronecker form: which outputs' and which inputs' weights move together (after K-FAC, arXiv 1503.05671).

K-FAC multiplies moments of tokens, E[d d'] and E[x x'], and so leaves out that an example's score is a sum over its
tokens. Here both sides are moments of whole per-example gradients, as in Shampoo (arXiv 1802.09568).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from retain.fisher import contract
from retain.fisher.forms.form import Collector, Form, alike, check_count, check_factor, check_state
from retain.fisher.penalty import Anchor, separable

Add = Callable[[Tensor, Tensor, Tensor], None]


class Kronecker(Form):
    """F = S (x) R / tr S with S = E[G G'] (out, out) and R = E[G' G] (in, in); its trace is exact.

    The two partial traces of F are those of the exact Fisher matrix. What is left out is how a score's pattern over
    the outputs depends on its pattern over the inputs. Each side is dense (``rank=None``), or the best ``rank`` of its
    directions and the exact diagonal of the rest, collected in the same pass.

    Several tasks: S and R are summed, so that partial traces and trace remain those of the sum of the Fishers; the
    cross terms of one task's S with another's R are added to what the tasks themselves have.
    """

    def __init__(self, left: Side, right: Side) -> None:
        self.left, self.right = left, right

    @classmethod
    def collector(
        cls, out: int, in_: int, device: torch.device, dtype: torch.dtype, *, rank: int | None = 16
    ) -> Collector:
        check_rank(rank)
        return _Sides(_collector(out, rank, "left", device, dtype), _collector(in_, rank, "right", device, dtype))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], *, rank: int | None = 16) -> Kronecker:
        check_rank(rank)
        check_state(cls, state, *(a | b for a in _keys("left") for b in _keys("right")))
        return cls(*(Side.from_state_dict(state, name, rank) for name in ("left", "right")))

    def quadratic(self, B: Tensor, A: Tensor, anchor: Anchor = None) -> Tensor:
        trace = self.left.trace()
        # Divided first: the product of both sides may be below what float32 can hold.
        per = 1 / trace.clamp(min=torch.finfo(trace.dtype).tiny)
        return separable(B, A, lambda L: (self.left @ L * per)[:, None], lambda R: (self.right @ R)[:, None], anchor)

    def accumulate(self, other: Form, decay: float = 1.0) -> None:
        other = alike(self, other, decay)
        for mine, its in ((self.left, other.left), (self.right, other.right)):
            if (mine.rest is None) != (its.rest is None):
                raise ValueError("a dense and a low-rank side cannot be summed: measure both with the same rank")
        self.left.accumulate(other.left, decay)
        self.right.accumulate(other.right, decay)

    def rescale(self, factor: float) -> None:
        check_factor("factor", factor)
        self.left.rescale(factor)
        self.right.rescale(factor)

    def state_dict(self) -> dict[str, Tensor]:
        return self.left.state_dict("left") | self.right.state_dict("right")

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.width, self.right.width

    @property
    def trace(self) -> float:
        return float(self.left.trace())


class Side:
    """A positive semidefinite matrix (n, n): dense, or U U' + diag(rest) with U (n, k)."""

    def __init__(self, matrix: Tensor, rest: Tensor | None = None) -> None:
        self.matrix, self.rest = matrix, rest

    @classmethod
    def nystrom(cls, product: Tensor, probe: Tensor, diagonal: Tensor, rank: int) -> Side:
        """The ``rank`` leading directions of S and the rest of its diagonal, from ``product`` = S ``probe``.

        Nystrom's approximation S P (P'SP)^-1 P'S never exceeds S (Tropp et al. 2017, arXiv 1706.05736), so that what
        it leaves of the diagonal is not negative, nor is what the cut to ``rank`` leaves.

        Args:
            product: (n, l) with l >= rank.
            probe: (n, l).
            diagonal: (n,), exact.
            rank: k.
        """
        Y, P = (x.to("cpu", torch.float64) for x in (product, probe))
        values, vectors = torch.linalg.eigh(_symmetric(P.T @ Y))
        kept = values > values[-1:] * len(values) * torch.finfo(product.dtype).eps
        U, _ = _cut(Y @ (vectors[:, kept] / values[kept].sqrt()), rank)
        exact = diagonal.to(U)
        over = (exact / U.square().sum(1).clamp(min=torch.finfo(U.dtype).tiny)).clamp(max=1)
        U = torch.nn.functional.pad(U * over.sqrt()[:, None], (0, rank - U.shape[1])).to(product)
        return cls(U, (diagonal - U.square().sum(1)).clamp_(min=0))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], name: str, rank: int | None) -> Side:
        matrix, rest = state[name], state.get(f"{name}.rest")
        width = is_low(len(matrix), rank) or len(matrix)
        if matrix.shape != (len(matrix), width) or (rest is None) != (width == len(matrix)):
            raise ValueError(
                f"not the state of a Kronecker with rank={rank}: {name} is {tuple(matrix.shape)}, not "
                f"{(len(matrix), width)}"
            )
        return cls(matrix.clone(), None if rest is None else rest.clone())

    def __matmul__(self, X: Tensor) -> Tensor:
        """The product with ``X`` (n, q), in the precision of X."""
        matrix = self.matrix.to(X)
        if self.rest is None:
            return matrix @ X
        return torch.addmm(self.rest.to(X)[:, None] * X, matrix, matrix.T @ X)

    def accumulate(self, other: Side, decay: float) -> None:
        """S <- decay S + S_other; of a low-rank side the diagonal stays exact, and so the trace."""
        self.rescale(decay)
        if self.rest is None or other.rest is None:  # both or neither
            self.matrix += other.matrix
            return
        stack = torch.cat([self.matrix, other.matrix], 1).to("cpu", torch.float64)
        U, dropped = _cut(stack, self.matrix.shape[1])
        self.matrix = U.to(self.matrix)
        self.rest += other.rest + dropped.to(self.rest)

    def rescale(self, factor: float) -> None:
        if self.rest is None:
            self.matrix *= factor
        else:
            self.matrix *= factor**0.5
            self.rest *= factor

    def state_dict(self, name: str) -> dict[str, Tensor]:
        return {name: self.matrix} | ({} if self.rest is None else {f"{name}.rest": self.rest})

    @property
    def width(self) -> int:
        return len(self.matrix)

    def trace(self) -> Tensor:
        """Scalar tensor: the sum of the diagonal."""
        return self.matrix.diagonal().sum() if self.rest is None else self.matrix.square().sum() + self.rest.sum()


class _Sides(Collector):
    def __init__(self, left: _Dense | _LowRank, right: _Dense | _LowRank) -> None:
        self.left, self.right = left, right

    def add(self, x: Tensor, d: Tensor) -> None:
        self.left.add(x, d)
        self.right.add(x, d)

    def sums(self) -> list[Tensor]:
        return [*self.left.sums(), *self.right.sums()]

    def done(self, count: float) -> Kronecker:
        return Kronecker(self.left.done(count), self.right.done(count))


class _Dense:
    def __init__(self, total: Tensor, add: Add) -> None:
        self.total, self._add = total, add

    def add(self, x: Tensor, d: Tensor) -> None:
        self._add(self.total, x, d)

    def sums(self) -> list[Tensor]:
        return [self.total]

    def done(self, count: float) -> Side:
        return Side(self.total / count)


class _LowRank:
    def __init__(self, n: int, rank: int, name: str, device: torch.device, dtype: torch.dtype) -> None:
        # One and the same probe on every rank and device.
        generator = torch.Generator().manual_seed(0)
        self.probe = torch.randn(n, min(n, 2 * rank), generator=generator, dtype=torch.float64).to(device, dtype)
        self.product, self.diagonal = torch.zeros_like(self.probe), self.probe.new_zeros(n)
        self.rank, self.name = rank, name

    def add(self, x: Tensor, d: Tensor) -> None:
        left = self.name == "left"
        (contract.add_left_product if left else contract.add_right_product)(self.product, x, d, self.probe)
        self.diagonal += (contract.row_energies if left else contract.column_energies)(x, d)

    def sums(self) -> list[Tensor]:
        return [self.product, self.diagonal]

    def done(self, count: float) -> Side:
        return Side.nystrom(self.product / count, self.probe, self.diagonal / count, self.rank)


def _collector(n: int, rank: int | None, name: str, device: torch.device, dtype: torch.dtype) -> _Dense | _LowRank:
    if low := is_low(n, rank):
        return _LowRank(n, low, name, device, dtype)
    add = contract.add_left if name == "left" else contract.add_right
    return _Dense(torch.zeros(n, n, device=device, dtype=dtype), add)


def is_low(n: int, rank: int | None) -> int | None:
    """``rank`` where directions and a diagonal are smaller than the dense side (n, n), else None."""
    return rank if rank is not None and rank + 1 < n else None


def check_rank(rank: int | None) -> None:
    if rank is not None:
        check_count("rank", rank)


def _keys(name: str) -> tuple[set[str], set[str]]:
    return {name}, {name, f"{name}.rest"}


def _symmetric(X: Tensor) -> Tensor:
    return (X + X.T) / 2


def _cut(X: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (n, k <= rank) whose U U' is the best of X X' for ``X`` (n, l), and the diagonal (n,) of the rest."""
    vectors, values, _ = torch.linalg.svd(X, full_matrices=False)
    scaled = vectors * values
    return scaled[:, :rank].contiguous(), scaled[:, rank:].square().sum(1)
