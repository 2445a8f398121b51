"""Rows of finished tasks: which of them are kept, and how rows of several tasks become one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retain.task import IGNORED, Batch, Draws, Task, on_device

# A batch by name; what is no mapping, (inputs, targets), under "0" and "1".
Rows = Mapping[str, Tensor]
READ = 256  # rows whose labels are read at a time


def named(batch: Batch) -> dict[str, Tensor]:
    """``batch`` with names for its tensors."""
    return dict(batch) if isinstance(batch, Mapping) else {str(i): x for i, x in enumerate(batch)}


def as_batch(rows: Rows) -> Batch:
    """What ``named`` was given."""
    return tuple(rows[str(i)] for i in range(len(rows))) if "0" in rows else dict(rows)


def targets_of(rows: Rows) -> Tensor:
    """The targets (n, ...) among ``rows``."""
    return rows["labels"] if "labels" in rows else rows["1"]


def classes_of(targets: Tensor) -> Tensor:
    """The class (n,) of every row; 0 for all where ``targets`` (n, ...) are sequences or no classes."""
    return targets if targets.dim() == 1 and not targets.is_floating_point() else torch.zeros(len(targets)).long()


def first_targets(task: Task) -> Tensor:
    """The targets (1, ...) of some row of ``task``."""
    _, batch = next(task.take(task.order()[:1], 1))
    return targets_of(named(batch))


def classes_in(task: Task) -> Tensor:
    """The class (N,) of every training row of ``task``, in their own order, as ``classes_of`` has it."""
    every = task.order()
    if first_targets(task).dim() > 1:
        return torch.zeros(len(every)).long()
    return torch.cat([classes_of(targets_of(named(batch)).cpu()) for _, batch in task.take(every, READ)])


def read(task: Task, numbers: Tensor, padding: int = 0) -> dict[str, Tensor]:
    """The training rows ``numbers`` (n,), ascending, of ``task`` as one batch on the CPU.

    Raises:
        ValueError: rows that differ in shape and cannot be padded.
    """
    pieces = [named(on_device(batch, torch.device("cpu"))) for _, batch in task.take(numbers, len(numbers))]
    (_, rows), *others = stacked(pieces, padding)
    if others:
        raise ValueError(
            f"task {task.name!r}: its rows differ in shape, and without an attention_mask they cannot be padded"
        )
    return {name: x.clone() for name, x in rows.items()}


def padding_of(model: Any) -> int:
    """The token that ``model`` takes for padding; 0 where it says none."""
    return getattr(getattr(model, "config", None), "pad_token_id", None) or 0


def stacked(pieces: Sequence[Rows], padding: int = 0) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Make as few batches of ``pieces`` as there are shapes.

    Token rows that come with an ``attention_mask`` are padded on the right to one length, their labels with -100, and
    cut where no row has a token. Labels of an encoder-decoder have a length of their own.

    Args:
        pieces: rows by name, (n_i, ...) each.
        padding: the token to pad with.

    Yields:
        The numbers of the pieces in a batch, and their rows, (sum n_i, ...), one piece after the other.
    """
    alike: dict[Any, list[int]] = {}
    for number, piece in enumerate(pieces):
        tokens = _token_rows(piece)
        shape = tuple((n, x.dtype, None if n in tokens else x.shape[1:]) for n, x in sorted(piece.items()))
        alike.setdefault(shape, []).append(number)
    for numbers in alike.values():
        yield numbers, _joined([pieces[i] for i in numbers], {"labels": IGNORED, "input_ids": padding})


def _token_rows(piece: Rows) -> set[str]:
    """The names of what has a number for every token."""
    if (mask := piece.get("attention_mask")) is None:
        return set()
    found = {name for name, x in piece.items() if x.dim() == 2 and x.shape == mask.shape} - {"labels"}
    labels = piece.get("labels")
    return found | (
        {"labels"} if labels is not None and labels.dim() == 2 and not labels.is_floating_point() else set()
    )


def _joined(pieces: Sequence[Rows], fill: Mapping[str, int]) -> dict[str, Tensor]:
    tokens = _token_rows(pieces[0])
    longest = {name: max(piece[name].shape[1] for piece in pieces) for name in tokens}

    def padded(name: str, x: Tensor) -> Tensor:
        return F.pad(x, (0, longest[name] - x.shape[1]), value=fill.get(name, 0)) if name in tokens else x

    whole = {name: torch.cat([padded(name, piece[name]) for piece in pieces]) for name in pieces[0]}
    if tokens:
        used = dict.fromkeys(tokens, _length(whole["attention_mask"] != 0))
        if "labels" in tokens:
            used["labels"] = _length(whole["labels"] != IGNORED)
            if whole["labels"].shape == whole["attention_mask"].shape:  # a label for every token
                used = dict.fromkeys(tokens, max(used.values()))
        whole |= {name: whole[name][:, : used[name]] for name in tokens}
    return whole


def _length(used: Tensor) -> int:
    """How many columns of ``used`` (N, T) there are up to the last that any row uses, at least one."""
    return max(used.any(0).nonzero()[:, 0].tolist(), default=0) + 1


def keys(numbers: Tensor, seed: int) -> Tensor:
    """A random number (n,) in [0, 1) for each of the rows ``numbers`` (n,), which depends on it and ``seed`` alone."""
    return Draws(numbers, seed).uniform(torch.ones(len(numbers), dtype=torch.bool))


def chosen(keys: Tensor, cells: Tensor, count: int) -> Tensor:
    """Which ``count`` of n rows are kept, in ascending order: cells take turns, and give their row of the lowest key.

    One cell is reservoir sampling: every row is as likely to be kept. With several all have as many rows, but for one
    and for those that have no more. Choosing among what was chosen before and the rows of a new cell is choosing
    among all rows ever seen.

    Args:
        keys: (n,) as from ``keys``.
        cells: (n,) the number of the cell that a row is in.
        count: of rows; all, if there are fewer.
    """
    order = keys.argsort(stable=True)
    turn = torch.empty_like(order)
    for cell in cells.unique():
        mine = order[cells[order] == cell]
        turn[mine] = torch.arange(len(mine))
    return order[turn[order].argsort(stable=True)][:count].sort().values


def widened(outputs: Tensor, count: int) -> Tensor:
    """``outputs`` (n, C), or numbers (n,) of a model with one, as those of ``count``: what is new stands at -inf."""
    known = outputs.reshape(len(outputs), -1)
    return outputs if count == known.shape[1] else F.pad(known, (0, count - known.shape[1]), value=float("-inf"))
