"""Rows of tokens -> a batch: padded to one length, or packed end to end without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retain.task import IGNORED

Row = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Padded:
    """Rows of ``input_ids`` and ``labels`` -> (N, T) each, and their ``attention_mask``, padded on the right."""

    padding: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        length = max(len(row["input_ids"]) for row in rows)

        def filled(key: str, value: int) -> Tensor:
            return torch.tensor([[*row[key], *[value] * (length - len(row[key]))] for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": filled("input_ids", self.padding),
            "attention_mask": (torch.arange(length) < lengths.unsqueeze(1)).long(),
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
