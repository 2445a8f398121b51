"""Padded or packed, every row is seen alone."""

from __future__ import annotations

import datasets
import pytest
import torch
import transformers

from models import BODY, adapted, bare_bert, bare_gpt2, bare_llama, bare_t5, seeded, tiny_llama
from retain.batches import Padded, check_packing, packed, tokens_of
from retain.callback import ContinualCallback
from retain.hf import fit
from retain.method import Method
from retain.methods import EWCLoRA
from retain.task import IGNORED, CrossEntropy, SquaredError, Task, forward

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


def test_a_model_that_lets_packed_rows_see_each_other_is_refused() -> None:
    class Mixing(torch.nn.Module):
        """Adds what stands in the whole row to every place of it."""

        config = bare_llama().config

        def __init__(self) -> None:
            super().__init__()
            self.inner = bare_llama()

        def can_generate(self) -> bool:
            return True

        def forward(self, **batch):
            outputs = self.inner(**batch)
            outputs.logits = outputs.logits + 9 * outputs.logits.mean(1, keepdim=True)
            return outputs

    task = Task("t", datasets.Dataset.from_list([ROWS[0], ROWS[3]]))
    check_packing(bare_llama(), task)
    with pytest.raises(ValueError, match="this model lets packed rows see each other"):
        check_packing(Mixing(), task)


def test_tokens_are_counted_as_they_are_learned() -> None:
    rows, plain = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list([{"input_ids": [1], "labels": 0}])
    assert tokens_of(bare_llama(), Task("t", rows)) == (2 + 0 + 1 + 2) / 4
    assert (
        tokens_of(bare_t5(), Task("t", rows)) == (2 + 0 + 2 + 2) / 4
    )  # whose first token has a decoder's start before it
    assert tokens_of(bare_bert(), Task("t", plain)) == 1.0
    numbers = datasets.Dataset.from_list([{"input_ids": [1], "labels": [0.5, 1.0, 2.0]}])
    assert tokens_of(bare_bert(), Task("t", numbers)) == 1.0


@pytest.mark.parametrize(("strength", "share"), [(6.0, 0.25), (0.0, 1.0)])
def test_an_extra_loss_in_nats_an_example_is_shared_by_its_tokens(strength: float, share: float) -> None:
    class Pull(Method):
        def extra_loss(self) -> torch.Tensor:
            return next(iter(self.sites.values())).B.sum()

    method = Pull(tiny_llama())
    method.strength = strength
    ContinualCallback(method, tokens=4.0).on_step_begin(None, None, None)
    assert next(iter(method.sites.values())).layer.lora_B["default"].weight.grad.unique().item() == share


def test_so_is_one_whose_strength_a_budget_has_yet_to_find() -> None:
    method = EWCLoRA(tiny_llama(), strength={"budget": 0.05})
    assert not method.strength and ContinualCallback(method, tokens=4.0).share == 0.25


class Seen(Method):
    """A method that keeps what the optimizer is about to see."""

    def before_step(self) -> None:
        self.found = [p.grad.clone() for p in self.param_groups()[0]["params"]]


def test_a_row_of_several_numbers_is_one_example(tmp_path) -> None:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = adapted(bare_bert(**off), target_modules=["query"])
    rows = [{"input_ids": torch.arange(1, 6) + i, "labels": torch.randn(3)} for i in range(8)]
    task = Task("numbers", rows, loss=SquaredError(), collate=transformers.default_data_collator)
    method, whole = Seen(model), task.loss.nll(*forward(model, task.collate(rows))).mean()
    wanted = torch.autograd.grad(whole, method.param_groups()[0]["params"])
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_grad_norm": 0, "max_steps": 1}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    named = {"remove_unused_columns": False, "label_names": ["labels"], "output_dir": str(tmp_path)}
    fit(model, task, method, transformers.TrainingArguments(**options, **quiet, **named))
    for found, gradient in zip(method.found, wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
