"""One sweep over a task's rows: look at their scores, choose among them, and run the chosen ones backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_type_hints

import torch
from torch import Tensor, nn

from retain import ranks
from retain.fisher.sampling import LOOKS, WORTH, Tally, concentration, drawn, every
from retain.mistakes import Within, check_types
from retain.sharding import in_step, is_sharded
from retain.task import Draws, Labels, Task, evaluating, on_device

START = 64  # draws with which ``samples="auto"`` begins: from fewer, a standard error means nothing
CLOSE = 0.25  # of the variance that is due to labels: what is left for more draws to mend is not worth them
AGAIN = 8  # one in so many examples is labelled once more, to see what labels leave to chance
PEEK = 256  # rows that tell whether importance sampling will help
# With "auto" a plain mean over START rows might stop at once, so that more are looked at: of rows of which one in a
# hundred holds most of the scores, that few have none every other time.
PEEK_AUTO = START * LOOKS

Samples = int | Literal["auto"] | None
Progress = Callable[[int, int], None]


class Gather(Protocol):
    """What a backward pass is gathered into."""

    def over(self, model: nn.Module, dtype: torch.dtype | None = None) -> AbstractContextManager:
        """A block within which ``model`` runs forward and backward; products may be of ``dtype``, if one is given."""

    def start(self, n: int) -> None:
        """The next forward is a batch of ``n`` examples."""

    def backward(self, outputs: Tensor, scores: list[Tensor]) -> Tensor:
        """Gather the backward passes of ``scores``; returns (n,), the value of each example."""


@dataclass(frozen=True)
class Sweep:
    """How rows are chosen, and how they run; the keywords of ``measure``."""

    model: nn.Module
    task: Task
    labels: Labels = "mixture"
    temperature: float = 1.0
    samples: Samples = None
    error: float = 0.1
    batch_size: int = 16
    dtype: Literal["bfloat16"] | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_pass(**{key: getattr(self, key) for key in PASS})
        if self.labels == "exact" and is_sharded(self.model):
            raise ValueError(
                "labels='exact' runs a batch backward once for every class that it may have, and a model in parts "
                "(FSDP2) must run as often in every process; use labels='mixture'"
            )

    def run(self, gather: Gather, again: Gather | None = None) -> Tally:
        """Gather as many examples as are asked for; returns the tally of their values.

        ``again`` takes the few that are given other labels, for what their values tell of the error.
        """
        order = self.task.order(self.seed)
        rows, end = len(order), 0
        tally, energies = Tally(rows), torch.zeros(0, dtype=torch.float64)
        generator = torch.Generator().manual_seed(_other(self.seed))
        draws = min(rows if self.samples is None else START if self.samples == "auto" else self.samples, rows)
        if draws < rows:
            energies = self._look(order[: PEEK_AUTO if self.samples == "auto" else PEEK])
        focused = concentration(energies) >= WORTH
        while True:
            wanted = draws * LOOKS if focused else draws
            start = end if end + wanted <= rows else 0  # with too few rows left for a pool, draw from all of them
            end = min(start + wanted, rows)
            if focused:
                energies = torch.cat([energies, self._look(order[len(energies) : end])])
            sample = drawn(energies[start:end], draws, generator) if focused else every(end - start)
            chosen = order[start:end][sample.chosen]
            values = self._backward(chosen, sample.weights, gather, self.seed)
            tally.add(slice(start, end), sample, values)
            if again and self.labels in ("mixture", "sample"):
                some = drawn(sample.weights * values.square(), max(1, len(chosen) // AGAIN), generator)
                others = self._backward(chosen[some.chosen], None, again, _other(self.seed))
                tally.relabel(sample, values, some, others)
            if self._enough(tally):
                return tally
            draws = min(int(tally.draws), rows - int(tally.draws))

    def _enough(self, tally: Tally) -> bool:
        if self.samples != "auto" or tally.draws >= len(tally.share) or tally.error <= self.error:
            return True
        return tally.looked == len(tally.share) and tally.chance <= CLOSE * tally.labels

    def _look(self, rows: Tensor) -> Tensor:
        """(R,) squared scores of ``rows`` (R,), from one forward pass."""
        found = torch.zeros(len(rows), device=self._device)
        with evaluating(self.model), torch.no_grad():
            for places, _, scores in self._forward(rows, self.seed):
                for score in scores:
                    found[places] += score.flatten(1).square().sum(1).float()
        return ranks.add_up(found).double().cpu()

    def _backward(self, rows: Tensor, weights: Tensor | None, gather: Gather, seed: int) -> Tensor:
        """(n,) values of ``rows`` (n,), which are gathered with ``weights`` (n,) and labels drawn with ``seed``."""
        found, done = torch.zeros(len(rows), device=self._device), 0
        plain = weights is None or bool((weights == 1).all())
        with evaluating(self.model), torch.enable_grad(), gather.over(self.model, self._half):
            for places, outputs, scores in self._forward(rows, seed, gather.start):
                if not outputs.requires_grad:
                    raise RuntimeError("the model's outputs do not depend on anything whose importance was asked for")
                if weights is not None and not plain and len(places):
                    roots = weights[places].sqrt().reshape(-1, *[1] * (outputs.dim() - 1))
                    scores = (score * roots.to(score) for score in scores)
                found[places] = gather.backward(outputs, [score.to(outputs.dtype) for score in scores]).to(found)
                done += len(places)
                if self.progress and weights is not None:
                    self.progress(done, len(rows))
        values = ranks.add_up(found).double().cpu()
        return values if weights is None else values / weights

    def _forward(
        self, rows: Tensor, seed: int, start: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Iterator[Tensor]]]:
        """(places in ``rows``, outputs, scores) of each batch of this process; scores of zero have no place."""
        mine, done = rows.argsort()[ranks.share()], 0
        batches, spare = self.task.measured(rows[mine], self.batch_size), self.task.measured(rows[:1], 1)
        for (numbers, batch), counts in in_step(self.model, batches, spare):
            places = mine[done : done + len(numbers) * counts]
            done += len(places)
            if start:
                start(len(numbers))
            with torch.autocast(self._device.type, self._half, enabled=self._half is not None):
                outputs, targets = self.task.forward(self.model, on_device(batch, self._device))
            draws = Draws(numbers, seed)
            scores = self.task.loss.scores(self.labels, outputs, targets, draws, self.temperature)
            yield places, outputs, scores if counts else (torch.zeros_like(score) for score in scores)

    @property
    def _half(self) -> torch.dtype | None:
        return None if self.dtype is None else torch.bfloat16

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


PASS = {key: kind for key, kind in get_type_hints(Sweep).items() if key not in ("model", "task", "seed", "progress")}


def check_pass(**given: Any) -> None:
    """Refuse keywords of a ``Sweep`` with values of the wrong type, without examples, or to no end.

    Raises:
        ValueError: what came and what is allowed, in one line.
    """
    check_types(given, PASS)
    for key in ("samples", "batch_size"):
        if isinstance(value := given.get(key), int) and value < 1:
            raise Within(key, f"{value} is not allowed; expected at least 1")
    for key in ("temperature", "error"):
        if not 0 < (value := given.get(key, 1.0)) < math.inf:
            raise Within(key, f"{value} is not allowed; expected a number above 0")


def _other(seed: int) -> int:
    """A seed whose numbers have nothing to do with those of ``seed`` and a row."""
    return hash((seed, -1)) % 2**63
