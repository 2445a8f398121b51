"""A task through a Trainer that somebody has: the weights of an own loop, whatever trains; references; resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from models import VOCABULARY, texts, tiny_bert, tiny_llama
from retain import METHODS, ContinualCallback, Task, attach, learn
from retain.reading import Documents, target_tokens, task_of
from retain.task import IGNORED, forward
from runs import slow_but
from streams import word_tokenizer

trl = pytest.importorskip("trl")

pytestmark = pytest.mark.versions

IN_TURN = [name for name in METHODS if name != "joint"]
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "logging_strategy": "no"}
FIXED = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_grad_norm": 0, "save_strategy": "no"}
LENGTH, ROWS = 7, 8


def tokens(seed: int) -> Dataset:
    """Rows of tokens, the first two of which are a prompt."""
    x = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    y = x.clone()
    y[:, :2] = IGNORED
    return Dataset.from_dict({"input_ids": x.tolist(), "labels": y.tolist()})


def sft(model: Any, rows: Dataset, folder: Path, batch: int = 4, **options: Any) -> Any:
    fixed = QUIET | FIXED | {"num_train_epochs": 1, "gradient_checkpointing": False}
    fixed |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    arguments = trl.SFTConfig(str(folder), per_device_train_batch_size=batch, **fixed | options)
    return in_order(trl.SFTTrainer(model, arguments, train_dataset=rows, processing_class=word_tokenizer()))


def in_order(trainer: Any) -> Any:
    """``trainer``, which takes its rows from first to last; of transformers 5 an argument does it, of 4 nothing."""
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    return trainer


def looped(method: Any, task: Task, batch: int = 4, targets: float = LENGTH - 2) -> None:
    """The same training in a loop of one's own; ``targets`` of a row, on average."""
    method.begin_task(task)
    optimizer = torch.optim.AdamW([{"weight_decay": 0.0} | group for group in method.param_groups()], lr=1e-3)
    handles = attach(optimizer, method)
    method.model.train()
    share = 1 / targets if method.strength else 1.0
    for step, (_, rows) in enumerate(task.take(torch.arange(len(task.train)), batch)):
        method.steps = step
        outputs, labels = forward(method.model, rows)
        loss = task.loss.nll(outputs, labels).sum() / (labels != IGNORED).sum()
        (loss + share * method.extra_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    method.end_task(task)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", slow_but(IN_TURN, "ewc-lora"))
def test_sft_gives_the_weights_of_an_own_loop(name: str, accumulation: int, tmp_path: Path) -> None:
    one, two = (METHODS[name](tiny_llama(), seed=0) for _ in range(2))
    tasks = "a" if name == "inflora" else "ab"  # what a task leaves InfLoRA of these few tokens is rounding
    for number, task in enumerate(tasks):
        options = {"batch": 4 // accumulation, "gradient_accumulation_steps": accumulation}
        trainer = sft(two.model, tokens(number), tmp_path, **options)
        rows = task_of(sft(one.model, tokens(number), tmp_path), task)
        looped(one, rows)
        learn(trainer, two, task)
    assert one.learned.keys() == two.learned.keys() == set(tasks)
    for site, other in ((one.sites[name], two.sites[name]) for name in one.sites):
        torch.testing.assert_close(site.delta(), other.delta(), rtol=1e-5, atol=1e-6)
    assert max(float(site.delta().abs().max()) for site in two.sites.values()) > 1e-3


def test_a_trainer_of_labels_learns_two_tasks(tmp_path: Path) -> None:
    method = METHODS["ewc-lora"](tiny_bert(), seed=0)
    for name, batches in (("a", texts().train), ("b", texts().train)):
        rows = [{k: v[i] for k, v in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
        arguments = TrainingArguments(str(tmp_path), max_steps=2, label_names=["labels"], **QUIET | FIXED)
        output = learn(Trainer(method.model, arguments, train_dataset=rows), method, name)
        assert output.global_step == 2
    assert set(method.learned) == {"a", "b"} and method.boundary


def preferences() -> Dataset:
    prompts = ["alpha beta", "gamma", "delta eta", "zeta"]
    return Dataset.from_dict({"prompt": prompts, "chosen": [" glad win"] * 4, "rejected": [" sad loss"] * 4})


def dpo(model: Any, folder: Path) -> Any:
    options = QUIET | FIXED | {"learning_rate": 1e-2, "logging_strategy": "steps", "logging_steps": 1}
    arguments = trl.DPOConfig(
        str(folder), per_device_train_batch_size=2, max_steps=3, gradient_checkpointing=False, **options
    )
    return trl.DPOTrainer(model, args=arguments, train_dataset=preferences(), processing_class=word_tokenizer())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IN_TURN if name != "sdlora"])
def test_the_reference_of_dpo_is_the_model_as_the_task_begins(name: str, tmp_path: Path) -> None:
    method = METHODS[name](tiny_llama(), seed=0)
    for task in "ab":
        trainer = dpo(method.model, tmp_path)
        learn(trainer, method, task)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0]
    assert list(method.model.peft_config) == ["default"]


@pytest.mark.slow
def test_a_past_that_trains_on_can_be_no_reference(tmp_path: Path) -> None:
    method = METHODS["sdlora"](tiny_llama(), seed=0)
    with pytest.raises(ValueError, match="SDLoRA goes on training what earlier tasks left.*ref_model of its own"):
        learn(dpo(method.model, tmp_path), method, "a")


@pytest.mark.slow
def test_grpo_learns_tasks_and_measures_completions_that_the_model_draws(tmp_path: Path) -> None:
    method = METHODS["ewc-lora"](tiny_llama(), seed=0)
    prompts = Dataset.from_dict({"prompt": ["alpha beta", "gamma", "delta eta", "zeta"]})
    for task in "ab":
        options = QUIET | FIXED | {"beta": 0.1, "max_completion_length": 4, "num_generations": 2, "max_steps": 2}
        arguments = trl.GRPOConfig(
            str(tmp_path), per_device_train_batch_size=2, gradient_checkpointing=False, **options
        )
        trainer = trl.GRPOTrainer(
            method.model,
            reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
            args=arguments,
            train_dataset=prompts,
            processing_class=word_tokenizer(),
        )
        learn(trainer, method, task)
    assert set(method.learned) == {"a", "b"} and list(method.model.peft_config) == ["default"]
    assert sum(float(t.abs().sum()) for key, t in method.state_dict().items() if key.startswith("fisher/")) > 0


def test_packed_rows_are_read_as_their_documents() -> None:
    packed = Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5], [6, 7]], "seq_lengths": [[2, 3], [2]]})
    documents = Documents(packed)
    assert [documents[i]["input_ids"] for i in range(len(documents))] == [[1, 2], [3, 4, 5], [6, 7]]


