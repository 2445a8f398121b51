"""A task's rows: counted, chosen, batched, and run forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, default_collate

from retain.metrics import Metric
from retain.task.likelihood import CrossEntropy, Loss

Batch = Mapping[str, Tensor] | Sequence[Tensor]
Data = DataLoader | Dataset | Sequence[Batch]
Forward = Callable[[Any, Batch], tuple[Tensor, Tensor]]


def forward(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs (N, ..., C) and targets (N, ...) of ``batch``, aligned so that outputs[..., :] predict targets[...].

    A mapping with ``labels`` goes to a Hugging Face model, whose logits or forecasts are returned (a causal language
    model's are shifted by one token; an encoder-decoder is given the labels, of which it makes its decoder's inputs); a
    pair ``(inputs, targets)`` goes to a plain module.

    Raises:
        ValueError: a mapping without labels, or a model that gives no logits: the task needs a ``forward`` of its own.
    """
    if not isinstance(batch, Mapping):
        inputs, targets = batch
        return model(inputs), targets
    kwargs = dict(batch)
    if "labels" not in kwargs:
        raise ValueError(f"a batch has no 'labels', only {', '.join(kwargs)}: name them so, or give Task a forward")
    targets = kwargs["labels"] if has_decoder(model) else kwargs.pop("labels")
    outputs = model(**kwargs)
    if (said := said_in(outputs)) is None:
        raise ValueError(_without_logits(model, outputs))
    return aligned(model, said, targets)


def said_in(outputs: Any) -> Any:
    """The logits of what a Hugging Face model gives, or its forecasts; None if there are neither."""
    logits = getattr(outputs, "logits", None)
    return getattr(outputs, "prediction_outputs", None) if logits is None else logits


