"""What earlier tasks use of a layer's inputs: statistics of each adapted map, and the orthonormal basis grown of them.

The basis F (in, p) is that of gradient projection memory (Saha et al. 2021, arXiv 2103.09762), as EBLoRA keeps it
(arXiv 2602.00722): an update dW with dW F = 0 leaves what lies in F as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from retain import ranks
from retain.fisher.contract import add_right
from retain.fisher.gather import Sites, Sums, unmeasured
from retain.linalg import orthonormalised, project_out, rank_for_energy
from retain.sharding import in_step
from retain.task import Draws, Task, evaluating, on_device, precise

Source = Literal["mean gradient", "second moment", "features"]
Exhausted = Literal["lower energy", "drop least", "stop"]


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns ``F`` (in, p) and the energy (p,), descending, that each holds of what was learned.

    Energies are shares: every task brings 1, of which the columns hold what they hold.
    """

    F: Tensor
    energy: Tensor

    @classmethod
    def empty(cls, like: Tensor, n: int) -> Basis:
        """No columns in n dimensions, on the device of ``like`` and in its precision, float32 at least."""
        return cls(precise(like).new_zeros(n, 0), precise(like).new_zeros(0))


@dataclass(frozen=True)
class Growth:
    """A basis that has grown.

    Attributes:
        basis: what it is now.
        explained: share of ||H||^2 in the span of the old basis.
        held: share in the span of the new one.
        wanted: new directions that the energy asked for would have taken.
        lost: share of all energy kept so far that went with directions that were dropped.
    """

    basis: Basis
    explained: float
    held: float
    wanted: int
    lost: float


def grow(basis: Basis, H: Tensor, energy: float, limit: int, exhausted: Exhausted = "stop") -> Growth:
    """Add to ``basis`` the fewest directions with which it holds ``energy`` of ||H||^2, ``H`` (n, m).

    R = H - F F'H, R = U S V'; q is the least with explained + sum_{i<=q} S_i^2 / ||H||^2 >= energy, and F becomes an
    orthonormal basis of [F, U_1..q], turned to the axes of the energies.

    Args:
        basis: of the tasks before.
        H: what is to be held, such as the mean gradient (in, out).
        energy: epsilon, in [0, 1].
        limit: the most columns there may be.
        exhausted: what to do where they would be more. "lower energy": the strongest of the new directions that find
            room; what was held stays held. "drop least": the directions of least energy go, old or new. "stop": raise.

    Raises:
        ValueError: ``H`` is zero or not finite, or there is no room and ``exhausted`` is "stop".
    """
    H = precise(H).to(basis.F)
    total = _checked(float(H.double().square().sum()), H)
    U, S = _left(project_out(H, basis.F))

    def shares(X: Tensor) -> Tensor:
        here = (X.T @ H).double() / total**0.5
        return here @ here.T

    return _grown(basis, U, S.double().square() / total, shares, energy, limit, exhausted)


def grow_by_moment(basis: Basis, C: Tensor, energy: float, limit: int, exhausted: Exhausted = "stop") -> Growth:
    """What ``grow`` makes of any H with H H' = ``C`` (n, n), a second moment, by one eigendecomposition."""
    C = precise(C)
    total, F = _checked(float(C.double().trace()), C), basis.F.double()
    C = C.double() / total
    # In float64: in float32 it may not converge where most inputs are always zero.
    values, vectors = torch.linalg.eigh(project_out(project_out(C, F).T, F))
    U, left = vectors.flip(1).to(basis.F), values.flip(0).clamp(min=0)
    return _grown(basis, U, left, lambda X: X.double().T @ C @ X.double(), energy, limit, exhausted)


def _checked(total: float, H: Tensor) -> float:
    if not 0 < total < float("inf"):
        raise ValueError(f"nothing to hold: the squared norm of H {tuple(H.shape)} is {total}")
    return total


