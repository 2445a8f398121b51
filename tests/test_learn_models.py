"""What a Trainer trains that is not as usual: two halves of a model, layers that run again in backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments, default_data_collator

from architectures import CASES, T5
from models import VOCABULARY, adapted, seeded, tiny_llama
from retain import METHODS, Task, learn
from test_learn import FIXED, QUIET, in_order, looped, sft, tokens

pytestmark = pytest.mark.versions


def test_an_encoder_with_a_decoder_learns_what_it_learns_in_an_own_loop(tmp_path: Path) -> None:
    config = T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, **T5)
    one, two = (
        METHODS["ewc-lora"](adapted(seeded(lambda: T5ForConditionalGeneration(config)), target_modules="all-linear"))
        for _ in range(2)
    )
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=3,
        num_train_epochs=1,
        label_names=["labels"],
        **QUIET | FIXED,
    )
    for number, name in enumerate("ab"):
        batches = CASES["t5"].task(seed=number).train
        rows = [{k: v[i] for k, v in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
        learn(in_order(Trainer(two.model, arguments, train_dataset=rows)), two, name)
        looped(one, Task(name, rows, collate=default_data_collator), batch=3, targets=18 / 5)
    for name, site in one.sites.items():
        torch.testing.assert_close(site.delta(), two.sites[name].delta(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [pytest.param(True, marks=pytest.mark.slow), False])
def test_checkpoints_of_activations_change_nothing(reentrant: bool, tmp_path: Path) -> None:
    changes, runs = [], []
    for on in (False, True):
        method = METHODS["ewc-lora"](tiny_llama(), seed=0)
        method.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(on))  # noqa: B023
        for number, task in enumerate("ab"):
            kind = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} if on else {}
            learn(sft(method.model, tokens(number), tmp_path, gradient_checkpointing=on, **kind), method, task)
        changes.append({n: site.delta() for n, site in method.sites.items()} | method.state_dict())
    assert runs.count(True) > runs.count(False)
    torch.testing.assert_close(*changes, rtol=1e-5, atol=1e-6)
