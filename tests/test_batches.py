"""Padded or packed, every row is seen alone."""

from __future__ import annotations

import pytest
import torch
import transformers

from models import BODY, bare_gpt2, bare_llama, seeded
from retain.batches import Padded, packed
from retain.task import IGNORED, CrossEntropy, forward

ROWS = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
    {"input_ids": [9], "labels": [IGNORED]},
    {"input_ids": [10, 11], "labels": [10, 11]},  # a label that only what stands before it could tell
    {"input_ids": [12, 13, 14], "labels": [IGNORED, 13, 14]},
]


def bare_qwen() -> torch.nn.Module:
    settings = BODY | {"vocab_size": 48, "num_key_value_heads": 1}
    return seeded(lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings, head_dim=16)))


def test_padding_is_neither_seen_nor_learned() -> None:
    batch = Padded(3)(ROWS)
    assert batch["input_ids"][2].tolist() == [10, 11, 3, 3] and batch["labels"][1].tolist() == [IGNORED] * 4
    assert batch["attention_mask"].sum(1).tolist() == [4, 1, 2, 3]
    assert all(values.dtype == torch.long for values in batch.values())


@pytest.mark.parametrize("build", [bare_llama, bare_gpt2, bare_qwen])
def test_packed_rows_see_nothing_of_each_other(build) -> None:
    model, loss = build().eval(), CrossEntropy()
    with torch.no_grad():
        alone = [loss.nll(*forward(model, Padded(0)([row]))) for row in ROWS]
        together = loss.nll(*forward(model, packed(ROWS)))
        leaking = loss.nll(*forward(model, {k: v for k, v in packed(ROWS).items() if k != "position_ids"}))
    assert together.item() == pytest.approx(torch.cat(alone).sum().item(), rel=1e-5)
    assert leaking.item() != pytest.approx(together.item(), rel=1e-4)