def _grown(
    basis: Basis,
    U: Tensor,
    left: Tensor,
    shares: Callable[[Tensor], Tensor],
    energy: float,
    limit: int,
    exhausted: Exhausted,
) -> Growth:
    """``basis`` with the first of the directions ``U`` (n, k).

    Args:
        basis: of the tasks before.
        U: singular vectors of what it does not hold.
        left: the share (k,) of all energy in each of them, descending.
        shares: X'H H'X / ||H||^2 (p, p) of columns X (n, p).
        energy, limit, exhausted: see ``grow``.
    """
    F, rest = basis.F, float(left.sum())
    explained = max(0.0, 1 - rest) if F.shape[1] else 0.0
    wanted = rank_for_energy(left.sqrt(), min(1.0, max(0.0, (energy - explained) / rest))) if rest > 0 else 0
    wanted = min(wanted, len(F) - F.shape[1])
    room = limit - F.shape[1]
    if wanted > room and exhausted == "stop":
        raise ValueError(
            f"no space left: {F.shape[1]} of at most {limit} directions are taken, and holding {energy:.4g} of the "
            f"energy takes {wanted} more (now {explained:.4g})"
        )
    added = min(wanted, max(room, 0)) if exhausted == "lower energy" else wanted
    both = orthonormalised(torch.cat([F, U[:, :added]], 1))
    energies = shares(both)
    energies.diagonal()[: F.shape[1]] += basis.energy.double()
    values, axes = torch.linalg.eigh(energies)
    values, axes = values.flip(0), axes.flip(1)
    kept = min(limit, len(values)) if exhausted == "drop least" else len(values)
    lost = float(values[kept:].sum() / values.sum()) if len(values) and values.sum() > 0 else 0.0
    F = orthonormalised(both @ axes[:, :kept].to(both)).contiguous()
    held = float(shares(F).trace())
    return Growth(Basis(F, values[:kept].clamp(min=0).to(F)), explained, held, wanted, lost)


def statistics(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    task: Task,
    source: Source,
    *,
    samples: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A mean over examples for each linear module by name, in float32 or better, of the loss with the data's labels.

    - "mean gradient": E[G] (out, in), G the gradient of one example's loss for the weight (out, in);
    - "second moment": E[G'G] (in, in);
    - "features": E[sum_t x_t x_t'] (in, in) over the places that have a part in the loss (padding has none).

    In eval mode at the model as it is; one forward and one backward an example, without parameter gradients. All
    modules' matrices are held at once: the mean gradient is as large as the adapted weights in float32. Under
    torch.distributed every process calls it with the same rows and does its share.

    Args:
        model: put into eval mode for the pass, and back.
        modules: linear maps by name, as for ``retain.fisher.measure``.
        task: its ``train`` rows are read.
        source: see above.
        samples: how many rows, drawn by ``seed`` without replacement; None for all.
        batch_size: on which nothing depends but speed and memory.
        seed: of the choice of rows.
    """
    device = next(model.parameters()).device
    sites: Sites[Sums] = Sites(modules, lambda _, *shape: SOURCES[source](*shape), unmeasured)
    rows = task.order(seed)[:samples].sort().values
    with evaluating(model), torch.enable_grad(), sites.over(model):
        mine, spare = task.measured(rows[ranks.share()], batch_size), task.measured(rows[:1], 1)
        for (numbers, batch), counts in in_step(model, mine, spare):
            sites.start(len(numbers))
            outputs, targets = task.forward(model, on_device(batch, device))
            scores = task.loss.scores("data", outputs, targets, Draws(numbers, seed))
            sites.backward(outputs, [counts * score.to(outputs.dtype) for score in scores])
    return {name: sums.sums()[0] / len(rows) for name, sums in sites.collected(device).items()}


class _Matrix:
    """A running sum of matrices."""

    def __init__(self, rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> None:
        self.total = torch.zeros(rows, columns, device=device, dtype=dtype)

    def sums(self) -> list[Tensor]:
        return [self.total]


class MeanGradient(_Matrix):
    """sum_n G_n (out, in)."""

    def __init__(self, out: int, in_: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(out, in_, device, dtype)

    def add(self, x: Tensor, d: Tensor) -> None:
        self.total.addmm_(precise(d).flatten(0, 1).T, precise(x).flatten(0, 1))


class SecondMoment(_Matrix):
    """sum_n G_n'G_n (in, in)."""

    def __init__(self, out: int, in_: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(in_, in_, device, dtype)

    def add(self, x: Tensor, d: Tensor) -> None:
        add_right(self.total, x, d)


class Features(_Matrix):
    """sum_n sum_t x_nt x_nt' (in, in), of places with a gradient."""

    def __init__(self, out: int, in_: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(in_, in_, device, dtype)

    def add(self, x: Tensor, d: Tensor) -> None:
        used = precise(x)[(d != 0).any(-1)]
        self.total.addmm_(used.T, used)


SOURCES: dict[str, type[MeanGradient] | type[SecondMoment] | type[Features]] = {
    "mean gradient": MeanGradient,
    "second moment": SecondMoment,
    "features": Features,
}


def _left(R: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (n, k) and values (k,), descending, of ``R`` (n, m)."""
    if R.shape[1] <= R.shape[0]:
        U, S, _ = torch.linalg.svd(R, full_matrices=False)
        return U, S
    values, vectors = torch.linalg.eigh(R.double() @ R.double().T)
    return vectors.flip(1).to(R), values.clamp(min=0).sqrt().flip(0).to(R)
