"""What every method obeys, whatever it does: each law over each entry of METHODS."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import TrainingArguments

from models import fit, texts, tiny_bert, train
from retain import DWD, EWC, METHODS, EWCLoRA, Method, Replay, Sequential, Share, Task
from retain.hf import fit as fit_with_trainer
from retain.lora import adapter_parameters, load_adapter
from retain.task import default_collate, forward

Make = Callable[..., Method]
KRONECKER = {"form": "kronecker", "rank": 3}
RULES: dict[str, Make] = {
    **METHODS,
    "sequential, merged": partial(Sequential, mode="merge"),
    "ewc, online": partial(EWC, decay=0.9),
    "ewc-lora, merged": partial(EWCLoRA, mode="merge"),
    "ewc-lora, merged and capped": partial(EWCLoRA, mode="merge", rank=4),
    "replay, of fixed size": partial(Replay, rows=6, balanced=False),
    "replay, matching outputs": partial(Replay, share=0.5, match=0.5),
    "dwd, running": partial(DWD, every=1, rows=4, probes=4, graph="fisher"),
    "dwd, features": partial(DWD, groups="auto", probes=4, graph="features"),
    "dwd, on the update": partial(DWD, protect="update", every=1, rows=4, probes=4, graph="fisher"),
    **{f"{name}, budget": partial(METHODS[name], strength={"budget": 0.01}) for name in ("ewc", "ewc-lora", "dwd")},
    "share, dense": partial(Share, components=3, temporary=1, core="dense"),
}
FORMS: dict[str, Make] = {
    "ewc-lora, bfloat16": partial(EWCLoRA, fisher={"form": "diagonal", "storage": "bfloat16"}),
    "ewc-lora, uint8": partial(EWCLoRA, fisher={"form": "diagonal", "storage": "uint8"}),
    "ewc-lora, factored": partial(EWCLoRA, fisher={"form": "factored"}),
    "ewc-lora, kronecker": partial(EWCLoRA, strength=10.0, fisher=KRONECKER | {"rank": None}),
    "ewc-lora, kronecker of low rank": partial(EWCLoRA, strength=10.0, fisher=KRONECKER),
    "ewc-lora, kronecker, merged": partial(EWCLoRA, strength=10.0, mode="merge", fisher=KRONECKER),
    "ewc-lora, sketched": partial(EWCLoRA, fisher={"sketches": 2}),
}
VARIANTS = RULES | FORMS
PROTECTING = {name: make for name, make in VARIANTS.items() if "strength" in inspect.signature(make).parameters}
# What is capped is cut, by an error that it reports (tests/methods).
CAPPED = (VARIANTS["ewc-lora, merged and capped"], VARIANTS["share, dense"])
AT_ONCE = METHODS.keys() | {"sequential, merged", "ewc-lora, merged", "share, dense"}  # the others with the slow tests


def each(makers: dict[str, Make]) -> Any:
    """A test for each of ``makers``, most variants with the slow ones."""
    marks = {name: [pytest.mark.slow] * (name not in AT_ONCE) for name in makers}
    return pytest.mark.parametrize("make", [pytest.param(makers[name], id=name, marks=marks[name]) for name in makers])


every_method = each(VARIANTS)
QUICK = [("sequential", 2), ("ewc-lora", 2), *((name, 1) for name in METHODS)]  # with accumulation over so many batches
TRAINED = [*QUICK, *((name, 2) for name in VARIANTS if (name, 2) not in QUICK)]
A, B, C = (texts(name, seed=seed) for seed, name in enumerate("abc"))


def steady_bert() -> Any:
    """``tiny_bert`` without dropout: training draws nothing from the global generator."""
    model = tiny_bert()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def learned(make: Make, *tasks: Task) -> Method:
    """A method on a fresh tiny model that has been through ``tasks`` in an own loop."""
    method = make(steady_bert(), seed=0)
    for task in tasks:
        fit(method, task)
    return method


@cache
def after_two(make: Make) -> Method:
    """A method that has been through two tasks, for laws that leave it as it is."""
    return learned(make, A, B)


def parameters(method: Method) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in adapter_parameters(method.model).items()}


def outputs(method: Method, task: Task = A) -> Tensor:
    method.model.eval()
    with torch.no_grad():
        return torch.cat([forward(method.model, batch)[0] for batch in task.train])


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_method
def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator_does(make: Make) -> None:
    one = after_two(make)
    torch.manual_seed(1)
    same(parameters(one), parameters(learned(make, A, B)))


@every_method
def test_what_was_saved_after_a_task_continues_like_what_never_stopped(make: Make) -> None:
    first, second = learned(make, A), make(steady_bert(), seed=0)
    with torch.no_grad():
        for name, parameter in adapter_parameters(second.model).items():
            parameter.copy_(adapter_parameters(first.model)[name])
    second.load_state_dict(load(save(first.state_dict())))
    for method in (first, second):
        fit(method, B)
    same(parameters(first), parameters(second))
    same(first.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("make", "accumulation"),
    [pytest.param(VARIANTS[m], n, id=f"{m}-{n}", marks=[pytest.mark.slow] * ((m, n) not in QUICK)) for m, n in TRAINED],
)
def test_own_loop_and_trainer_give_the_same_weights(make: Make, accumulation: int, tmp_path: Any) -> None:
    own, other = (make(steady_bert(), seed=0) for _ in range(2))
    for number, task in enumerate([texts("a", (4, 4, 4), 0), texts("b", (4, 4, 4), 1)]):
        fit(own, task, learning_rate=1e-3)
        rows = [{k: v[i] for k, v in batch.items()} for batch in task.train for i in range(4)]
        other.begin_task(task)
        arguments = TrainingArguments(
            str(tmp_path / str(number)),
            use_cpu=True,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            learning_rate=1e-3,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        fit_with_trainer(other.model, Task(task.name, rows, collate=default_collate), other, arguments)
        other.end_task(task)
    same(parameters(own), parameters(other), 1e-5)


@every_method
def test_a_boundary_keeps_the_function_and_leaves_no_tracks(make: Make) -> None:
    method = learned(make, A)
    model = method.model
    method.begin_task(B)
    function = outputs(method)
    model.train()
    model.base_model.model.bert.encoder.layer[0].eval()
    before, generator = _tracks(model), torch.get_rng_state()
    method.end_task(B)
    assert _tracks(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    if make not in CAPPED:
        torch.testing.assert_close(outputs(method), function, rtol=0, atol=1e-5)


def _tracks(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad is None for p in model.parameters()],
    }


@every_method
def test_the_base_model_stays_as_it_was(make: Make) -> None:
    fresh = steady_bert()
    method = after_two(make)
    owned = adapter_parameters(fresh).keys() | adapter_parameters(method.model).keys()
    same(
        {n: p.detach() for n, p in fresh.named_parameters() if n not in owned},
        {n: p.detach() for n, p in method.model.named_parameters() if n not in owned},
    )


@every_method
def test_training_moves_the_adapter(make: Make) -> None:
    method = make(steady_bert(), seed=0)
    before = parameters(method)
    fit(method, A)
    after = parameters(method)
    folded = {name: site.delta() for name, site in method.sites.items()}
    assert any(not torch.equal(before[n], after[n]) for n in before) and all(d.abs().max() > 0 for d in folded.values())


@cache
def sequential(**options: Any) -> list[dict[str, Tensor]]:
    """The weights after the first and the second task without protection."""
    method, found = Sequential(steady_bert(), seed=0, **options), []
    for task in (A, B):
        fit(method, task)
        found.append(parameters(method))
    return found


@each(PROTECTING)
def test_on_the_first_task_and_without_strength_it_is_sequential_to_the_bit_and_else_it_is_not(make: Make) -> None:
    chosen = make.keywords if isinstance(make, partial) else {}
    first, second = sequential(**{key: value for key, value in chosen.items() if key in ("mode", "rank")})
    method = learned(make, A)
    same(parameters(method), first)
    fit(method, B)
    assert any(not torch.equal(p, second[name]) for name, p in parameters(method).items())
    same(parameters(learned(partial(make, strength=0.0), A, B)), second)


@each(PROTECTING)
def test_the_foreseen_rise_starts_at_zero_after_every_boundary_and_is_what_the_penalty_weighs(make: Make) -> None:
    method = make(steady_bert(), seed=0)
    assert method.predicted_rise() == {}
    for learned_so_far, task in enumerate([A, B, C]):
        train(method, task)
        if learned_so_far:
            foreseen, weighed = method.predicted_rise()["total"], torch.as_tensor(method.extra_loss()).item()
            counts_from_each_own_end = type(method) is EWC and learned_so_far > 1
            assert foreseen == pytest.approx(weighed / method.strength, rel=1e-4) or counts_from_each_own_end
            assert foreseen > 0
        method.end_task(task)
        assert all(abs(rise) < 1e-6 for rise in method.predicted_rise().values())
        assert list(method.remembered) == list(method.learned) and max(method.remembered.values()) == 1


@pytest.mark.parametrize("make", [m for n, m in VARIANTS.items() if n not in PROTECTING])
def test_what_protects_nothing_foresees_nothing(make: Make) -> None:
    assert after_two(make).predicted_rise() == {}


@every_method
def test_what_leaves_is_a_stock_adapter(make: Make, tmp_path: Any) -> None:
    method = after_two(make)
    method.model.save_pretrained(tmp_path)
    base = steady_bert().unload()
    stock = load_adapter(base, tmp_path).eval()
    with torch.no_grad():
        there = torch.cat([forward(stock, batch)[0] for batch in A.train])
    torch.testing.assert_close(there, outputs(method), rtol=0, atol=1e-5)


@every_method
def test_bytes_do_not_grow_with_tasks_unless_it_is_said(make: Make) -> None:
    method = learned(make, A, B)
    two = _bytes(method)
    fit(method, C)
    growth = _bytes(method) - two
    assert (growth > 8) == bool(method.growth) and growth <= method.growth + 8  # 8: the number of the task


def _bytes(method: Method) -> int:
    return sum(t.numel() * t.element_size() for t in method.state_dict().values())


@every_method
def test_activating_a_task_and_the_latest_again_changes_nothing(make: Make) -> None:
    method = after_two(make)
    before = outputs(method)
    method.activate("a")
    method.activate(None)
    torch.testing.assert_close(outputs(method), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_hyper_parameters_are_keywords_with_defaults_that_the_docstring_explains(name: str) -> None:
    signature = inspect.signature(METHODS[name])
    model, *keywords = signature.parameters.values()
    assert model.name == "model"
    documented = METHODS[name].__doc__ or ""
    for keyword in keywords:
        assert keyword.kind is keyword.KEYWORD_ONLY and keyword.default is not keyword.empty, keyword
        assert keyword.name in documented, keyword


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_knob_has_values_that_the_method_takes_its_own_among_them(method: type[Method]) -> None:
    if method.knob is None:
        return
    keyword, values = method.knob
    assert list(values) == sorted(set(values)) and len(values) > 1
    for value in values:
        assert getattr(method(tiny_bert(), **{keyword: value}), keyword) == value
    assert getattr(method(tiny_bert()), keyword) in values
