"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796) and Online EWC (1805.06370).

On LoRA this is the naive form that EWC-LoRA (arXiv 2602.17559) argues against: A and B are protected one by one
although only their product matters. On plain modules it is the classic.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retain.fisher.choice import choose
from retain.fisher.estimate import sweep_parameters
from retain.fisher.forms import FORMS
from retain.fisher.springs import seeing
from retain.method import faded
from retain.mistakes import Within
from retain.protection import Protection, Strength, check_strength, check_temperature
from retain.task import Task, precise

DEFAULT = 1e3  # strength, measured in docs/methods/ewc.md


class EWC(Protection):
    """Springs to earlier weights: strength/2 sum_i sum_j F_ij (theta_j - theta*_ij)^2 over the finished tasks i.

    The sum over tasks is kept exactly in constant storage: S = sum F_i, the mean m = sum F_i theta*_i / S, and the
    constant that remains, since sum F_i (theta - theta*_i)^2 = S (theta - m)^2 + const.

    Args:
        model: a peft model, or any module (see ``parameters``).
        strength: lambda, "auto" or a budget, as for ``ewc-lora``. 1 weighs a nat lost on an earlier task like a nat on
            the new one, as far as a diagonal Fisher sees it.
        decay: None keeps every task's own anchor (EWC). A number in [0, 1] is Online EWC's gamma: F <- gamma F +
            F_t, and the only anchor is the last one. (Where gamma also multiplies F inside the penalty, as in the
            paper, use strength * gamma.)
        parameters: names or patterns ("body.*") of what to protect; None: the factors of a LoRA and linear layers
            beside it, or all that is trainable.
        fisher: keywords of the Fisher pass (docs/fisher.md, "Options"): ``labels`` ("mixture", "sample", "exact",
            "data" or "predicted"), ``temperature``, ``samples``, ``error``, ``batch_size``, ``dtype``. The only
            ``form`` for parameters of any shape is "diagonal". Left out: 1000 samples, and the defaults there.
        seed: of the Fisher pass.
    """

    STATE = ("fisher", "anchor", "constant", "level", *Protection.STATE)
    guards = True
    FISHER: dict[str, Any] = {"form": "diagonal", "samples": 1000}
    needs_adapter = False
    knob = ("strength", (1e1, 1e2, 1e3, 1e4, 1e5))

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: Strength = DEFAULT,
        decay: float | None = None,
        parameters: Sequence[str] | None = None,
        fisher: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.check(strength=strength, decay=decay, fisher=fisher)
        super().__init__(model, strength=strength, default=DEFAULT, seed=seed)
        self.decay = decay
        self.choice = choose(fisher, self.FISHER)
        self.parameters = self._chosen(parameters)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant: dict[str, Tensor] = {}
        self.level: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    @classmethod
    def check(cls, **keywords: Any) -> None:
        check_strength(keywords["strength"], keywords["decay"])
        fisher = keywords["fisher"]
        form = fisher.get("form") if isinstance(fisher, Mapping) else None
        if isinstance(form, str) and form in FORMS and form != "diagonal":
            raise Within(
                "fisher.form",
                f"{form!r} needs weights with rows and columns, and ewc protects parameters of any shape, number by "
                "number; expected 'diagonal'",
            )
        choice = choose(fisher, cls.FISHER)
        check_temperature(keywords["strength"], choice)
        for key, value in choice.options.items():
            raise Within(f"fisher.{key}", f"{value!r} cannot be chosen: ewc keeps numbers as they are measured")

    @property
    def remembered(self) -> dict[str, float]:
        return faded(self.learned, 1.0 if self.decay is None else self.decay)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._start = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def extra_loss(self) -> Tensor | float:
        if not self.fisher:
            return 0.0
        penalty = torch.stack(self._springs()).sum()
        return self.multiplier.weigh(penalty - torch.stack([*self.level.values()]).sum(), penalty)

    @torch.no_grad()
    def predicted_rise(self) -> dict[str, float]:
        """The rise since the last boundary as "total": ``extra_loss`` counts every task's since its own end."""
        if not self.fisher:
            return {}
        risen = [now - self.level[name] for name, now in zip(self.parameters, self._springs(), strict=True)]
        return {"total": float(torch.stack(risen).sum())}

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        seen = seeing(self.sites, self.parameters)
        fresh, tally = sweep_parameters(self.model, seen, task, seed=self.boundary_seed, **self.choice.sweep)
        self.boundary = {"rows": tally.looked, "examples": tally.examples}
        self.boundary["bytes"] = sum(new.nbytes for new in fresh.values())
        if math.isfinite(tally.error):
            self.boundary["error"] = tally.error
        if self._start:
            moved = {name: precise(p - self._start[name]).square().sum() for name, p in self.parameters.items()}
            self.compare_movement({name: float(square) for name, square in moved.items()}, task)
        for name, parameter in self.parameters.items():
            here = precise(parameter.detach()).clone()
            new = fresh.get(name, torch.zeros_like(here))
            if name not in self.fisher:
                self.fisher[name], self.anchor[name], self.constant[name] = new, here, here.new_zeros(())
            elif self.decay is not None:
                self.fisher[name], self.anchor[name] = self.decay * self.fisher[name] + new, here
            else:
                self._add_spring(name, new, here)
        self.level = dict(zip(self.parameters, self._springs(), strict=True))
        self.boundary["trace"] = sum(float(F.sum()) for F in self.fisher.values())
        super().end_task(task)

    def _springs(self) -> list[Tensor]:
        """The rise that every parameter's springs stand for, in nats per example, of each task since its own end."""
        return [
            0.5 * ((self.fisher[name] * (precise(parameter) - self.anchor[name]).square()).sum() + self.constant[name])
            for name, parameter in self.parameters.items()
        ]

    def _add_spring(self, name: str, fisher: Tensor, here: Tensor) -> None:
        old, anchor = self.fisher[name], self.anchor[name]
        total = old + fisher
        share = torch.where(total > 0, fisher / total, 0)
        self.constant[name] += (old * share * (here - anchor).square()).sum()
        self.fisher[name], self.anchor[name] = total, anchor + share * (here - anchor)

    def _chosen(self, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
        every = dict(self.model.named_parameters())
        if patterns is None:
            unknown = self.beside().keys() - self.linear_beside().keys() if self.sites else set()
            chosen = {name: p for name, p in every.items() if p.requires_grad and name not in unknown}
        else:
            chosen = {}
            if isinstance(patterns, str):
                raise ValueError(f"parameters must be a list of names or patterns, got the text {patterns!r}")
            for pattern in patterns:
                matched = {name: every[name] for name in fnmatch.filter(every, pattern)}
                if not matched:
                    near = difflib.get_close_matches(pattern, every, cutoff=0)
                    raise ValueError(f"parameters: {pattern!r} matches nothing; nearest: {', '.join(near)}")
                chosen |= matched
        if not chosen:
            raise ValueError("nothing to protect: the model has no trainable parameter")
        return chosen
