"""Training through transformers' Trainer: the callback, the loss, resuming; and loading models with heads."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from models import adapted, bare_bert, texts, tiny_bert
from retain.heads import heads_of, install_heads
from retain.hf import ContinualCallback, fit, load_model, load_processor
from retain.lora import adapter_parameters
from retain.method import Method
from retain.methods import METHODS
from retain.task import Task, evaluating, forward
from runs import slow_but
from streams import word_tokenizer

pytestmark = [pytest.mark.usefixtures("fast_runs"), pytest.mark.versions]
ROWS = 16


def rows_task(name: str = "rows", seed: int = 0, n: int = ROWS) -> Task:
    """Rows of tokens of one length, so that batches of any size hold the same."""
    batch = texts(seed=seed, sizes=(n,)).train[0]
    rows = [{key: value[i] for key, value in batch.items()} for i in range(n)]
    return Task(name, rows, collate=transformers.default_data_collator)


def bert_without_dropout(**lora: Any) -> Any:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return adapted(bare_bert(**off), target_modules=["query", "value"], task_type="SEQ_CLS", **lora)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    fixed = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 4}
    fixed |= {
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "learning_rate": 1e-3,
    }
    return TrainingArguments(**fixed | {"output_dir": str(folder), "per_device_train_batch_size": 2} | options)


class Pull(Method):
    """A penalty of constant gradient, and what the optimizer was about to see."""

    def __init__(self, model: Any, size: float = 50.0) -> None:
        super().__init__(model)
        self.size, self.calls, self.norms, self.stepped = size, 0, [], 0

    def extra_loss(self) -> Tensor:
        self.calls += 1
        return self.size * sum(site.B.sum() for site in self.sites.values())

    def before_step(self) -> None:
        grads = [p.grad for g in self.param_groups() for p in g["params"] if p.grad is not None]
        self.norms.append(float(torch.stack([g.square().sum() for g in grads]).sum().sqrt()))

    def after_step(self) -> None:
        self.stepped += 1

    @property
    def expected(self) -> float:
        return self.size * sum(site.B.numel() for site in self.sites.values()) ** 0.5


class Flat:
    """A likelihood that no parameter changes."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * outputs.sum(1)


@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_the_extra_loss_counts_once_per_optimizer_step(accumulation: int, tmp_path: Path) -> None:
    method, task = Pull(bert_without_dropout()), rows_task()
    flat = Task(task.name, task.train, loss=Flat(), collate=task.collate)
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 1, "max_grad_norm": 0}
    fit(method.model, flat, method, arguments(tmp_path, max_steps=2, **options))
    assert method.calls == method.stepped == len(method.norms) == 2
    assert method.norms == pytest.approx([method.expected] * 2, rel=1e-5)


def test_the_extra_loss_is_clipped_with_the_rest(tmp_path: Path) -> None:
    method = Pull(bert_without_dropout())
    fit(method.model, rows_task(), method, arguments(tmp_path, max_grad_norm=1.0))
    assert method.norms == pytest.approx([1.0] * 4, rel=1e-4)


class Scaler:
    """What of a GradScaler counts here."""

    def scale(self, loss: Tensor) -> Tensor:
        return 1024 * loss


def test_the_extra_loss_is_scaled_when_a_gradient_scaler_is_at_work() -> None:
    method = Pull(bert_without_dropout())
    optimizer = AcceleratedOptimizer(torch.optim.SGD(method.param_groups(), lr=0.1))
    optimizer.scaler = Scaler()
    callback = ContinualCallback(method)
    callback.on_train_begin(None, None, None, optimizer=optimizer)
    callback.on_step_begin(None, None, None)
    method.before_step()
    assert method.norms == pytest.approx([1024 * method.expected], rel=1e-5)


