"""EWC-LoRA: elastic weight consolidation of the full update dW = s B A (arXiv 2602.17559, ICLR 2026)."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.fisher import parameter_fisher, quadratic, weight_fisher
from retain.method import Method, Mode, check_mode, check_strength
from retain.task import Labels, Task, check_pass


class EWCLoRA(Method):
    """A spring on the weight change itself, strength/2 <D, F o D>, whatever the factors that make it.

    F (out, in) per site is the diagonal Fisher of the weight, F <- decay F + F_t after every task; its bytes are
    those of the adapted weights, whatever the number of tasks. D is the change since the last task ended:

    - mode "shared": one adapter goes on, D = s (B A - B* A*) with the factors of the last boundary kept as anchor;
    - mode "merge" (the paper): every task trains a fresh adapter, D = s B A, which is then folded into the past
      exactly. The past grows by one adapter a task unless ``rank`` caps it.

    Linear layers that train beside the adapter (a classifier that tasks share) get the same spring on their own
    weights.

    Args:
        model: a model from ``peft.get_peft_model``.
        strength: lambda (the paper's letter). The default was measured with this Fisher: diagonal, per example,
            sampled labels (docs/methods.md). The reference's 1e7 belongs to squared batch means and is some batch
            sizes too large here.
        decay: gamma in [0, 1]; the paper's plateau is 0.3 to 0.9.
        mode: see above.
        rank: of the past in mode "merge"; the relative error of each cut is in ``boundary["fold_error"]``.
        accumulate: "products" keeps B1 A1 + B2 A2. "factors" is the reference code's (B1 + B2)(A1 + A2), which is
            not the function that was trained: for comparison only, with mode "merge".
        labels, samples, batch_size: of the Fisher pass (``retain.fisher.weight_fisher``).
        seed: of the Fisher pass and of fresh adapters.
    """

    STATE = ("fisher", "anchor", "springs")

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1e4,
        decay: float = 1.0,
        mode: Mode = "shared",
        rank: int | None = None,
        accumulate: Literal["products", "factors"] = "products",
        labels: Labels = "sample",
        samples: int | None = 1000,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        check_pass(labels, samples, batch_size)
        check_strength(strength, decay)
        if accumulate not in ("products", "factors") or (
            accumulate == "factors" and (mode != "merge" or rank is not None)
        ):
            raise ValueError(
                f"accumulate must be 'products', or 'factors' with mode='merge' and no rank; got {accumulate!r}"
            )
        self.strength, self.decay, self.mode, self.rank = strength, decay, check_mode(mode, rank), rank
        self.accumulate = accumulate
        self.options = {"labels": labels, "samples": samples, "batch_size": batch_size}
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, dict[str, Tensor]] = {}
        self.springs: dict[str, dict[str, Tensor]] = {}
        self._trained: set[str] = set()

    @property
    def grows(self) -> bool:
        return self.mode == "merge" and self.rank is None and self.accumulate == "products"

    def begin_task(self, task: Task) -> None:
        bare = self._trained & self.beside().keys() - self.springs.keys()
        if bare:
            warnings.warn(f"trained for more than one task, but not protected: {', '.join(sorted(bare))}", stacklevel=2)

    def extra_loss(self) -> Tensor | float:
        if not self.fisher or self.strength == 0:
            return 0.0
        springs = [
            quadratic(site.B, site.A, self.fisher[name], site.scale, self._anchor(name))
            for name, site in self.sites.items()
        ]
        for name, spring in sorted(self.springs.items()):
            parameter = self.model.get_parameter(name)
            springs.append(0.5 * (spring["fisher"] * (parameter - spring["anchor"]).square()).sum())
        return self.strength * torch.stack(springs).sum()

    def end_task(self, task: Task) -> None:
        options = self.options | {"seed": self.boundary_seed}
        fresh = weight_fisher(self.model, {n: s.layer for n, s in self.sites.items()}, task, **options)
        for name, site in self.sites.items():
            new = fresh[name] if name in fresh else torch.zeros_like(site.delta())
            self.fisher[name] = self.decay * self.fisher[name] + new if name in self.fisher else new
        self._add_springs(task, options)
        if self.mode == "shared":
            self.anchor = {n: {"B": s.B.detach().clone(), "A": s.A.detach().clone()} for n, s in self.sites.items()}
        elif self.accumulate == "products":
            self.fold(self.rank)
        else:
            self._add_factors()
        super().end_task(task)

    @torch.no_grad()
    def _add_springs(self, task: Task, options: dict[str, Any]) -> None:
        """Springs on the weights of linear layers that train beside the adapter; they cost a second Fisher pass."""
        self._trained, linear = set(self.beside()), self.linear_beside()
        if not linear:
            return
        for name, new in parameter_fisher(self.model, linear, task, **options).items():
            old = self.springs[name]["fisher"] if name in self.springs else torch.zeros_like(new)
            self.springs[name] = {"fisher": self.decay * old + new, "anchor": linear[name].detach().clone()}

    def _anchor(self, name: str) -> tuple[Tensor, Tensor] | None:
        return (self.anchor[name]["B"], self.anchor[name]["A"]) if self.mode == "shared" else None

    def _add_factors(self) -> None:
        """The reference's boundary (low-rank-cl, ``accumulate_and_reset_lora``), cross terms B1 A2 + B2 A1 and all."""
        generator = self.generator()
        for site in self.sites.values():
            B, A = site.past
            if len(A):
                site.set_past(B + site.B, A + site.A)
            else:
                site.set_past(site.B, site.A)
            site.reset(generator)
