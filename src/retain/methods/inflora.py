"""InfLoRA: a task trains B alone, on input directions that earlier tasks do not use (arXiv 2404.00228, CVPR 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from retain.linalg import complement, leading_svd, orthonormalised, project_out
from retain.lora import Site
from retain.method import Method
from retain.nearest import did_you_mean
from retain.subspace import Basis, Growth, grow, grow_by_moment, statistics
from retain.task import Task

Quirk = Literal["squared energy", "one less"]
Full = Literal["lower energy", "stop"]

# Of the energy of all inputs: what a direction holds below it is rounding.
NOISE = 1e-6


class InfLoRA(Method):
    """dW = c B A per layer with A (r, in) fixed and A F = 0: what inputs have in F (in, p) is mapped as it was.

    C = E[sum_t x_t x_t'] (in, in), a mean over examples, is the second moment of a layer's inputs x_t.

    - ``begin_task``: C of the new task at the model as it is; the rows of A are the r leading eigenvectors of
      (I - FF') C (I - FF'), as long as a fresh adapter's, and B = 0. What the adapter held before is folded.
    - Training moves B. Heads and whatever else trains beside the adapter are not protected.
    - ``end_task``: C is measured again, F grows until it holds ``energy`` of trace C, and the adapter joins the past.

    Of F and its complement the smaller is kept (DualGPM).

    Args:
        model: a model from ``peft.get_peft_model``.
        energy: epsilon, the share of trace C that F is to hold. The authors use 0.95 and 0.98, of the squares of C's
            eigenvalues, which takes fewer directions. 0 keeps A clear of nothing, and warns.
        energy_end: what epsilon rises to, by the same step after each of ``tasks`` tasks; None: it does not. The
            authors use 1.
        tasks: T, over how many tasks epsilon rises; those that follow have ``energy_end``.
        exhausted: what to do where F would leave less than r directions for the next task: "lower energy" adds the
            strongest that find room and warns, with numbers; "stop" raises.
        rank: of the past, None for one adapter a task; the relative error of each cut is in ``boundary["fold_error"]``.
        samples: rows that C is a mean over, at either end of a task; None for all.
        reference: what to do as the reference code does, to reproduce it: "squared energy" (squares of eigenvalues, in
            the choice of F and of A), "one less" (of the directions with which the first task's F would hold epsilon).
        seed: of the choice of rows.
    """

    STATE = ("bases", "trained")
    guards = True
    knob = ("energy", (0.6, 0.85, 0.95, 0.985, 0.995))

    def __init__(
        self,
        model: nn.Module,
        *,
        energy: float = 0.95,
        energy_end: float | None = None,
        tasks: int | None = None,
        exhausted: Full = "lower energy",
        rank: int | None = None,
        samples: int | None = 1000,
        reference: Sequence[Quirk] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        counts = {"tasks": tasks, "rank": rank, "samples": samples}
        self.check(energy=energy, energy_end=energy_end, exhausted=exhausted, reference=reference, **counts)
        self.energy, self.energy_end, self.tasks, self.exhausted = energy, energy_end, tasks, exhausted
        self.rank, self.samples, self.reference = rank, samples, frozenset(reference)
        if not energy and not energy_end:
            warnings.warn("energy is 0: A is kept clear of nothing that was learned", stacklevel=2)
        self.bases = {}

    @classmethod
    def check(cls, **keywords: Any) -> None:
        for key, values, known in (
            ("exhausted", [keywords["exhausted"]], get_args(Full)),
            ("reference", keywords["reference"], get_args(Quirk)),
        ):
            if unknown := [value for value in values if value not in known]:
                hint = did_you_mean(unknown[0], known)
                raise ValueError(f"unknown {key} {unknown[0]!r}; known: {', '.join(known)}{hint}")
        for key in ("energy", "energy_end"):
            if (value := keywords[key]) is not None and not 0 <= value <= 1:
                raise ValueError(f"{key} must lie in [0, 1], got {value}")
        for key in ("tasks", "rank", "samples"):
            if (value := keywords[key]) is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        if (keywords["energy_end"] is None) != (keywords["tasks"] is None):
            raise ValueError(
                f"energy_end={keywords['energy_end']} is reached over tasks={keywords['tasks']}: give both or neither"
            )

    @property
    def growth(self) -> int:
        widths = [(site.A.shape[1], max(4, site.A.itemsize)) for site in self.sites.values()]
        return sum(n // 2 * n * size for n, size in widths) + (self.adapter_bytes if self.rank is None else 0)

    @property
    def bases(self) -> dict[str, dict[str, Tensor]]:
        """Of every site "taken", F (in, p), or "free", its complement (in, in - p) where that is smaller."""
        return self._bases

    @bases.setter
    def bases(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._bases = {}
        for name, site in self.sites.items():
            kept, n = dict(state.get(name) or {"taken": Basis.empty(site.A, site.A.shape[1]).F}), site.A.shape[1]
            for basis in kept.values():
                if len(basis) != n:
                    raise ValueError(f"{name}: a basis {tuple(basis.shape)} does not fit {n} inputs")
            self._bases[name] = kept

    def begin_task(self, task: Task) -> None:
        self.warn_unprotected()
        if any(site.B.any() for site in self.sites.values()):
            self.fold(None)
        moments, generator = self._measured(task), self.generator()
        found = {}
        for name, site in self.sites.items():
            C = moments.get(name, site.A.new_zeros(site.A.shape[1], site.A.shape[1]))
            A, found[name] = self._start(name, C, generator)
            site.set_factors(torch.zeros_like(site.B), A)
            site.layer.lora_A[site.adapter].requires_grad_(False)
        if short := {name: k for name, k in found.items() if k < len(self.sites[name].A)}:
            least = min(short, key=lambda name: short[name])
            warnings.warn(
                f"little is left to learn {task.name!r} with at {len(short)} of {len(found)} sites; least at {least}: "
                f"outside what earlier tasks take, its inputs have {short[least]} of the {len(self.sites[least].A)} "
                "directions that the adapter could use. The other columns of B stay zero",
                stacklevel=2,
            )

    def end_task(self, task: Task) -> None:
        growths = self._grown(self._measured(task), task)
        self._bases |= {name: _smaller(growth.basis.F) for name, growth in growths.items()}
        taken = {name: self._taken(name).shape[1] for name in self.sites}
        self.boundary = {
            "directions": sum(taken.values()),
            "fullest": max(taken[name] / _limit(site) if _limit(site) else 1.0 for name, site in self.sites.items()),
            "held": min(growth.held for growth in growths.values()),
            "explained": sum(growth.explained for growth in growths.values()) / len(growths),
            "bytes": sum(basis.nbytes for kept in self._bases.values() for basis in kept.values()),
        }
        self.fold(self.rank)
        super().end_task(task)

    @property
    def _epsilon(self) -> float:
        """The share that F is to hold of the task at hand."""
        if self.energy_end is None or self.tasks is None:
            return self.energy
        return self.energy + (self.energy_end - self.energy) * min(1.0, max(0, self.number) / self.tasks)

    def _measured(self, task: Task) -> dict[str, Tensor]:
        """C of every site that has a part in the loss, in float32 at least."""
        layers = {name: site.layer for name, site in self.sites.items()}
        return statistics(self.model, layers, task, "features", samples=self.samples, seed=self.boundary_seed)

    def _taken(self, name: str) -> Tensor:
        """F (in, p)."""
        kept = self._bases[name]
        return kept["taken"] if "taken" in kept else complement(kept["free"])

    @torch.no_grad()
    def _start(self, name: str, C: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """A (r, in), and how many of its rows are not zero because inputs have something there."""
        F, A = self._taken(name), torch.zeros_like(self.sites[name].A)
        if F.shape[1] + len(A) > len(F):
            raise ValueError(
                f"{name}: no space left: earlier tasks take {F.shape[1]} of {len(F)} directions, the adapter needs "
                f"{len(A)}"
            )
        C = C.to(F)
        outside = project_out(C, F)
        if "squared energy" not in self.reference:
            outside = project_out(outside.T, F)
        U, S, _ = leading_svd(outside, len(A), generator)
        U = orthonormalised(project_out(U[:, NOISE * C.trace() < S], F))
        A[: U.shape[1]] = U.T / 3**0.5  # the length of rows that are uniform in +-1/sqrt(in)
        return A, U.shape[1]

    def _grown(self, moments: Mapping[str, Tensor], task: Task) -> dict[str, Growth]:
        """F of every site with something to hold, grown; what could not be held is warned of."""
        growths = {}
        for name, C in moments.items():
            if C.any():
                F, larger = self._taken(name), grow if "squared energy" in self.reference else grow_by_moment
                basis, limit = Basis(F, F.new_zeros(F.shape[1])), _limit(self.sites[name])
                try:
                    growths[name] = larger(basis, C, self._epsilon, limit, self.exhausted)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        if not growths:
            raise RuntimeError(
                f"no input of an adapted layer has a part in the loss of {task.name!r}, so nothing would protect it. "
                "Does the model's output depend on the adapted layers, and is the loss not already exactly zero?"
            )
        if silent := self.sites.keys() - growths.keys():
            warnings.warn(f"nothing protects {task.name!r} at {', '.join(sorted(silent))}: no gradient", stacklevel=3)
        self._warn_if_full(growths, task)
        if "one less" in self.reference and not self.learned:
            growths = {name: _one_less(growth) for name, growth in growths.items()}
        return growths

    def _warn_if_full(self, growths: Mapping[str, Growth], task: Task) -> None:
        if full := {n: g for n, g in growths.items() if g.held < self._epsilon - 1e-4}:
            name = min(full, key=lambda n: full[n].held)
            site, worst = self.sites[name], full[name]
            warnings.warn(
                f"no space left at {len(full)} of {len(self.sites)} sites after {task.name!r}; worst is {name}: "
                f"{worst.basis.F.shape[1]} of {site.A.shape[1]} directions are taken and {len(site.A)} kept free for "
                f"the adapter, so {worst.held:.1%} of the inputs' energy is held instead of {self._epsilon:.1%}. Lower "
                "method.energy or lora.r",
                stacklevel=4,
            )


def _limit(site: Site) -> int:
    """The most directions that may be taken: r must be left for the next task."""
    return site.A.shape[1] - len(site.A)


def _smaller(F: Tensor) -> dict[str, Tensor]:
    """``F`` (in, p) or its complement, whichever has fewer columns."""
    return {"taken": F} if 2 * F.shape[1] <= len(F) else {"free": complement(F)}


def _one_less(growth: Growth) -> Growth:
    """The first task's growth without the last direction that it took, unless it is the only one."""
    F, energy = growth.basis.F, growth.basis.energy
    kept = max(1, F.shape[1] - 1)
    return replace(growth, basis=Basis(F[:, :kept].contiguous(), energy[:kept]), held=float(energy[:kept].sum()))
