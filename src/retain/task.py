"""A task: its rows, and how a model's outputs on them become a negative log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, default_collate

Batch = Mapping[str, Tensor] | Sequence[Tensor]
Data = DataLoader | Dataset | Sequence[Batch]
Labels = Literal["sample", "data", "exact", "predicted"]
IGNORED = -100


def forward(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs (N, ..., C) and targets (N, ...) of ``batch``, aligned so that outputs[..., :] predict targets[...].

    A mapping with ``labels`` goes to a Hugging Face model, whose logits are returned (a causal language model's are
    shifted by one token); a pair ``(inputs, targets)`` goes to a plain module.
    """
    if not isinstance(batch, Mapping):
        inputs, targets = batch
        return model(inputs), targets
    kwargs = dict(batch)
    targets = kwargs.pop("labels")
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=targets)
        return model(**kwargs).logits, targets
    return aligned(model, model(**kwargs).logits, targets)


def aligned(model: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets, shifted by one token against each other for a causal language model."""
    config: Any = getattr(model, "config", None)
    if outputs.dim() < 3 or config is None or config.is_encoder_decoder or not model.can_generate():
        return outputs, targets
    return outputs[:, :-1], targets[:, 1:]


class Loss(Protocol):
    """A predictive distribution p(y | outputs)."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log p(targets | outputs) of each example (N,), summed over the example's targets (tokens)."""

    def targets(
        self, labels: Labels, outputs: Tensor, targets: Tensor, uniform: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (weights (N,), targets) whose weighted squared scores add up to the Fisher of ``labels``."""


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Categorical likelihood over the last dimension of the outputs (N, C) or (N, T, C); targets of -100 are left out.

    ``groups`` (C,) names the task that owns each class: only the classes of a label's own task compete with it (the
    local cross-entropy of class-incremental learning), everything else about that label is as if the other heads
    did not exist.
    """

    groups: Tensor | None = None

    def restrict(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs with the classes of other tasks than the target's at -inf."""
        if self.groups is None:
            return outputs
        groups = self.groups.to(outputs.device)
        return outputs.masked_fill(groups != groups[targets.clamp(min=0)].unsqueeze(-1), float("-inf"))

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = precise(self.restrict(outputs, targets).movedim(-1, 1))
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return losses.reshape(len(losses), -1).sum(1)

    def targets(
        self, labels: Labels, outputs: Tensor, targets: Tensor, uniform: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        probabilities = precise(self.restrict(outputs.detach(), targets)).softmax(-1)
        ones, ignored = torch.ones(len(targets), device=outputs.device), targets == IGNORED
        if labels == "data":
            yield ones, targets
        elif labels == "predicted":
            yield ones, probabilities.argmax(-1).masked_fill(ignored, IGNORED)
        elif labels == "sample":
            cumulative = probabilities.cumsum(-1)
            drawn = (cumulative <= (uniform.to(cumulative) * cumulative[..., -1]).unsqueeze(-1)).sum(-1)
            yield ones, drawn.masked_fill(ignored, IGNORED)
        elif outputs.dim() > 2:
            raise ValueError("labels='exact' enumerates classes and cannot enumerate sequences; use labels='sample'")
        else:
            for c in (probabilities != 0).any(0).nonzero()[:, 0]:
                yield probabilities[:, c], torch.full_like(targets, int(c)).masked_fill(ignored, IGNORED)


@dataclass(frozen=True)
class SquaredError:
    """Gaussian likelihood of unit variance: -log p = 1/2 ||outputs - targets||^2 + const, summed within an example."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must have one shape")
        return 0.5 * (outputs - targets).square().reshape(len(outputs), -1).sum(1)

    def targets(
        self, labels: Labels, outputs: Tensor, targets: Tensor, uniform: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        ones, mean = torch.ones(len(outputs), device=outputs.device), outputs.detach()
        if labels == "data":
            yield ones, targets
        elif labels == "predicted":
            raise ValueError(
                "labels='predicted' gives a Gaussian no score at all: its Fisher would be zero; use labels='sample'"
            )
        elif labels == "sample":
            yield ones, mean + torch.erfinv(2 * uniform.to(mean).clamp(1e-6, 1 - 1e-6) - 1) * 2**0.5
        else:
            basis = torch.eye(mean[0].numel(), device=mean.device, dtype=mean.dtype)
            for direction in basis:
                yield ones, mean + direction.reshape(mean[0].shape)


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    ``train`` and ``test`` are a DataLoader, a list of batches, or a data set of rows that ``collate`` makes into a
    batch. Only
    rows that can be counted and read again will do: importance is measured on a second, deterministic pass.
    """

    name: str
    train: Any
    test: Any = None
    loss: Loss = field(default_factory=CrossEntropy)
    collate: Callable[[list], Batch] | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"a task's name must not be empty and have no '/' (it names folders): {self.name!r}")

    def batches(self, batch_size: int, samples: int | None = None, seed: int = 0) -> Iterator[tuple[Tensor, Batch]]:
        """The training rows in their own order, or a seeded subset of ``samples`` without replacement.

        Yields (row numbers (n,), batch of n rows); the row numbers do not depend on ``batch_size``.
        """
        if _in_batches(self):
            yield from _rebatched(self.train, batch_size, samples, seed)
            return
        rows, collate = rows_of(self.train, self.collate)
        for chunk in _subset(len(rows), samples, seed).split(batch_size):
            yield chunk, collate([rows[int(i)] for i in chunk])


def rows_of(data: Any, collate: Callable | None) -> tuple[Any, Callable]:
    """A data set of rows and what makes a batch of them."""
    if isinstance(data, DataLoader):
        data, collate = data.dataset, data.collate_fn
    try:
        len(data)
    except TypeError as error:
        raise ValueError(
            f"a task needs rows that can be counted and read again; a {type(data).__name__} cannot"
        ) from error
    return data, collate or default_collate


def joined(tasks: Sequence[Task]) -> Task:
    """All rows of ``tasks`` as one task (the joint upper bound); losses and collate functions must be shared."""
    if all(_in_batches(task) for task in tasks):
        return Task("joint", [batch for task in tasks for batch in task.train], loss=tasks[-1].loss)
    rows = [rows_of(task.train, task.collate) for task in tasks]
    return Task("joint", ConcatDataset([r for r, _ in rows]), loss=tasks[-1].loss, collate=rows[-1][1])


def draw(targets: Tensor, outputs: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Uniform numbers for the targets (N, ...) of numbered rows, the same in whatever batch or padding a row stands."""
    shape = (targets if not targets.is_floating_point() else outputs).detach().cpu()
    uniform = torch.zeros(shape.shape)
    generator = torch.Generator()
    for row, number, target in zip(uniform, rows, shape, strict=True):
        generator.manual_seed(hash((seed, int(number))) % 2**63)
        used = target != IGNORED
        row[used] = torch.rand(int(used.sum()), generator=generator)
    return uniform


def on_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` on ``device``."""
    if isinstance(batch, Mapping):
        return {k: v.to(device) for k, v in batch.items()}
    return tuple(v.to(device) for v in batch)


def precise(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or better if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_pass(labels: str, samples: int | None, batch_size: int) -> None:
    """Refuse a Fisher pass with unknown labels, or without examples."""
    if labels not in get_args(Labels):
        raise ValueError(f"unknown labels {labels!r}; known: {', '.join(get_args(Labels))}")
    if batch_size < 1 or (samples is not None and samples < 1):
        raise ValueError(f"samples and batch_size must be at least 1, got {samples} and {batch_size}")


def _in_batches(task: Task) -> bool:
    return isinstance(task.train, list | tuple) and task.collate is None


def _subset(n: int, samples: int | None, seed: int) -> Tensor:
    if n == 0:
        raise ValueError("a task has no training rows")
    if samples is None or samples >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:samples].sort().values


def _rebatched(batches: Sequence[Batch], size: int, samples: int | None, seed: int) -> Iterator[tuple[Tensor, Batch]]:
    lengths = [len(next(iter(b.values())) if isinstance(b, Mapping) else b[0]) for b in batches]
    chosen, start = _subset(sum(lengths), samples, seed), 0
    for batch, length in zip(batches, lengths, strict=True):
        mine = chosen[(chosen >= start) & (chosen < start + length)]
        for chunk in mine.split(size) if len(mine) else ():
            index = chunk - start
            if isinstance(batch, Mapping):
                yield chunk, {k: v[index.to(v.device)] for k, v in batch.items()}
            else:
                yield chunk, tuple(v[index.to(v.device)] for v in batch)
        start += length


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The block runs in eval mode; every module then gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