def test_nothing_is_left_on_the_optimizer_after_training(tmp_path: Path) -> None:
    method, task = Pull(bert_without_dropout()), rows_task()
    optimizer = torch.optim.SGD(method.param_groups(), lr=0.1)
    trainer = Trainer(
        method.model,
        arguments(tmp_path),
        train_dataset=task.train,
        optimizers=(optimizer, None),
        callbacks=[ContinualCallback(method)],
    )
    trainer.train()
    assert method.stepped == 4
    optimizer.step()
    assert method.stepped == len(method.norms) == 4


def test_an_optimizer_that_cannot_be_hooked_is_refused_by_name(tmp_path: Path) -> None:
    method = Pull(bert_without_dropout())
    Lomo = type("Lomo", (torch.optim.SGD,), {})
    trainer = Trainer(
        method.model,
        arguments(tmp_path),
        train_dataset=rows_task().train,
        optimizers=(Lomo(method.param_groups(), lr=0.1), None),
        callbacks=[ContinualCallback(method)],
    )
    with pytest.raises(ValueError, match="Lomo has no step that can be hooked: it steps inside backward.*; use AdamW"):
        trainer.train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_is_the_mean_over_the_examples_of_a_whole_step(accumulation: int, tmp_path: Path) -> None:
    model, task = bert_without_dropout(), rows_task(n=8)
    twin = bert_without_dropout()
    options = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    options |= {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant"}
    options |= {"max_grad_norm": 0, "max_steps": 1}
    fit(model, task, METHODS["sequential"](model), arguments(tmp_path, **options))
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.5)
    task.loss.nll(*forward(twin, task.collate(task.train))).mean().backward()
    optimizer.step()
    for name, parameter in adapter_parameters(model).items():
        torch.testing.assert_close(parameter, adapter_parameters(twin)[name], atol=1e-6, rtol=0)
        assert "classifier" not in name or parameter.requires_grad


def test_heads_can_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
            seen.append([(g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups])

    model, task = bert_without_dropout(), rows_task()
    method = METHODS["sequential"](model)
    for rate in (None, 0.3):
        options = arguments(tmp_path, max_steps=1, weight_decay=0.25)
        fit(model, task, method, options, head_learning_rate=rate, callbacks=[Watch()])
    assert seen == [[(1e-3, 0.25)] * 2, [(1e-3, 0.25), (0.3, 0.25)]]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    model, task = bert_without_dropout(), rows_task()
    with pytest.raises(FloatingPointError, match="the loss on task 'rows' is nan: lower training.learning_rate"):
        fit(model, task, METHODS["sequential"](model), arguments(tmp_path, learning_rate=1e30))


def with_heads() -> Any:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = bare_bert(**off, num_labels=6)
    install_heads(base, [3, 3], 0)
    model = adapted(base, target_modules=["query"], modules_to_save=["classifier"])
    heads_of(model).train_only([0])
    return model


MIDTASK = dict.fromkeys(METHODS, {}) | {
    "ewc-lora": {"strength": 30.0, "fisher": {"samples": 8}},
    "merge": {"strength": 30.0, "fisher": {"samples": 8}, "mode": "merge"},
    "share": {"components": 3},
    "replay": {"share": 0.5, "match": 0.5, "batch_size": 3},
    "lwf": {"weight": 3.0, "batch_size": 3},
    "dwd": {"strength": 1e5, "every": 2, "rows": 4, "probes": 4, "graph": "fisher"},
}


@pytest.mark.parametrize("name", slow_but(MIDTASK, "ewc-lora", "eblora", "dwd"))
def test_a_training_continues_from_its_last_whole_checkpoint(name: str, tmp_path: Path) -> None:
    """The second of two tasks is stopped in its middle: model, method and heads are those of the boundary again."""

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    def boundary() -> Method:
        model = with_heads()
        method = METHODS.get(name, METHODS["ewc-lora"])(model, **MIDTASK[name])
        for task in (first, second):
            method.begin_task(task)
            if task is first:
                fit(model, task, method, arguments(tmp_path / "first"))
                method.end_task(task)
        return method

    first, second = rows_task("first", seed=1), rows_task("second", seed=2)
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8, "weight_decay": 0.1, "learning_rate": 0.01}
    whole, broken, resumed = boundary(), boundary(), boundary()
    assert fit(whole.model, second, whole, arguments(tmp_path / "whole", **options)) == 8
    with pytest.raises(KeyboardInterrupt):
        fit(broken.model, second, broken, arguments(tmp_path / "broken", **options), callbacks=[Stop()])
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    shutil.copytree(tmp_path / "broken" / "checkpoint-4", tmp_path / "broken" / "checkpoint-5")
    (tmp_path / "broken" / "checkpoint-5" / "done").unlink()  # as if killed while it was written
    (tmp_path / "broken" / "checkpoint-5" / "optimizer.pt").write_text("half")
    assert fit(resumed.model, second, resumed, arguments(tmp_path / "broken", **options)) == 4
    ours, theirs = adapter_parameters(resumed.model), adapter_parameters(whole.model)
    for key, parameter in theirs.items():
        assert ours[key].requires_grad == parameter.requires_grad
        torch.testing.assert_close(ours[key], parameter, atol=0, rtol=0)
    assert all(torch.equal(resumed.progress()[key], tensor) for key, tensor in whole.progress().items())
    frozen = [key for key in ours if "weights.1" in key or "biases.1" in key]
    untouched = adapter_parameters(with_heads())
    assert len(frozen) == 2 and all(torch.equal(ours[key], untouched[key]) for key in frozen)


