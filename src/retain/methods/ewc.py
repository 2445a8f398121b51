"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796) and Online EWC (1805.06370).

On LoRA this is the naive form that EWC-LoRA (arXiv 2602.17559) argues against: A and B are protected one by one
although only their product matters. On plain modules it is the classic.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retain.fisher import parameter_fisher
from retain.method import Method, check_strength
from retain.task import Labels, Task, check_pass


class EWC(Method):
    """Springs to earlier weights: strength/2 sum_i sum_j F_ij (theta_j - theta*_ij)^2 over the finished tasks i.

    The sum over tasks is kept exactly in constant storage: S = sum F_i, the mean m = sum F_i theta*_i / S, and the
    constant that remains, since sum F_i (theta - theta*_i)^2 = S (theta - m)^2 + const.

    Args:
        model: a peft model, or any module (see ``parameters``).
        strength: lambda. 1 weighs a nat lost on an earlier task like a nat on the new one, as far as a diagonal
            Fisher sees it.
        decay: None keeps every task's own anchor (EWC). A number in [0, 1] is Online EWC's gamma: F <- gamma F +
            F_t, and the only anchor is the last one. (Where gamma also multiplies F inside the penalty, as in the
            paper, use strength * gamma.)
        parameters: names or patterns ("body.*") of what to protect; None: the factors of a LoRA and linear layers
            beside it, or all that is trainable.
        labels, samples, batch_size: of the Fisher pass (``retain.fisher.parameter_fisher``).
        seed: of the Fisher pass.
    """

    STATE = ("fisher", "anchor", "constant")
    needs_adapter = False

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1e3,
        decay: float | None = None,
        parameters: Sequence[str] | None = None,
        labels: Labels = "sample",
        samples: int | None = 1000,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        check_pass(labels, samples, batch_size)
        check_strength(strength, decay)
        self.strength, self.decay = strength, decay
        self.options = {"labels": labels, "samples": samples, "batch_size": batch_size}
        self.parameters = self._chosen(parameters)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant: dict[str, Tensor] = {}

    def extra_loss(self) -> Tensor | float:
        if not self.fisher:
            return 0.0
        springs = [
            (self.fisher[name] * (parameter - self.anchor[name]).square()).sum() + self.constant[name]
            for name, parameter in self.parameters.items()
        ]
        return 0.5 * self.strength * torch.stack(springs).sum()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        fresh = parameter_fisher(self.model, self.parameters, task, seed=self.boundary_seed, **self.options)
        for name, parameter in self.parameters.items():
            here, new = parameter.detach().clone(), fresh.get(name, torch.zeros_like(parameter))
            if name not in self.fisher:
                self.fisher[name], self.anchor[name], self.constant[name] = new, here, here.new_zeros(())
            elif self.decay is not None:
                self.fisher[name], self.anchor[name] = self.decay * self.fisher[name] + new, here
            else:
                self._add_spring(name, new, here)
        super().end_task(task)

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
