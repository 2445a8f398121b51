"""EBLoRA: updates of balanced energy, orthogonal to what earlier tasks use (arXiv 2602.00722, ICML 2026)."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from retain.balanced import balance, originals, points, without_adapter
from retain.linalg import leading_svd, orthonormalised, project_out
from retain.lora import Site
from retain.method import Method
from retain.nearest import did_you_mean
from retain.stiefel import Metric, Points
from retain.subspace import Basis, Exhausted, Growth, Source, grow, grow_by_moment, statistics
from retain.task import Task

Quirk = Literal["pretrained gradients", "rank scaling", "non-projector", "half bases"]
ALLOWED = {"subspace": get_args(Source), "exhausted": get_args(Exhausted)}

# The least alpha/r of the paper's settings.
SCALE = 2.0

# Of the norm of the gradient: singular values below are rounding, and their vectors could be any.
NOISE = 1e-5


class EBLoRA(Method):
    """One strength for all directions of an update, and none where earlier tasks live: dW = c s B A per site.

    c is LoRA's alpha/r, s a trained number, B'B = A A' = I and A F = 0: all r singular values of dW are |c s|, and to
    first order dW changes nothing that the directions F (in, p) of earlier tasks carry.

    - ``begin_task``: H = G' - F F'G', G the mean gradient of the new task's loss at the model as it is; of H's r
      leading singular triplets A <- U', B <- V; s <- -(s_min + depth (s_max - s_min)), depth from 0 in the first layer
      to 1 in the last. What the adapter held before is folded into the past.
    - every step, with X = A' or B, around any optimizer: gradients are projected to the tangent space; the change that
      the optimizer made is multiplied by sqrt(width/m), m the number of X's rows, projected again, and X + change is
      retracted to the manifold. Momenta are not transported.
    - ``end_task``: F grows until it holds ``energy`` of what ``subspace`` names, and the adapter joins the past. Heads
      and whatever else trains beside the adapter are not protected.

    Args:
        model: a model from ``peft.get_peft_model`` whose factors are float32 at least.
        subspace: what of a task is kept clear of: "mean gradient" (the paper), which is nearly noise once a task is
            learned; "second moment" of the gradients of single examples; "features", the inputs themselves.
        energy: epsilon, the share of it that F is to hold. 0 holds nothing, leaves balance alone, and warns.
        exhausted: what to do where F would leave less than r directions for the next task. "lower energy" adds the
            strongest that find room, so that early tasks stay protected; "drop least" lets go of the weakest, old or
            new; "stop" raises. The first two warn, with numbers.
        s_min: |s| at which the first layer starts (alpha in the reference code).
        s_max: |s| at which the last layer starts (alpha + beta).
        width: c_ref. A column turns by about learning rate x sqrt(width) radians an AdamW step, whatever the size of
            the layer: the default is that of the paper's model, so that its learning rates carry over.
        rank: of the past, None for one adapter a task; the relative error of each cut is in ``boundary["fold_error"]``.
        samples: rows that the gradients at either end of a task are means over; None for all.
        reference: what to do as the reference code does, to reproduce it: "pretrained gradients" (at the model without
            any adapter, for every task), "rank scaling" (sqrt(width/r) instead of sqrt(width/m)), "non-projector"
            (Z - X Z'X for the projection), "half bases" (gradients and F rounded to float16).
        seed: of the choice of rows and of whatever a gradient does not determine.
    """

    STATE = ("bases", "trained")
    guards = True
    knob = ("energy", (0.8, 0.9, 0.95, 0.99, 0.999))

    def __init__(
        self,
        model: nn.Module,
        *,
        subspace: Source = "mean gradient",
        energy: float = 0.99,
        exhausted: Exhausted = "lower energy",
        s_min: float = 0.002,
        s_max: float = 0.008,
        width: int = 4096,
        rank: int | None = None,
        samples: int | None = 1000,
        reference: Sequence[Quirk] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        options = {"subspace": subspace, "energy": energy, "exhausted": exhausted, "reference": reference}
        self.check(**options, s_min=s_min, s_max=s_max, width=width, rank=rank, samples=samples)
        self.subspace, self.energy, self.exhausted, self.reference = subspace, energy, exhausted, frozenset(reference)
        self.s_min, self.s_max, self.width, self.rank, self.samples = s_min, s_max, width, rank, samples
        if not energy:
            warnings.warn("energy is 0: updates are balanced, but kept clear of nothing that was learned", stacklevel=2)
        if (c := max(site.scale for site in self.sites.values())) < SCALE:
            warnings.warn(
                f"lora_alpha/r is {c:g}: the singular values of an update are that times s, which an AdamW step moves "
                "by about the learning rate, so that little is learned. The paper has 2 and 5: set lora_alpha to 5 r",
                stacklevel=2,
            )
        for site in self.sites.values():
            balance(site)
        self._bases = {name: Basis.empty(site.A, site.A.shape[1]) for name, site in self.sites.items()}
        self._points: list[Points] = []

    @classmethod
    def check(cls, **keywords: Any) -> None:
        for key, known in ALLOWED.items():
            if (value := keywords[key]) not in known:
                raise ValueError(f"unknown {key} {value!r}; known: {', '.join(known)}{did_you_mean(value, known)}")
        for quirk in keywords["reference"]:
            if quirk not in get_args(Quirk):
                known = get_args(Quirk)
                raise ValueError(f"unknown reference {quirk!r}; known: {', '.join(known)}{did_you_mean(quirk, known)}")
        if not 0 <= keywords["energy"] <= 1:
            raise ValueError(f"energy must lie in [0, 1], got {keywords['energy']}")
        if not 0 <= keywords["s_min"] <= keywords["s_max"] < math.inf:
            raise ValueError(f"0 <= s_min <= s_max must hold, got {keywords['s_min']} and {keywords['s_max']}")
        for key in ("width", "rank", "samples"):
            if (value := keywords[key]) is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")

    @property
    def growth(self) -> int:
        bases = sum(_limit(site) * (site.A.shape[1] + 1) * max(4, site.A.itemsize) for site in self.sites.values())
        return bases + (self.adapter_bytes if self.rank is None else 0)

    @property
    def bases(self) -> dict[str, dict[str, Tensor]]:
        """F (in, p) and the energy (p,) of its columns, of every site."""
        return {name: {"F": basis.F, "energy": basis.energy} for name, basis in self._bases.items()}

    @bases.setter
    def bases(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._points = []
        for name, site in self.sites.items():
            kept = state.get(name) or vars(Basis.empty(site.A, site.A.shape[1]))
            if len(kept["F"]) != site.A.shape[1]:
                raise ValueError(f"{name}: a basis {tuple(kept['F'].shape)} does not fit {site.A.shape[1]} inputs")
            self._bases[name] = Basis(kept["F"], kept["energy"])

    def begin_task(self, task: Task) -> None:
        self.warn_unprotected()
        if any(site.B.any() for site in self.sites.values()):
            self.fold(None)
        self._points = []
        gradients = self._measured(task, "mean gradient")
        generator, depths = self.generator(), _depths(self.sites)
        silent = [name for name in self.sites if name not in gradients or not gradients[name].any()]
        for name, site in self.sites.items():
            G = gradients.get(name, site.A.new_zeros(site.B.shape[0], site.A.shape[1]))
            A, B = self._start(name, G, generator)
            site.set_factors(B, A)
            originals(site)[1].data.fill_(-(self.s_min + depths[name] * (self.s_max - self.s_min)))
        if silent:
            warnings.warn(f"no gradient on {task.name!r}: {', '.join(silent)} start at random", stacklevel=2)

    def param_groups(self) -> list[dict[str, Any]]:
        """As for every method, without weight decay of factors: on the manifold it would only shrink s."""
        groups = super().param_groups()
        factors = {id(p) for site in self.sites.values() for p in site.parameters}
        return [g | {"weight_decay": 0.0} if id(g["params"][0]) in factors else g for g in groups]

    @torch.no_grad()
    def before_step(self) -> None:
        if not self._points:
            self._points = list(points(self.sites, self._bases))
        for group in self._points:
            group.project_gradients(self._metric)

    @torch.no_grad()
    def after_step(self) -> None:
        for group in self._points:
            m = group.start.shape[2 if "rank scaling" in self.reference else 1]
            group.retract((self.width / m) ** 0.5, self._metric)

    def end_task(self, task: Task) -> None:
        self._points = []
        growths = self._grown(self._measured(task, self.subspace), task)
        self._bases |= {name: growth.basis for name, growth in growths.items()}
        taken = {name: basis.F.shape[1] for name, basis in self._bases.items()}
        self.boundary = {
            "directions": sum(taken.values()),
            "fullest": max(taken[name] / _limit(site) if _limit(site) else 1.0 for name, site in self.sites.items()),
            "held": min(growth.held for growth in growths.values()),
            "explained": sum(growth.explained for growth in growths.values()) / len(growths),
            "bytes": sum(basis.F.nbytes + basis.energy.nbytes for basis in self._bases.values()),
        }
        self.fold(self.rank)
        super().end_task(task)

    @property
    def _metric(self) -> Metric:
        return "canonical" if "non-projector" in self.reference else "euclidean"

    def _measured(self, task: Task, source: Source) -> dict[str, Tensor]:
        """A statistic of every site that has a part in the loss, in float32 at least."""
        layers = {name: site.layer for name, site in self.sites.items()}
        with without_adapter(self.sites) if "pretrained gradients" in self.reference else nullcontext():
            found = statistics(self.model, layers, task, source, samples=self.samples, seed=self.boundary_seed)
        return {n: G.half().to(G) for n, G in found.items()} if "half bases" in self.reference else found

    @torch.no_grad()
    def _start(self, name: str, G: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of the leading singular vectors of what ``G`` (out, in) has outside F."""
        F, r = self._bases[name].F, len(self.sites[name].A)
        if F.shape[1] + r > len(F):
            raise ValueError(
                f"{name}: no space left: earlier tasks take {F.shape[1]} of {len(F)} directions, the adapter needs {r}"
            )
        G = G.to(F)
        U, S, V = leading_svd(project_out(G.T, F), r, generator)
        sure = NOISE * G.norm() < S
        U = _completed(U[:, sure], r, F, generator)
        return U.T, _completed(V[:, sure], r, V[:, :0], generator)

    def _grown(self, found: Mapping[str, Tensor], task: Task) -> dict[str, Growth]:
        """The basis of every site with something to hold, grown; what could not be held is warned of."""
        growths = {}
        for name in self.sites:
            if name in found and found[name].any():
                mean, limit = self.subspace == "mean gradient", _limit(self.sites[name])
                larger, H = (grow, found[name].T) if mean else (grow_by_moment, found[name])
                try:
                    growths[name] = larger(self._bases[name], H, self.energy, limit, self.exhausted)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        if not growths:
            raise RuntimeError(
                f"the {self.subspace} of {task.name!r} is zero everywhere, so nothing would protect it. Does the "
                "model's output depend on the adapted layers, and is the loss not already exactly zero?"
            )
        if silent := self.sites.keys() - growths.keys():
            warnings.warn(f"nothing protects {task.name!r} at {', '.join(sorted(silent))}: no gradient", stacklevel=3)
        self._warn_if_full(growths, task)
        if "half bases" in self.reference:
            growths = {n: _halved(growth) for n, growth in growths.items()}
        return growths

    def _warn_if_full(self, growths: Mapping[str, Growth], task: Task) -> None:
        full = {n: g for n, g in growths.items() if g.held < self.energy - 1e-4 or g.lost > 0}
        if full:
            name = min(full, key=lambda n: full[n].held)
            site, worst = self.sites[name], full[name]
            warnings.warn(
                f"no space left at {len(full)} of {len(self.sites)} sites after {task.name!r}; worst is {name}: "
                f"{worst.basis.F.shape[1]} of {site.A.shape[1]} directions are taken and {len(site.A)} kept free for "
                f"the adapter, so {worst.held:.1%} of the {self.subspace} is held instead of {self.energy:.1%}, and "
                f"{worst.lost:.1%} of all that was held is dropped ({self.exhausted}). Lower method.energy or lora.r",
                stacklevel=4,
            )


def _limit(site: Site) -> int:
    """The most directions that may be taken: r must be left for the next task."""
    return site.A.shape[1] - len(site.A)


def _depths(names: Mapping[str, Site]) -> dict[str, float]:
    """Where each site stands, 0 in the first layer to 1 in the last; the first number in a name counts layers."""
    layers = {name: re.split(r"(?<=\d)(?:\.|$)", name, maxsplit=1)[0] for name in names}
    order = {layer: i for i, layer in enumerate(dict.fromkeys(layers.values()))}
    return {name: order[layer] / max(1, len(order) - 1) for name, layer in layers.items()}


def _completed(U: Tensor, r: int, F: Tensor, generator: torch.Generator) -> Tensor:
    """Orthonormal ``U`` (n, k) with random columns after them, (n, r), all orthogonal to ``F`` (n, p)."""
    U = orthonormalised(project_out(U, F))
    random = torch.randn(len(U), r - U.shape[1], generator=generator, dtype=torch.float64).to(U)
    more = orthonormalised(project_out(random, torch.cat([F, U], 1)))
    return orthonormalised(project_out(torch.cat([U, more], 1), F))


def _halved(growth: Growth) -> Growth:
    return replace(growth, basis=Basis(growth.basis.F.half().to(growth.basis.F), growth.basis.energy))
