"""O-LoRA: every task an adapter of its own, softly orthogonal to those before (Wang et al. 2023, arXiv 2310.14152)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from retain.method import Method
from retain.nearest import did_you_mean
from retain.task import Task

Overlap = Literal["absolute", "squared"]


class OLoRA(Method):
    """A fresh adapter for every task, with a penalty on what its A (r, in) shares with the A_i of earlier tasks.

    The loss of a step gains orthogonality x sum over layers, tasks i and entries of |A_i A'|. Rows of A span the inputs
    that a task reads, so that zero means it reads none that earlier tasks read. It holds the directions, not the
    function: what an earlier task's inputs do along other directions is free, and a smaller A with a larger B has the
    same weight change and less penalty. Heads and whatever else trains beside the adapter are not protected.

    Args:
        model: a model from ``peft.get_peft_model``.
        orthogonality: lambda_1 of the paper, in nats per example and unit of overlap; the authors use 0.5, and 5 for
            some tasks of long streams.
        overlap: "absolute" sums |A_i A'| (the authors' code, to which their values of lambda_1 belong); "squared" sums
            the squares (the paper).
        seed: of fresh adapters.
    """

    STATE = ("trained",)
    knob = ("orthogonality", (0.05, 0.15, 0.5, 1.5, 5.0))
    late = ("orthogonality",)

    def __init__(
        self, model: nn.Module, *, orthogonality: float = 0.5, overlap: Overlap = "absolute", seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        self.check(orthogonality=orthogonality, overlap=overlap)
        self.orthogonality, self.overlap = orthogonality, overlap

    @classmethod
    def check(cls, **keywords: Any) -> None:
        if not 0 <= keywords["orthogonality"] < math.inf:
            raise ValueError(f"orthogonality must be at least 0 and finite, got {keywords['orthogonality']}")
        if (value := keywords["overlap"]) not in (known := get_args(Overlap)):
            raise ValueError(f"unknown overlap {value!r}; known: {', '.join(known)}{did_you_mean(value, known)}")

    @property
    def growth(self) -> int:
        return self.adapter_bytes

    def begin_task(self, task: Task) -> None:
        self.warn_unprotected()

    def extra_loss(self) -> Tensor | float:
        if not self.learned or not self.orthogonality:
            return 0.0
        shared = [site.past[1] @ site.A.T for site in self.sites.values()]
        size = torch.Tensor.abs if self.overlap == "absolute" else torch.Tensor.square
        return self.orthogonality * torch.stack([size(overlap).sum() for overlap in shared]).sum()

    def end_task(self, task: Task) -> None:
        self.fold(None)
        super().end_task(task)
