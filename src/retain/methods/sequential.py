"""Sequential fine-tuning: no protection at all. The lower bound on stability and the upper bound on plasticity."""

from __future__ import annotations

from typing import Any

from torch import nn

from retain.method import Method, Mode, check_mode
from retain.task import Task


class Sequential(Method):
    """Fine-tune one adapter on task after task.

    Args:
        model: a model from ``peft.get_peft_model``.
        mode: "shared" trains one adapter on and on; "merge" starts every task with a fresh adapter on top of the
            folded past ones, whose bytes grow by one adapter a task, or stop at ``rank``.
        rank: of the past in mode "merge": what is more is cut by SVD of the factors. None: all is kept.
        seed: of fresh adapters.
    """

    def __init__(self, model: nn.Module, *, mode: Mode = "shared", rank: int | None = None, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.mode, self.rank = check_mode(mode, rank), rank

    @classmethod
    def check(cls, **keywords: Any) -> None:
        check_mode(keywords["mode"], keywords["rank"])

    @property
    def growth(self) -> int:
        return self.adapter_bytes if self.mode == "merge" and self.rank is None else 0

    def end_task(self, task: Task) -> None:
        if self.mode == "merge":
            self.fold(self.rank)
        super().end_task(task)
