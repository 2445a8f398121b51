"""One pair of orthonormal bases for the weight changes of many tasks: dW_t = U C_t V', a small core C_t for each task.

The algebra of Share (arXiv 2602.06043), at one adapted map (out, in) and without data. No (out, in) matrix is formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from retain.linalg import orthonormalised, project_out, rank_for_energy, signs, squared_norm, thin_svd

Weights = Literal["relative", "absolute"]
SWEEPS = 2  # of the alternation between the sides; a third has changed nothing in the fourth digit
ROUNDING = 1e-6  # of the largest singular value


@dataclass(frozen=True)
class Core:
    """C_t = left right, (k_o, m) and (m, k_i); the Frobenius norm of dW_t as it came, and the sum of those of all cuts.

    What was cut once is gone, so that how it lies to a later cut is not known: ``residual`` takes them for orthogonal,
    ``bound`` for parallel. After one cut both are ||dW_t - U C_t V'|| / ||dW_t||.
    """

    left: Tensor
    right: Tensor
    norm: float
    cut: float = 0.0

    @property
    def residual(self) -> float:
        """||dW_t - U C_t V'|| / ||dW_t||, as (1 - ||C_t||^2 / ||dW_t||^2)^1/2; 0 for a change that is zero."""
        return lost(self.kept, self.norm**2)

    @property
    def bound(self) -> float:
        """What ||dW_t - U C_t V'|| / ||dW_t|| cannot exceed, by the triangle inequality."""
        return self.cut / self.norm if self.norm else 0.0

    @cached_property
    def kept(self) -> float:
        """||C_t||^2."""
        return float(squared_norm(self.left.double(), self.right.double()))


@dataclass(frozen=True)
class Bases:
    """U (out, k_o) and V (in, k_i) of orthonormal columns, and the core of every task by name."""

    U: Tensor
    V: Tensor
    cores: Mapping[str, Core] = field(default_factory=dict)

    @classmethod
    def empty(cls, B: Tensor, A: Tensor) -> Bases:
        """No columns, for changes with factors like ``B`` (out, r) and ``A`` (r, in)."""
        return cls(B.new_zeros(len(B), 0), A.new_zeros(A.shape[1], 0))

    def state(self) -> dict[str, Any]:
        """U, V and the cores as plain tensors; ``sizes`` of a core: its norm, its cuts, its place in the order."""
        cores = {
            task: {
                "left": core.left,
                "right": core.right,
                "sizes": torch.tensor([core.norm, core.cut, number], dtype=torch.float64),
            }
            for number, (task, core) in enumerate(self.cores.items())
        }
        return {"U": self.U, "V": self.V, "cores": cores}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Bases:
        """What ``state`` gave, whatever the order of its entries."""
        cores = sorted(state.get("cores", {}).items(), key=lambda item: float(item[1]["sizes"][2]))
        found = {task: Core(c["left"], c["right"], *c["sizes"][:2].tolist()) for task, c in cores}
        return cls(state["U"], state["V"], found)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """B (out, m) and A (m, in) of a task's change."""
        core = self.cores[name]
        return self.U @ core.left, core.right @ self.V.T


@dataclass(frozen=True)
class Change:
    """A weight change B A, factors (out, m) and (m, in); its norm before anything was cut off it, and the cuts."""

    B: Tensor
    A: Tensor
    norm: float | None = None
    cut: float = 0.0


def lost(kept: float, whole: float) -> float:
    """(1 - kept/whole)^1/2, 0 where the two differ by rounding only."""
    share = 1 - kept / whole if whole else 0.0
    return share**0.5 if share > ROUNDING else 0.0


def residuals(bases: Iterable[Bases]) -> dict[str, float]:
    """||dW_t - what is kept|| / ||dW_t|| over all layers, of every task (see ``Core``)."""
    kept: dict[str, float] = {}
    whole: dict[str, float] = {}
    for one in bases:
        for task, core in one.cores.items():
            kept[task] = kept.get(task, 0.0) + core.kept
            whole[task] = whole.get(task, 0.0) + core.norm**2
    return {task: lost(kept[task], whole[task]) for task in kept}


def add(bases: Bases, changes: Mapping[str, Change], threshold: float = 0.0) -> Bases:
    """Widen ``bases`` by what they lack of ``changes``, by name, each of which gets a core; a name known is replaced.

    A singular direction u of a change joins where ||u - U U'u|| > ``threshold``; those that do are weighted by
    their singular values and orthonormalised. What is below is cut off the change, and is part of its residual.
    Earlier cores are exact: new columns of U meet rows of zeros.
    """
    U, V, split = bases.U, bases.V, {}
    for name, change in changes.items():
        left, S, right = thin_svd(change.B, change.A)
        sure = ROUNDING * S[:1] < S
        left, S, right = left[:, sure], S[sure], right[:, sure]
        U = torch.cat([U, _fresh(left, S, U, threshold)], 1)
        V = torch.cat([V, _fresh(right, S, V, threshold)], 1)
        split[name] = left, S, right
    cores = {name: _padded(core, U.shape[1], V.shape[1]) for name, core in bases.cores.items()}
    for name, (left, S, right) in split.items():
        size, change = float(S.double().norm()), changes[name]
        whole = Core(U.T @ left * S.sqrt(), S.sqrt()[:, None] * (right.T @ V), size)
        norm = size if change.norm is None else change.norm
        cores[name] = replace(whole, norm=norm, cut=change.cut + size * whole.residual)
    return Bases(U, V, cores)


