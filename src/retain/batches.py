"""Rows of tokens -> a batch: padded to one length, or packed end to end without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from retain.task import IGNORED, Task, evaluating, forward, has_decoder

Row = Mapping[str, Sequence[int]]

SOME = 256  # rows that are looked at to see how long they are
CHECKED, LEAK = 32, 1e-3  # tokens of a row that packing is tried on; share of their loss that it may change


@dataclass(frozen=True)
class Padded:
    """Rows of ``input_ids`` and ``labels`` -> (N, T) each, and their ``attention_mask``, padded on the right.

    Labels of an encoder-decoder have a length of their own.
    """

    padding: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        def filled(key: str, value: int) -> Tensor:
            length = max(len(row[key]) for row in rows)
            return torch.tensor([[*row[key], *[value] * (length - len(row[key]))] for row in rows])

        ids, lengths = filled("input_ids", self.padding), torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long(),
            "labels": filled("labels", IGNORED),
        }


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of ``input_ids`` and ``labels`` end to end as one, (1, T); ``position_ids`` start anew with every row.

    Without an attention mask and a cache, transformers keeps rows apart where positions start anew. The first token
    of a row is no target: what stands before it is another row's.
    """
    labels = [[IGNORED, *row["labels"][1:]] for row in rows]
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row["input_ids"]))]]),
        "labels": torch.tensor([[label for row in labels for label in row]]),
        "use_cache": False,
    }


def length_of(rows: Any) -> float:
    """Tokens of a row of ``rows``, on average over some of them; 1 if they are no rows of tokens."""
    if isinstance(rows, ConcatDataset):
        parts: list[Any] = rows.datasets
        return sum(len(part) * length_of(part) for part in parts) / len(rows)
    if not isinstance(rows, datasets.Dataset) or "input_ids" not in rows.column_names:
        return 1.0
    some = rows[:: max(1, len(rows) // SOME)]["input_ids"]
    return sum(map(len, some)) / len(some)


def with_decoder_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``batch`` with what an encoder-decoder makes of its labels, where these will not reach the model."""
    found = dict(batch)
    if has_decoder(model):
        base = getattr(model, "get_base_model", lambda: model)()
        found["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels=found["labels"])
    return found


def tokens_of(model: Any, task: Task) -> float:
    """Target tokens that a training row of ``task`` has for ``model``, on average; 1 if its rows are not sequences."""
    rows = task.train
    if not isinstance(rows, datasets.Dataset) or not isinstance(own := rows[0].get("labels"), list):
        return 1.0
    if own and not isinstance(own[0], int):  # numbers of one example
        return 1.0
    first = 0 if has_decoder(model) else 1  # nothing stands before a causal model's first token
    return sum(sum(label != IGNORED for label in labels[first:]) for labels in rows["labels"]) / len(rows)


@torch.no_grad()
def check_packing(model: Any, task: Task) -> None:
    """See that two rows of ``task`` have the same loss end to end as each alone.

    Raises:
        ValueError: they have not, or the task has a forward of its own.
    """
    if task.forward is not forward:
        raise ValueError(f"packing: task {task.name!r} has a forward of its own, which takes its rows side by side")
    tokens = [task.train[i]["input_ids"][:CHECKED] for i in (0, len(task.train) - 1)]
    rows, device = [{"input_ids": ids, "labels": ids} for ids in tokens], next(model.parameters()).device

    def lost(*rows: Row) -> float:
        batch = packed(rows)
        on_device = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}
        return float(task.loss.nll(*forward(model, on_device)).sum())

    with evaluating(model):
        alone, together = sum(map(lost, rows)), lost(*rows)
    if abs(alone - together) > LEAK * alone:
        raise ValueError(
            f"packing: two rows have a loss of {alone:.4f} apart and of {together:.4f} end to end: this model "
            "lets packed rows see each other (its attention does not follow position_ids); train without packing"
        )
