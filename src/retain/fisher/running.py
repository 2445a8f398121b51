"""The Fisher information while a task trains: short estimates from time to time, averaged with a fading memory.

An estimate is a pass of its own over a few rows, with labels from the model. What training does with its gradients
(penalties, clipping, accumulation, loss scales, the size of a batch) has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from retain.task import Task


class Running:
    """A <- decay A + (1 - decay) F over estimates F by name; its mean is A / (1 - decay^k) after k of them.

    A starts at zero, which the division takes out: the mean is that of the estimates, weighted by decay^age.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.totals: dict[str, Tensor] = {}
        self.count = 0

    def add(self, estimate: Iterable[tuple[str, Tensor]]) -> None:
        """Add one estimate, a tensor at a time; the tensors are taken over."""
        for name, new in estimate:
            new.mul_(1 - self.decay)
            self.totals[name] = self.totals[name].mul_(self.decay).add_(new) if name in self.totals else new
        self.count += 1

    def means(self) -> Iterator[tuple[str, Tensor]]:
        """The mean of every tensor, from first to last; each is handed over."""
        for name in list(self.totals):
            yield name, self.totals.pop(name).div_(1 - self.decay**self.count)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors: all that there is to keep."""
        return {"count": torch.tensor(self.count)} | {f"running/{name}": A for name, A in self.totals.items()}

    def load(self, state: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> None:
        """Take back what ``state`` gave, of tensors called ``names``.

        Raises:
            ValueError: the state is of other tensors, with the name of one.
        """
        totals = {key.removeprefix("running/"): A for key, A in state.items() if key.startswith("running/")}
        if totals and (odd := totals.keys() ^ set(names)):
            raise ValueError(f"a running Fisher of other tensors: only here or only there is {min(odd)}")
        self.totals = {name: totals[name].to(device, copy=True) for name in names if totals}
        self.count = int(state["count"])


def part_of(task: Task, numbers: Tensor, batch_size: int) -> Task:
    """The rows ``numbers`` (n,) of ``task`` as a task of batches."""
    return replace(task, train=[batch for _, batch in task.take(numbers, batch_size)], test=None, collate=None)


def probes(task: Task, count: int, rows: int, seed: int) -> list[Tensor]:
    """At most ``count`` disjoint sets of at most ``rows`` row numbers, all of one size, in random order."""
    order = task.order(seed)
    count = min(count, len(order))
    size = min(rows, len(order) // count)
    return list(torch.split(order[: count * size], size))