def aligned(model: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets, shifted by one token against each other for a causal language model.

    One number a row, (N, 1), which targets (N,) of floats ask for, loses its last dimension.
    """
    if targets.is_floating_point() and outputs.shape == (*targets.shape, 1):
        return outputs.squeeze(-1), targets
    if targets.is_floating_point() or outputs.dim() < 3 or getattr(model, "config", None) is None:
        return outputs, targets
    if has_decoder(model) or not model.can_generate():
        return outputs, targets
    return outputs[:, :-1], targets[:, 1:]


def has_decoder(model: Any) -> bool:
    """Whether ``model`` is an encoder-decoder: what it reads and what it writes are sequences of their own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _without_logits(model: Any, outputs: Any) -> str:
    kind = type(getattr(model, "get_base_model", lambda: model)()).__name__
    if getattr(outputs, "logits_per_image", None) is not None:
        return (
            f"{kind} compares the rows of a batch with each other, so that no row has a loss of its own and importance "
            "per example is not defined; give a task the texts to choose among, "
            "Task(..., forward=AmongTexts(texts), one_by_one=True)"
        )
    return f"{kind} gives no logits: it needs a forward of its own, Task(..., forward=...)"


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    ``train`` and ``test`` are a DataLoader, a list of batches, or a data set of rows that ``collate`` makes into a
    batch. Only rows that can be counted and read again will do: importance is measured on a second, deterministic
    pass. ``known`` is whether a row's task is said at test; if not, the classes of all tasks learned so far compete.
    ``forward`` makes of a model and a batch the outputs and targets that ``loss`` compares, row by row; in eval
    mode it must give a row the same ones every time. ``one_by_one`` runs that pass one row at a time, for models that
    make of a batch of rows another number of examples on the way. ``metric`` is the score of the test rows; others than
    accuracy take outputs (N, C), of which one is a row's class, or numbers, (N,) or more a row where the metric is an
    error. Targets of numbers are in ``unit``, and the metric is not: an error is so many times theirs.
    """

    name: str
    train: Any
    test: Any = None
    loss: Loss = field(default_factory=CrossEntropy)
    collate: Callable[[list], Batch] | None = None
    known: bool = True
    forward: Forward = forward
    one_by_one: bool = False
    metric: Metric = "accuracy"
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"a task's name must not be empty and have no '/' (it names folders): {self.name!r}")
        sized = isinstance(self.train, Sized) and not isinstance(self.train, DataLoader)
        if sized and not len(self.train) and self.test is None:  # what is scored alone needs no training rows
            raise ValueError(self._empty)
        for number, batch in enumerate(self.train) if _in_batches(self) else ():
            if amiss := _amiss(batch):
                raise ValueError(
                    f"task {self.name!r}: a list without `collate` is one of batches, and its element {number} is "
                    f"none: {amiss}. If its elements are rows, give collate=..."
                )

    @property
    def _empty(self) -> str:
        return f"task {self.name!r} has no training rows"

    def batches(self, batch_size: int, samples: int | None = None, seed: int = 0) -> Iterator[tuple[Tensor, Batch]]:
        """The training rows in their own order, or a seeded subset of ``samples`` without replacement.

        Yields (row numbers (n,), batch of n rows); the row numbers do not depend on ``batch_size``.
        """
        order = self.order(seed)
        return self.take(order[:samples] if samples is not None else order, batch_size)

    def order(self, seed: int = 0) -> Tensor:
        """The numbers of all training rows (N,), shuffled by ``seed``."""
        count = sum(map(rows_in, self.train)) if _in_batches(self) else len(rows_of(self.train, self.collate)[0])
        if count == 0:
            raise ValueError(self._empty)
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def measured(self, numbers: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """``take`` for passes that tell the examples of a batch apart."""
        return self.take(numbers, 1 if self.one_by_one else batch_size)

    def take(self, numbers: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """(row numbers (n,), batch of n rows), n <= ``batch_size``, of the rows ``numbers`` (M,) from first to last."""
        numbers = numbers.sort().values
        if _in_batches(self):
            yield from _rebatched(self.train, numbers, batch_size)
            return
        rows, collate = rows_of(self.train, self.collate)
        for chunk in numbers.split(batch_size) if len(numbers) else ():
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
    """All rows of ``tasks`` as one task (the joint upper bound); they must share loss, collate and forward.

    Where the task of a row is not known at test, the classes of all tasks compete in training too.
    """
    last = tasks[-1]
    loss = last.loss if last.known or not isinstance(last.loss, CrossEntropy) else CrossEntropy()
    whole = partial(replace, last, name="joint", test=None, loss=loss)
    if all(_in_batches(task) for task in tasks):
        return whole(train=[batch for task in tasks for batch in task.train])
    rows = [rows_of(task.train, task.collate) for task in tasks]
    return whole(train=ConcatDataset([r for r, _ in rows]), collate=rows[-1][1])


def on_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` on ``device``."""
    if isinstance(batch, Mapping):
        return {k: v.to(device) for k, v in batch.items()}
    return tuple(v.to(device) for v in batch)


def _in_batches(task: Task) -> bool:
    return isinstance(task.train, list | tuple) and task.collate is None


def _amiss(batch: Any) -> str:
    """Why ``batch`` is none; empty if it may be one: a mapping or a sequence of tensors with a dimension of rows."""
    if not isinstance(batch, Mapping | Sequence) or isinstance(batch, str) or not len(batch):
        return f"a {type(batch).__name__}, not a mapping or a pair of tensors"
    parts = list(batch.items() if isinstance(batch, Mapping) else enumerate(batch))
    for key, value in parts:
        if not isinstance(value, Tensor):
            return f"{key!r} holds a {type(value).__name__}, not a tensor"
        if not value.dim() or (key == "input_ids" and value.dim() == 1):
            return f"{key!r} has the shape {tuple(value.shape)}, without a dimension of rows"
    lengths = {str(key): len(value) for key, value in parts}
    if len(set(lengths.values())) > 1:
        return f"its tensors have different numbers of rows ({', '.join(f'{k}: {n}' for k, n in lengths.items())})"
    return ""


def rows_in(batch: Batch) -> int:
    """How many rows ``batch`` has."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


def _rebatched(batches: Sequence[Batch], chosen: Tensor, size: int) -> Iterator[tuple[Tensor, Batch]]:
    start = 0
    for batch in batches:
        length = rows_in(batch)
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