def test_training_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert()
    fit(model, rows_task(), METHODS["sequential"](model), arguments(tmp_path, max_steps=1))
    assert capfd.readouterr() == ("", "")


def test_loading_prints_nothing_and_leaves_the_log_as_it_was(bert: str, capfd: pytest.CaptureFixture[str]) -> None:
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with warnings.catch_warnings(action="ignore"):
        try:
            logging.enable_progress_bar()
            logging.set_verbosity_info()
            load_model(bert, "text", [2, 3], {"r": 2})
            load_processor(bert, "text")
            assert logging.is_progress_bar_enabled() and logging.get_verbosity() == logging.INFO
        finally:
            logging.set_verbosity(verbosity)
            if not bars:
                logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", [load_processor, lambda path, kind: load_model(path, kind, [2], {})])
@pytest.mark.parametrize("path", ["no/such/model", "nowhere", "EMPTY"])
def test_a_model_that_is_not_there(load: Callable, path: str, tmp_path: Path) -> None:
    path = str(tmp_path) if path == "EMPTY" else path
    with pytest.raises(ValueError) as error:
        load(path, "text")
    assert str(error.value).startswith(f"no text model at {path!r}") and "\n" not in str(error.value)
    assert ("nor on the hub" in str(error.value)) == (path != str(tmp_path))


def test_the_same_seed_gives_the_same_model(bert: str) -> None:
    one, two, other = (adapter_parameters(load_model(bert, "text", [2, 2], {"r": 2}, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if "lora_A" in key or "weights" in key)


def test_a_shared_classifier_is_trained_whatever_the_checkpoint_holds(tmp_path: Path) -> None:
    """A checkpoint may come with a classifier of its own, of the right size or not."""
    bare_bert(num_labels=3).save_pretrained(tmp_path)
    for outputs in (3, 4):
        model = load_model(str(tmp_path), "text", [outputs], {"r": 2}, own_heads=False)
        assert model.peft_config["default"].modules_to_save == ["classifier"]
        weight = model.base_model.model.classifier.modules_to_save["default"].weight
        assert weight.shape == (outputs, 32) and weight.requires_grad


def test_padding_does_not_change_a_score() -> None:
    model, tokenizer = tiny_bert(), word_tokenizer()
    encoded = [tokenizer(text) for text in ("alpha beta", "alpha beta gamma delta eta")]
    collate = transformers.DataCollatorWithPadding(tokenizer)
    with evaluating(model), torch.no_grad():
        alone = model(**collate(encoded[:1])).logits[0]
        torch.testing.assert_close(model(**collate(encoded)).logits[0], alone, atol=1e-5, rtol=0)
