"""EWC-LoRA: elastic weight consolidation of the full update dW = s B A (arXiv 2602.17559, ICLR 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.fisher import parameter_fisher
from retain.fisher.choice import Choice, choose
from retain.fisher.forms import FORMS, Form
from retain.fisher.forms.kronecker import is_low
from retain.fisher.penalty import difference
from retain.linalg import squared_norm
from retain.method import Mode, check_mode, faded
from retain.mistakes import Within
from retain.protection import Protection, Strength, check_strength, check_temperature
from retain.task import Task, precise

Factors = tuple[Tensor, Tensor]
# What was measured together (docs/methods/ewc-lora.md): a form, the temperature of its Fisher, a strength.
DEFAULTS = {"kronecker": (3.0, 10.0), "diagonal": (1.0, 1e4), "factored": (1.0, 1e4)}


@dataclass(frozen=True)
class Importances:
    """A form for each site, and the diagonal Fisher of what trains beside the adapter."""

    forms: dict[str, Form]
    beside: dict[str, Tensor]


class EWCLoRA(Protection):
    """A spring on the weight change itself, strength <D, F D> / 2, whatever the factors that make it.

    F, per site, is the Fisher information of the weight (out, in), in the form that ``fisher`` names; F <- decay F +
    F_t after every task, at constant size. D is the change since the last task ended:

    - mode "shared": one adapter goes on, D = s (B A - B* A*) with the factors of the last boundary kept as anchor;
    - mode "merge" (the paper): every task trains a fresh adapter, D = s B A, which is then folded into the past
      exactly. The past grows by one adapter a task unless ``rank`` caps it.

    Linear layers that train beside the adapter (a classifier that tasks share) get the same spring on their own
    weights, with a diagonal Fisher.

    Args:
        model: a model from ``peft.get_peft_model``.
        strength: lambda (the paper's letter): 1 weighs a nat that the form foresees like a nat gained on the new task.
            None: what was measured with the form and its temperature, 10 for "kronecker" and 1e4 for the others;
            the reference's 1e7 belongs to squared batch means. "auto" weighs a nat that is lost like a nat gained, as
            far as is known; ``{"budget": nats}`` finds what keeps the rise within that (docs/strength.md).
        decay: gamma in [0, 1]; the paper's plateau is 0.3 to 0.9.
        mode: see above.
        rank: of the past in mode "merge"; the relative error of each cut is in ``boundary["fold_error"]``.
        accumulate: "products" keeps B1 A1 + B2 A2. "factors" is the reference code's (B1 + B2)(A1 + A2), which is
            not the function that was trained: for comparison only, with mode "merge".
        fisher: how importance is measured and kept (docs/fisher.md, "Options"): ``form``, then ``storage`` and
            ``squares`` of "diagonal", ``components`` of "factored", ``rank`` of "kronecker"; ``labels`` ("mixture",
            "sample", "exact", "data" or "predicted"), ``temperature``, ``samples``, ``error``, ``batch_size``,
            ``dtype``. And ``sketches``: k keeps a Kronecker form of rank k of every finished task, for the gauge alone:
            ``predicted_rise`` then tells the tasks apart, every task costs another Fisher pass, and bytes grow with
            tasks. Left out: a Kronecker form of rank 16 at temperature 3, 1000 samples, no sketches, and the defaults
            there.
        seed: of the Fisher pass and of fresh adapters.
    """

    STATE = ("fisher", "anchor", "springs", "sketches", "trained", *Protection.STATE)
    guards = True
    knob = ("strength", (1.0, 3.0, 10.0, 30.0, 100.0))
    FISHER: dict[str, Any] = {"form": "kronecker", "samples": 1000, "sketches": None}

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: Strength | None = None,
        decay: float = 1.0,
        mode: Mode = "shared",
        rank: int | None = None,
        accumulate: Literal["products", "factors"] = "products",
        fisher: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.check(strength=strength, decay=decay, mode=mode, rank=rank, accumulate=accumulate, fisher=fisher)
        self.choice = self._choice(fisher)
        super().__init__(model, strength=strength, default=DEFAULTS[self.choice.name][1], seed=seed)
        self.decay, self.mode, self.rank, self.accumulate = decay, mode, rank, accumulate
        self.forms: dict[str, Form] = {}
        self.anchor: dict[str, dict[str, Tensor]] = {}
        self.springs: dict[str, dict[str, Tensor]] = {}
        self.gauges: dict[str, Importances] = {}
        self._start: dict[str, Factors] = {}

    @classmethod
    def check(cls, **keywords: Any) -> None:
        mode, rank, accumulate = (keywords[name] for name in ("mode", "rank", "accumulate"))
        check_strength(keywords["strength"], keywords["decay"])
        check_mode(mode, rank)
        if accumulate not in ("products", "factors") or (
            accumulate == "factors" and (mode != "merge" or rank is not None)
        ):
            raise ValueError(
                f"accumulate must be 'products', or 'factors' with mode='merge' and no rank; got {accumulate!r}"
            )
        choice = cls._choice(keywords["fisher"])
        check_temperature(keywords["strength"], choice, DEFAULTS[choice.name][0])

    @property
    def fisher(self) -> dict[str, dict[str, Tensor]]:
        """The importance of every site, as plain tensors."""
        return {name: form.state_dict() for name, form in self.forms.items()}

    @fisher.setter
    def fisher(self, state: dict[str, dict[str, Tensor]]) -> None:
        forms = self.choice.restored(state)
        for name, form in forms.items():
            if form.shape != (shape := (len(self.sites[name].B), self.sites[name].A.shape[1])):
                raise ValueError(f"the importance of {name} is of a weight {form.shape}, and here it is {shape}")
        self.forms = forms

    @property
    def sketches(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """What is kept of every finished task for the gauge: sketches of sites, and the Fisher of what has springs."""
        return {
            task: {name: form.state_dict() for name, form in gauge.forms.items()}
            | {name: {"fisher": fisher} for name, fisher in gauge.beside.items()}
            for task, gauge in self.gauges.items()
        }

    @sketches.setter
    def sketches(self, state: dict[str, dict[str, dict[str, Tensor]]]) -> None:
        if state and not self.choice.own["sketches"]:
            raise ValueError(f"the state has sketches of {', '.join(state)}, and fisher.sketches is not set")
        self.gauges = {}
        for task, entries in state.items():
            forms = self._sketch.restored({n: e for n, e in entries.items() if n in self.sites})
            self.gauges[task] = Importances(forms, {n: e["fisher"] for n, e in entries.items() if n not in self.sites})

    @property
    def growth(self) -> int:
        uncapped = self.mode == "merge" and self.rank is None and self.accumulate == "products"
        adapters = self.adapter_bytes if uncapped else 0
        if (k := self.choice.own["sketches"]) is None:
            return adapters
        sides = (n for s in self.sites.values() for n in (len(s.B), s.A.shape[1]))
        sketches = sum(n * (k + 1 if is_low(n, k) else n) for n in sides)
        return adapters + 4 * (sketches + sum(p.numel() for p in self.linear_beside().values()))

    @property
    def remembered(self) -> dict[str, float]:
        return faded(self.learned, self.decay)

    def begin_task(self, task: Task) -> None:
        if task.name == "total" and self.choice.own["sketches"]:
            raise ValueError("with sketches no task can be called 'total': that is the sum in predicted_rise")
        super().begin_task(task)
        self.warn_unprotected(self.springs)
        self._start = {n: (s.B.detach().clone(), s.A.detach().clone()) for n, s in self.sites.items()}

    def extra_loss(self) -> Tensor | float:
        return self.multiplier.weigh(self._rise(self._total)) if self.forms and self.multiplier.given != 0 else 0.0

    @torch.no_grad()
    def predicted_rise(self) -> dict[str, float]:
        """The rise since the last boundary, springs beside the adapter included, as "total", in nats per example.

        With ``sketches`` the rise of every finished task, too. All are anchored at the last boundary: of a task that
        was learned before, the predictions at one boundary after the other add up, and what one training does to the
        slope that another left is not in them.
        """
        if not self.forms:
            return {}
        every = {"total": self._total, **self.gauges}
        return {name: float(self._rise(gauge)) for name, gauge in every.items()}

    def end_task(self, task: Task) -> None:
        seed, layers = self.boundary_seed, {n: s.layer for n, s in self.sites.items()}
        changes = {n: (self.sites[n].scale * B, A) for n, (B, A) in self._changes().items()}
        moved = any(squared_norm(*change) for change in changes.values())
        measured = self.choice.measure(self.model, layers, task, seed=seed, directions=changes if moved else None)
        beside = self._beside(task, seed)
        if self.choice.own["sketches"]:
            again = self._sketch != self.choice
            sketched = self._sketch.measure(self.model, layers, task, seed=seed) if again else measured
            self.gauges[task.name] = Importances(
                self._sketch.restored({n: form.state_dict() for n, form in sketched.forms.items()}), beside
            )
        self._remember(measured.forms, beside)
        self.boundary = {"rows": measured.rows, "examples": measured.examples}
        if math.isfinite(measured.error):
            self.boundary["error"] = measured.error
        if self._start:
            changes = self._changes(self._start)
            self.compare_movement(
                {n: s.scale**2 * float(squared_norm(*changes[n])) for n, s in self.sites.items()}, task
            )
        if self.mode == "shared":
            self.anchor = {n: {"B": s.B.detach().clone(), "A": s.A.detach().clone()} for n, s in self.sites.items()}
        elif self.accumulate == "products":
            self.fold(self.rank)
        else:
            self._add_factors()
        kept = [t for key, t in self.state_dict().items() if key.startswith(("fisher/", "springs/", "sketches/"))]
        self.boundary["bytes"] = sum(t.nbytes for t in kept)
        traces = [f.trace for f in self.forms.values()] + [float(s["fisher"].sum()) for s in self.springs.values()]
        self.boundary["trace"] = sum(traces)
        super().end_task(task)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As of every method. Also refused is a state that would protect nothing, or that has another ``mode``."""
        paths = {tuple(key.split("/")[:2]) for key in state}
        kept = {root for root, *_ in paths}
        if "learned" in kept and "fisher" not in kept:
            raise ValueError("the state has finished tasks and no importance of theirs: nothing would be protected")
        if "fisher" in kept and ("anchor" in kept) != (self.mode == "shared"):
            raise ValueError(
                f"the state {'has' if 'anchor' in kept else 'lacks'} anchors: its mode was not {self.mode!r}"
            )
        for _, name in (path for path in paths if path[0] == "springs"):
            parts = {key.split("/")[2] for key in state if key.startswith(f"springs/{name}/")}
            if missing := {"fisher", "anchor"} - parts:
                raise ValueError(f"the state has a spring of {name} without its {min(missing)}")
        super().load_state_dict(state)

    def _beside(self, task: Task, seed: int) -> dict[str, Tensor]:
        """The Fisher of linear layers that train beside the adapter, on ``task`` alone; it costs a pass of its own."""
        linear = self.linear_beside()
        return parameter_fisher(self.model, linear, task, seed=seed, **self.choice.sweep) if linear else {}

    @torch.no_grad()
    def _remember(self, forms: Mapping[str, Form], beside: Mapping[str, Tensor]) -> None:
        """F <- decay F + F_t of every site, and of what trains beside it, which is anchored where it is."""
        for name, site in self.sites.items():
            fresh = forms[name] if name in forms else self.choice.empty(site.B, len(site.B), site.A.shape[1])
            if name in self.forms:
                self.forms[name].accumulate(fresh, self.decay)
            else:
                self.forms[name] = fresh
        for name, new in beside.items():
            old = self.springs[name]["fisher"] if name in self.springs else torch.zeros_like(new)
            anchor = self.model.get_parameter(name).detach().clone()
            self.springs[name] = {"fisher": self.decay * old + new, "anchor": anchor}

    @property
    def _total(self) -> Importances:
        return Importances(self.forms, {name: spring["fisher"] for name, spring in self.springs.items()})

    def _rise(self, of: Importances) -> Tensor:
        """1/2 <D, F D> of everything that moved since the last boundary, in nats per example."""
        parts = [
            site.scale**2 * of.forms[name].quadratic(site.B, site.A, self._anchor(name))
            for name, site in self.sites.items()
            if name in of.forms
        ]
        for name, fisher in sorted(of.beside.items()):
            change = precise(self.model.get_parameter(name)) - self.springs[name]["anchor"]
            parts.append(0.5 * (fisher * change.square()).sum())
        return torch.stack(parts).sum()

    def _changes(self, start: Mapping[str, Factors] | None = None) -> dict[str, Factors]:
        """Factors of every site's change since ``start``, or since the anchor."""
        return {
            name: difference(s.B.detach(), s.A.detach(), start[name] if start else self._anchor(name))
            for name, s in self.sites.items()
        }

    def _anchor(self, name: str) -> Factors | None:
        if self.mode != "shared" or name not in self.anchor:
            return None
        return self.anchor[name]["B"], self.anchor[name]["A"]

    @property
    def _sketch(self) -> Choice:
        """How a task is sketched for the gauge."""
        return replace(self.choice, form=FORMS["kronecker"], options={"rank": self.choice.own["sketches"]})

    @classmethod
    def _choice(cls, fisher: Mapping[str, Any] | None) -> Choice:
        form = fisher.get("form", "kronecker") if isinstance(fisher, Mapping) else "kronecker"
        defaults = cls.FISHER | {"temperature": DEFAULTS.get(str(form), (1.0,))[0]}
        choice = choose(fisher, defaults, {"sketches": int | None})
        if (rank := choice.own["sketches"]) is not None and rank < 1:
            raise Within("fisher.sketches", f"{rank} is not allowed; expected at least 1, or null for none")
        return choice

    def _add_factors(self) -> None:
        """The reference's boundary (low-rank-cl, ``accumulate_and_reset_lora``), cross terms B1 A2 + B2 A1 and all."""
        generator = self.generator()
        for site in self.sites.values():
            B, A = site.past
            site.set_past(*((B + site.B, A + site.A) if len(A) else (site.B, site.A)))
            site.reset(generator)
