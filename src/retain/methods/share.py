"""Share: one evolving pair of bases for all tasks, a handful of coefficients for each (arXiv 2602.06043)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from retain.bases import LOSSY, Bases, Change, Weights, add, residuals, within
from retain.collection import read_adapter
from retain.linalg import orthonormalised, project_out
from retain.lora import Site
from retain.method import Method
from retain.nearest import did_you_mean
from retain.released import Quirk, recorded, released
from retain.routing import class_means, features, nearest
from retain.spanned import coefficients, confinable, put, release, span
from retain.task import Task

CoreKind = Literal["factored", "dense"]
ALLOWED = {"core": get_args(CoreKind), "weights": get_args(Weights)}


class Share(Method):
    """dW_t = c U C_t V' per layer: U (out, k_o), V (in, k_i) are shared by all tasks, the core C_t is the task's own.

    - The first task trains a plain adapter, whose singular directions are the first bases.
    - A later one trains C_t and ``temporary`` columns beside each basis, from dW = 0, with the bases frozen.
    - ``end_task``: the whole change, temporary columns included, is the task's; the bases grow by what they lack of it,
      are cut to ``components`` columns, and every core is recomputed in closed form, without data.

    ``activate`` puts a task's change in place. Its relative residual, what all cuts have taken from it, is reported for
    every task (``residuals``); above 10 % a warning names the task. Each head is its task's own; whatever else trains
    beside the adapter is not protected.

    Args:
        model: a model from ``peft.get_peft_model``; its rank r bounds that of what a task trains.
        components: k, the most columns of a basis.
        energy: the share of all tasks' ||dW||^2 for which fewer columns are enough; 1 keeps ``components``. The
            paper's 0.6 leaves a relative error up to 0.63.
        max_residual: of any task; more columns than ``components`` are kept where it would be exceeded.
        temporary: phi, the free columns beside each basis while a task trains; fewer learn less where tasks differ.
            None: r, as free as a fresh adapter (a dense core: what ``components`` leave of r).
        threshold: tau; a direction of a new task joins the bases if what they lack of it is longer, of 1.
        core: "factored" trains C_t as a product of rank r (the paper's pseudo-rank p); "dense" trains all its entries,
            and needs components + temporary <= r.
        weights: of tasks as bases are cut: "relative", so that the relative errors of large and small changes count
            alike, or "absolute".
        adapters: folders of stock LoRAs of the same base and layers, of any rank, whose tasks are there from the start,
            under the names of their folders.
        reference: what to do as the release does, to reproduce it: "dropped temporaries" (what a task learned in its
            temporary columns joins the bases and not its core), "centring" (the mean of a task's columns is taken off
            before their span is, and forgotten).
        route: keep the mean pretrained features of every class, by which ``guess`` finds the task of a row.
        seed: of fresh coefficients and columns.
    """

    STATE = ("spaces", "means", "trained")
    knob = ("components", (8, 16, 32, 64, 128))
    separate = True

    def __init__(
        self,
        model: nn.Module,
        *,
        components: int = 32,
        energy: float = 1.0,
        max_residual: float | None = None,
        temporary: int | None = None,
        threshold: float = 0.0,
        core: CoreKind = "factored",
        weights: Weights = "relative",
        adapters: Sequence[str] = (),
        route: bool = False,
        reference: Sequence[Quirk] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        self.check(
            components=components,
            energy=energy,
            max_residual=max_residual,
            temporary=temporary,
            threshold=threshold,
            core=core,
            weights=weights,
            reference=reference,
        )
        self.components, self.energy, self.max_residual = components, energy, max_residual
        self.temporary, self.threshold, self.core, self.weights = temporary, threshold, core, weights
        self.route, self.means, self.reference = route, dict[str, Tensor](), frozenset(reference)
        for site in self.sites.values():
            confinable(site)
        self.bases = {name: Bases.empty(*site.factors()) for name, site in self.sites.items()}
        if core == "dense" and (least := min(len(s.A) for s in self.sites.values())) < components + (temporary or 0):
            raise ValueError(f"a dense core needs lora.r of at least components + temporary, got {least}")
        given = {Path(folder).name: self._read(Path(folder)) for folder in adapters}
        if len(given) < len(adapters):
            raise ValueError(f"adapters: two folders have the same name; got {', '.join(map(str, adapters))}")
        if given and not next(model.parameters()).is_meta:  # a plan computes nothing; they have been checked
            self.absorb(given)

    @classmethod
    def check(cls, **keywords: Any) -> None:
        for key, known in ALLOWED.items():
            if (value := keywords[key]) not in known:
                raise ValueError(f"unknown {key} {value!r}; known: {', '.join(known)}{did_you_mean(value, known)}")
        known = get_args(Quirk)
        for quirk in keywords["reference"]:
            if quirk not in known:
                raise ValueError(f"unknown reference {quirk!r}; known: {', '.join(known)}{did_you_mean(quirk, known)}")
        for key, least in (("components", 1), ("temporary", 0)):
            if keywords[key] is not None and keywords[key] < least:
                raise ValueError(f"{key} must be at least {least}, got {keywords[key]}")
        if not 0 < keywords["energy"] <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {keywords['energy']}")
        if not 0 <= keywords["threshold"] < 1:
            raise ValueError(f"threshold must lie in [0, 1), got {keywords['threshold']}")
        if (bound := keywords["max_residual"]) is not None and not 0 < bound < 1:
            raise ValueError(f"max_residual must lie in (0, 1), got {bound}")
        if bound is not None and keywords["threshold"]:
            raise ValueError(f"threshold cuts what max_residual={bound} may not lose: leave threshold at 0")

    @property
    def growth(self) -> int:
        """Columns, until a basis is full, the core of a task, and what columns add to earlier cores."""
        total = 32 * len(self.sites)
        for name, site in self.sites.items():
            bases, r = self.bases[name], site.layer.r[site.adapter]
            earlier = [((len(core.left), core.right.shape[1]), len(core.right)) for core in bases.cores.values()]
            for side, basis in enumerate((bases.U, bases.V)):
                n, k = basis.shape
                most = n if self.max_residual is not None else min(self.components, n)
                wider = sum(max(0, most - heights[side]) * m for heights, m in earlier)
                total += 4 * (min(r, max(0, most - k)) * n + min(r, most) * most + wider)
        return total

    @property
    def spaces(self) -> dict[str, dict[str, Any]]:
        """U, V and the cores of all tasks, of every site."""
        return {name: bases.state() for name, bases in self.bases.items()}

    @spaces.setter
    def spaces(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for name, site in self.sites.items():
            release(site)
            kept = Bases.from_state(state[name]) if name in state else Bases.empty(*site.factors())
            if (len(kept.U), len(kept.V)) != (here := (len(site.B), site.A.shape[1])):
                raise ValueError(f"{name}: bases {tuple(kept.U.shape)} and {tuple(kept.V.shape)} do not fit {here}")
            self.bases[name] = kept

    @property
    def residuals(self) -> dict[str, float]:
        """||dW_t - what is kept of it|| / ||dW_t|| of every task over all layers, of all cuts so far."""
        return residuals(self.bases.values())

    @property
    def tasks(self) -> list[str]:
        """All that can be activated, in the order that they came: learned here, or added as adapters."""
        return list(next(iter(self.bases.values())).cores)

    def begin_task(self, task: Task) -> None:
        self.warn_unprotected()
        if not self.tasks:
            return
        if task.name in set(self.tasks) - set(self.learned):
            raise ValueError(f"an adapter is called {task.name!r} already: rename the task, or the adapter's folder")
        generator = self.generator()
        for name, site in self.sites.items():
            site.set_past(site.B[:, :0], site.A[:0])
            self._confine(site, self.bases[name], generator)

    def end_task(self, task: Task) -> None:
        kept = {name: released(site, self.reference) for name, site in self.sites.items()} if self.reference else {}
        self._absorb({task.name: {name: site.factors() for name, site in self.sites.items()}}, kept)
        if self.route:
            self.means[task.name] = class_means(self.model, self.sites, task)
        super().end_task(task)
        self.activate(task.name)

    def absorb(self, changes: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]) -> None:
        """Take in weight changes, by task and site: factors B (out, m), A (m, in) of any rank, in units of dW/c.

        Adapters that somebody else trained become tasks like those that were learned here; no data is needed.
        """
        self._absorb(changes, {})

    def _absorb(
        self,
        changes: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]],
        kept: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        """``absorb``, where of the only task the factors ``kept``, by site, are recorded if there are any."""
        for name, site in self.sites.items():
            release(site)
            new = {task: Change(*factors[name]) for task, factors in changes.items()}
            wider = add(self.bases[name], new, self.threshold)
            if name in kept:
                wider = recorded(wider, next(iter(changes)), *kept[name])
            self.bases[name] = within(wider, self.components, self.energy, self.weights, self.max_residual)
        found = self.residuals
        widths = [x.shape[1] for bases in self.bases.values() for x in (bases.U, bases.V)]
        self.boundary = {"residual": max(found.values()), "columns": max(widths)}
        if lossy := {task: r for task, r in found.items() if r > LOSSY}:
            worst = max(lossy, key=lambda t: lossy[t])
            warnings.warn(
                f"{len(lossy)} of {len(found)} tasks do not fit {self.components} components; of {worst!r} "
                f"{lossy[worst]:.0%} of the weight change is lost (relative Frobenius norm). Raise method.components",
                stacklevel=3,
            )

    @torch.no_grad()
    def activate(self, task: str | None) -> None:
        if not self.tasks:
            return
        name = self.tasks[-1] if task is None else task
        for key, site in self.sites.items():
            bases, r = self.bases[key], site.layer.r[site.adapter]
            B, A = bases.factors(name) if name in bases.cores else (bases.U[:, :0], bases.V.T[:0])
            rest = max(0, r - len(A))
            put(site, pad(B[:, :r], (0, rest)), pad(A[:r], (0, 0, 0, rest)))
            if len(A) > r or len(site.past[1]):
                site.set_past(B[:, r:], A[r:])

    def _read(self, folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors of a stock LoRA, in units of dW/c."""
        changes = read_adapter(folder).changes
        if differing := sorted(changes.keys() ^ self.sites.keys()):
            raise ValueError(f"{folder} adapts other layers than this model: {', '.join(differing[:3])} in one only")
        return {name: (B.to(s.B) / s.scale, A.to(s.A)) for name, s in self.sites.items() for B, A in [changes[name]]}

    @property
    def routes(self) -> bool:
        return bool(self.means)

    def guess(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """The task of each row of ``inputs`` (of the model, without labels): that of the nearest class mean.

        Raises:
            ValueError: no class means: ``route`` is off, or all tasks came as adapters.
        """
        return nearest(features(self.model, self.sites, inputs), self.means)

    @torch.no_grad()
    def _confine(self, site: Site, bases: Bases, generator: torch.Generator) -> None:
        """Let ``site`` train coefficients and temporary columns, from dW = 0."""
        most = len(site.A) - (self.components if self.core == "dense" else 0)
        count = most if self.temporary is None else self.temporary
        free = [_columns(F, count or not F.shape[1], generator) for F in (bases.U, bases.V)]
        of_B, of_A = span(site, bases.U, bases.V, *free)
        _, inner = coefficients(site)
        inner.requires_grad_(self.core != "dense")
        if self.core == "dense":
            inner.copy_(torch.eye(*inner.shape) / of_A.gain)
        else:
            bound = site.A.shape[1] ** -0.5
            inner.copy_(torch.empty(inner.shape).uniform_(-bound, bound, generator=generator))


def _columns(F: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns (n, count) outside ``F`` (n, k), or as many as there is room for."""
    random = torch.randn(len(F), min(count, len(F) - F.shape[1]), generator=generator).to(F)
    return orthonormalised(project_out(random, F))
