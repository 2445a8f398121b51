"""One pair of orthonormal bases for the weight changes of many tasks: dW_t = U C_t V', a small core C_t for each task.

The algebra of Share (arXiv 2602.06043), at one adapted map (out, in) and without data. No (out, in) matrix is formed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from retain.linalg import orthonormalised, project_out, rank_for_energy, signs, squared_norm, thin_svd

Weights = Literal["relative", "absolute"]
SWEEPS = 2  # of the alternation between the sides
ROUNDING = 1e-6  # of the largest singular value
LOSSY = 0.1  # a residual above which a task is not what was learned any more, and is marked


@dataclass(frozen=True)
class Core:
    """C_t = left right, (k_o, m) and (m, k_i), of one task.

    Columns of the bases that are newer than the core meet zeros, which are not stored: k_o and k_i count the older.
    What was cut once is gone, so that how it lies to a later cut is not known: ``residual`` takes them for orthogonal,
    ``bound`` for parallel. After one cut both are ||dW_t - U C_t V'|| / ||dW_t||.

    Attributes:
        norm: ||dW_t|| as it came (Frobenius).
        kept: ||C_t||^2.
        cut: the sum of the norms of all cuts.
    """

    left: Tensor
    right: Tensor
    norm: float
    kept: float
    cut: float = 0.0

    @property
    def residual(self) -> float:
        """||dW_t - U C_t V'|| / ||dW_t||, as (1 - ||C_t||^2 / ||dW_t||^2)^1/2; 0 for a change that is zero."""
        return lost(self.kept, self.norm**2)

    @property
    def bound(self) -> float:
        """What ||dW_t - U C_t V'|| / ||dW_t|| cannot exceed, by the triangle inequality."""
        return self.cut / self.norm if self.norm else 0.0


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
        """U, V and the cores as plain tensors; ``sizes`` of a core: norm, kept, cut, its place."""
        cores = {
            task: {
                "left": core.left,
                "right": core.right,
                "sizes": torch.tensor([core.norm, core.kept, core.cut, number], dtype=torch.float64),
            }
            for number, (task, core) in enumerate(self.cores.items())
        }
        return {"U": self.U, "V": self.V, "cores": cores}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Bases:
        """What ``state`` gave, whatever the order of its entries."""
        cores = sorted(state.get("cores", {}).items(), key=lambda item: float(item[1]["sizes"][3]))
        found = {task: Core(c["left"], c["right"], *c["sizes"][:3].tolist()) for task, c in cores}
        return cls(state["U"], state["V"], found)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """B (out, m) and A (m, in) of a task's change."""
        core = self.cores[name]
        return self.U[:, : len(core.left)] @ core.left, core.right @ self.V[:, : core.right.shape[1]].T


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
    Earlier cores stay as they are, and exact.
    """
    U, V, split = bases.U, bases.V, {}
    for name, change in changes.items():
        left, S, right = thin_svd(change.B, change.A)
        sure = ROUNDING * S[:1] < S
        left, S, right = left[:, sure], S[sure], right[:, sure]
        U = torch.cat([U, _fresh(left, S, U, threshold)], 1)
        V = torch.cat([V, _fresh(right, S, V, threshold)], 1)
        split[name] = left, S, right
    cores = dict(bases.cores)
    for name, (left, S, right) in split.items():
        size, change = float(S.double().norm()), changes[name]
        core = U.T @ left * S.sqrt(), S.sqrt()[:, None] * (right.T @ V)
        norm, kept = size if change.norm is None else change.norm, float(squared_norm(*(x.double() for x in core)))
        cores[name] = Core(*core, norm, kept, change.cut + size * lost(kept, size**2))
    return Bases(U, V, cores)


def compressed(bases: Bases, components: int, energy: float = 1.0, weights: Weights = "relative") -> Bases:
    """The best bases of at most ``components`` columns a side, inside the span of those given, with all cores again.

    Best: they keep the most of sum_t w_t ||U'C_t V'||^2, w_t = 1/||C_t||^2 for "relative" (every task's relative error
    counts alike), 1 for "absolute". Each side is that of the SVD of all dW_t side by side, given the other side; they
    take turns, from the one where nothing is cut on the other (higher-order orthogonal iteration). With ``energy`` a
    side has the fewest columns that keep that share, at most ``components``. Cores become Q_o' C_t Q_i, the least
    squares solution (see ``reprojected``).
    """
    cores = bases.cores
    full = energy == 1 and max(bases.U.shape[1], bases.V.shape[1]) <= components
    if full or not any(core.kept for core in cores.values()):
        return bases
    alike: dict[tuple[int, int], dict[str, Core]] = {}
    for name, core in cores.items():
        alike.setdefault((len(core.left), core.right.shape[1]), {})[name] = core
    stacks = [(*(x.double() for x in stacked(g.values())), _weighs(g.values(), weights)) for g in alike.values()]
    k_o, k_i = bases.U.shape[1], bases.V.shape[1]
    Q_i = torch.eye(k_i, dtype=torch.float64, device=bases.V.device)
    for _ in range(SWEEPS):
        grams = [_gram(L, R @ Q_i[: R.shape[2]], w) for L, R, w in stacks]
        Q_o = _leading(grams, k_o, components, energy)
        grams = [_gram(R.mT, L.mT @ Q_o[: L.shape[1]], w) for L, R, w in stacks]
        Q_i = _leading(grams, k_i, components, energy)
    cut: dict[str, Core] = {}
    for group, (L, R, _) in zip(alike.values(), stacks, strict=True):
        L, R = Q_o[: L.shape[1]].T @ L, R @ Q_i[: R.shape[2]]
        kept = ((L.mT @ L) * (R @ R.mT)).sum((1, 2)).clamp(min=0).tolist()
        new = zip(group.items(), L.to(bases.U), R.to(bases.V), kept, strict=True)
        cut |= {name: _shorter(core, *found) for (name, core), *found in new}
    return Bases(bases.U @ Q_o.to(bases.U), bases.V @ Q_i.to(bases.V), {name: cut[name] for name in cores})


def stacked(cores: Collection[Core]) -> tuple[Tensor, Tensor]:
    """The factors of all ``cores``, (N, k_o, m) and (N, m, k_i), with zeros where one is smaller than the largest."""
    k_o, m, k_i = (max(sizes) for sizes in zip(*((*c.left.shape, c.right.shape[1]) for c in cores), strict=True))
    lefts = [pad(core.left, (0, m - core.left.shape[1], 0, k_o - len(core.left))) for core in cores]
    rights = [pad(core.right, (0, k_i - core.right.shape[1], 0, m - len(core.right))) for core in cores]
    return torch.stack(lefts), torch.stack(rights)


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
    low, high = components - 1, max(bases.U.shape[1], bases.V.shape[1])
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


def _shorter(core: Core, left: Tensor, right: Tensor, kept: float) -> Core:
    """``core`` after a cut, which leaves ``kept`` of its square, with factors that may be padded."""
    m = core.left.shape[1]
    left, right = left[:, :m].clone(), right[:m].clone()
    if m > (most := min(len(left), right.shape[1])):  # a product of more numbers than it has
        eye = torch.eye(most).to(left)
        left, right = (left @ right, eye) if len(left) > most else (eye, left @ right)
    return Core(left, right, core.norm, kept, core.cut + core.kept**0.5 * lost(kept, core.kept))


def _weighs(cores: Collection[Core], weights: Weights) -> Tensor:
    """w_t of ``compressed`` (N,), 0 for a change that is zero."""
    sizes = torch.tensor([core.kept for core in cores], dtype=torch.float64, device=next(iter(cores)).left.device)
    return torch.where(sizes > 0, 1 / sizes if weights == "relative" else 1.0, 0.0)


def _gram(factors: Tensor, inner: Tensor, weighs: Tensor) -> Tensor:
    """sum_t w_t F_t R_t R_t' F_t' (k, k), of ``factors`` F (N, k, m), ``inner`` R (N, m, q), ``weighs`` w (N,)."""
    whole = factors @ (weighs[:, None, None] * (inner @ inner.mT))
    return whole.transpose(0, 1).flatten(1) @ factors.transpose(0, 1).flatten(1).T


def _leading(grams: Sequence[Tensor], size: int, components: int, energy: float) -> Tensor:
    """The leading eigenvectors (size, q) of the sum of ``grams``, of which the smaller are zero outside."""
    total = grams[0].new_zeros(size, size)
    for gram in grams:
        total[: len(gram), : len(gram)] += gram
    values, vectors = torch.linalg.eigh(total)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    return (vectors * signs(vectors))[:, : min(components, rank_for_energy(values.sqrt(), energy))]


def _worst(bases: Bases) -> float:
    return max(core.bound for core in bases.cores.values())
