"""One adapter a task, all kept: nothing is forgotten if the task is known at inference, and bytes grow with tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.method import Method
from retain.task import Task


class PerTask(Method):
    """Train a fresh adapter for every task and keep them all.

    ``activate(task)`` puts that task's adapter in place; a task not yet learned gets the untouched model.

    Args:
        model: a model from ``peft.get_peft_model``.
        seed: of fresh adapters.
    """

    STATE = ("adapters",)
    separate = True

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.adapters: dict[str, dict[str, dict[str, Tensor]]] = {}

    @property
    def growth(self) -> int:
        return self.adapter_bytes

    def begin_task(self, task: Task) -> None:
        if self.adapters:
            generator = self.generator()
            for site in self.sites.values():
                site.reset(generator)

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.adapters[task.name] = {
            name: {"A": site.A.detach().clone(), "B": site.B.detach().clone()} for name, site in self.sites.items()
        }

    @torch.no_grad()
    def activate(self, task: str | None) -> None:
        if not self.learned:
            return
        adapter = self.adapters.get(
            max(self.learned, key=lambda name: int(self.learned[name])) if task is None else task
        )
        for name, site in self.sites.items():
            if adapter is None:
                site.B.zero_()
            else:
                site.set_factors(adapter[name]["B"], adapter[name]["A"])