def compressed(bases: Bases, components: int, energy: float = 1.0, weights: Weights = "relative") -> Bases:
    """The best bases of at most ``components`` columns a side, inside the span of those given, with all cores again.

    Best: they keep the most of sum_t w_t ||U'C_t V'||^2, w_t = 1/||C_t||^2 for "relative" (every task's relative error
    counts alike), 1 for "absolute". Each side is that of the SVD of all dW_t side by side, given the other side; they
    take turns, from the one where nothing is cut on the other (higher-order orthogonal iteration). With ``energy`` a
    side has the fewest columns that keep that share, at most ``components``. Cores become Q_o' C_t Q_i, the least
    squares solution (see ``reprojected``).
    """
    cores = [core for core in bases.cores.values() if core.kept]
    if not cores or (energy == 1 and max(bases.U.shape[1], bases.V.shape[1]) <= components):
        return bases
    scales = [core.kept**-0.5 if weights == "relative" else 1.0 for core in cores]
    lefts, rights = [core.left * w for core, w in zip(cores, scales, strict=True)], [core.right for core in cores]
    Q_i = torch.eye(bases.V.shape[1]).to(bases.V)
    for _ in range(SWEEPS):
        Q_o = _leading([P @ (Q @ Q_i) for P, Q in zip(lefts, rights, strict=True)], bases.U, components, energy)
        Q_i = _leading([(Q.T @ (P.T @ Q_o)) for P, Q in zip(lefts, rights, strict=True)], bases.V, components, energy)
    found = {name: _cut(core, Q_o, Q_i) for name, core in bases.cores.items()}
    return Bases(bases.U @ Q_o, bases.V @ Q_i, found)


def within(bases: Bases, components: int, energy: float, weights: Weights, max_residual: float | None) -> Bases:
    """``compressed`` to ``components``, or to the fewest more whose cuts leave every bound within ``max_residual``.

    Raises:
        ValueError: earlier cuts have taken more.
    """
    if max_residual is not None and (worst := _worst(bases)) > max_residual:
        raise ValueError(f"max_residual={max_residual} cannot be kept: up to {worst:.3g} has been cut already")
    smaller = compressed(bases, components, energy, weights)
    if max_residual is None or _worst(smaller) <= max_residual:
        return smaller
    low, high = components, max(bases.U.shape[1], bases.V.shape[1])
    while low + 1 < high:
        middle = (low + high) // 2
        fits = _worst(compressed(bases, middle, 1.0, weights)) <= max_residual
        low, high = (low, middle) if fits else (middle, high)
    return compressed(bases, high, 1.0, weights)


def union(one: Bases, other: Bases) -> Bases:
    """Bases that hold the tasks of both, such as those of two sites that have learned apart.

    Raises:
        ValueError: a task of the same name in both.
    """
    if both := one.cores.keys() & other.cores.keys():
        raise ValueError(f"both have a task {min(both)!r}: rename one")
    return add(one, {name: Change(*other.factors(name), core.norm, core.cut) for name, core in other.cores.items()})


def reprojected(C: Tensor, U: Tensor, V: Tensor, new_U: Tensor, new_V: Tensor) -> Tensor:
    """The core (k_o', k_i') with new bases that is nearest to U C V' in the Frobenius norm: new_U^+ U C V' new_V^+'.

    For any bases of full column rank; the solution is then unique. Orthonormal ones give (new_U'U) C (V'new_V).
    """
    left = torch.linalg.lstsq(new_U, U).solution
    right = torch.linalg.lstsq(new_V, V).solution
    return left @ C @ right.T


def _fresh(directions: Tensor, S: Tensor, F: Tensor, threshold: float) -> Tensor:
    """Orthonormal columns for what ``directions`` (n, m) of weights ``S`` (m,) have outside ``F`` (n, k)."""
    outside = project_out(directions, F)
    outside = (outside * S)[:, outside.norm(dim=0) > max(threshold, ROUNDING)]
    new, size, _ = torch.linalg.svd(outside, full_matrices=False)
    new = new[:, size > ROUNDING * S.max()] if len(size) else new
    new = new * signs(new)
    return orthonormalised(project_out(new, F)[:, : len(F) - F.shape[1]])


def _cut(core: Core, Q_o: Tensor, Q_i: Tensor) -> Core:
    left, right = Q_o.T @ core.left, core.right @ Q_i
    if len(right) > min(len(left), right.shape[1]):  # a product of more numbers than it has
        eye = torch.eye(min(len(left), right.shape[1])).to(left)
        left, right = (left @ right, eye) if len(left) > len(eye) else (eye, left @ right)
    shorter = replace(core, left=left, right=right)
    return replace(shorter, cut=core.cut + core.kept**0.5 * lost(shorter.kept, core.kept))


def _padded(core: Core, k_o: int, k_i: int) -> Core:
    left = torch.nn.functional.pad(core.left, (0, 0, 0, k_o - len(core.left)))
    return replace(core, left=left, right=torch.nn.functional.pad(core.right, (0, k_i - core.right.shape[1])))


def _leading(parts: Iterable[Tensor], basis: Tensor, components: int, energy: float) -> Tensor:
    """The leading left singular directions (k, q) of all ``parts`` (k, m) side by side."""
    beside = torch.cat([*parts], 1).double()
    values, vectors = torch.linalg.eigh(beside @ beside.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1) * signs(vectors.flip(1))
    return vectors[:, : min(components, rank_for_energy(values.sqrt(), energy))].to(basis)


def _worst(bases: Bases) -> float:
    return max(core.bound for core in bases.cores.values())