def test_target_tokens_are_those_that_have_a_loss(tmp_path: Path) -> None:
    model = tiny_llama()
    assert target_tokens(model, task_of(sft(model, tokens(0), tmp_path), "a")) == LENGTH - 2
    assert target_tokens(tiny_bert(), texts()) == 1.0


class Layered(torch.optim.AdamW):
    pass


Layered.__name__ = "LayerWiseDummyOptimizer"


def _other_model(trainer: Any, method: Any) -> None:
    method.model = tiny_llama()


def _optimizer(trainer: Any, method: Any) -> None:
    trainer.optimizer = torch.optim.AdamW(method.param_groups())


def _foreign(trainer: Any, method: Any) -> None:
    trainer.__class__ = type("KTOTrainer", (Trainer,), {"__module__": "trl.trainer.kto"})


def _inside_backward(trainer: Any, method: Any) -> None:
    trainer.optimizer_cls_and_kwargs = (Layered, {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_model, "made for another model"),
        (_optimizer, "has an optimizer already"),
        (_foreign, "KTOTrainer has no likelihood that is known here; known: SFTTrainer"),
        (_inside_backward, "it steps inside backward"),
    ],
)
def test_what_does_not_go_together_is_refused(spoil: Callable, message: str, tmp_path: Path) -> None:
    method = METHODS["ewc-lora"](tiny_llama(), seed=0)
    trainer = sft(method.model, tokens(0), tmp_path)
    spoil(trainer, method)
    with pytest.raises(ValueError, match=message):
        learn(trainer, method, "a")
    assert not any(isinstance(c, ContinualCallback) for c in trainer.callback_handler.callbacks)


def test_joint_training_is_no_task_in_turn(tmp_path: Path) -> None:
    method = METHODS["joint"](tiny_llama())
    with pytest.raises(ValueError, match="trains once on the rows of all tasks"):
        learn(sft(method.model, tokens(0), tmp_path), method, "a")
