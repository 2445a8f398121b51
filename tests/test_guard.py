"""Task 0: what the untouched model can do is measured before the first task, and held from there on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from models import fit, prompts, tiny_bert, tiny_llama, train
from oracles import fisher_by_loop, lora_fisher_by_loop, relative_error
from retain import DWD, EWC, METHODS, EBLoRA, EWCLoRA, InfLoRA, LwF, Method, Replay, Task, learn_base
from retain.lora import adapter_parameters, sites
from retain.subspace import statistics

Make = Callable[..., Method]
GENERAL = prompts("general", (6, 6), seed=5)
FIRST, SECOND = prompts("first", seed=1), prompts("second", seed=2)
DIAGONAL = {"form": "diagonal", "samples": None}
HOLDING: dict[str, Make] = {
    "ewc": EWC,
    "ewc, online": partial(EWC, decay=0.9),
    "ewc-lora": EWCLoRA,
    "ewc-lora, merged": partial(EWCLoRA, mode="merge"),
    "dwd": partial(DWD, every=1, rows=4, probes=4),
    "dwd, on the update": partial(DWD, protect="update", running=None, graph="features", probes=4),
    "eblora": EBLoRA,
    "inflora": InfLoRA,
    "replay": partial(Replay, share=0.5),
    "lwf": LwF,
}
STRONG = {name: make for name, make in HOLDING.items() if name.startswith(("ewc", "dwd"))}


def each(makers: dict[str, Make], *quick: str) -> list[Any]:
    """A parameter for each of ``makers``, all but the ``quick`` ones with the slow tests."""
    return [pytest.param(m, id=name, marks=[pytest.mark.slow] * (name not in quick)) for name, m in makers.items()]


def after(make: Make, *tasks: Task, guard: Task | None = None) -> Method:
    """A method on a fresh tiny language model that has learned ``guard``, then ``tasks``."""
    method = make(tiny_llama(), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if guard is not None:
            learn_base(method, guard)
        for task in tasks:
            fit(method, task)
    return method


guarded = partial(after, guard=GENERAL)


def same(one: Method, other: Method) -> bool:
    mine, theirs = (adapter_parameters(m.model) | {n: s.delta() for n, s in m.sites.items()} for m in (one, other))
    return all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)


@pytest.mark.parametrize("make", each(HOLDING, "ewc-lora", "ewc-lora, merged", "eblora", "inflora", "lwf"))
def test_a_guard_trains_nothing_and_holds_the_first_task(make: Make) -> None:
    method, fresh = guarded(make), make(tiny_llama(), seed=0)
    assert same(method, fresh)
    assert {name: int(n) for name, n in method.learned.items()} == {"general": -1}
    fit(method, FIRST)
    fit(fresh, FIRST)
    assert not same(method, fresh)
    assert {name: int(n) for name, n in method.learned.items()} == {"general": -1, "first": 0}


@pytest.mark.slow
@pytest.mark.parametrize("make", each(STRONG, "ewc", "ewc-lora", "ewc-lora, merged"))
def test_without_strength_a_guard_changes_nothing_to_the_bit(make: Make) -> None:
    free = partial(make, strength=0.0)
    assert same(guarded(free, FIRST, SECOND), after(free, FIRST, SECOND))


@pytest.mark.parametrize("make", each(HOLDING, "ewc-lora", "inflora", "replay"))
def test_what_was_saved_after_the_guard_continues_like_what_never_stopped(make: Make) -> None:
    first, second = guarded(make), make(tiny_llama(), seed=0)
    second.load_state_dict(load(save(first.state_dict())))
    for method in (first, second):
        fit(method, FIRST)
    assert same(first, second)


def test_the_importance_of_a_guard_is_that_of_the_untouched_model() -> None:
    method = guarded(partial(EWCLoRA, strength=1e4, fisher=DIAGONAL))
    oracle = lora_fisher_by_loop(tiny_llama(), GENERAL, seed=hash((0, -1)) % 2**63)
    found = {name: form["fisher"] for name, form in method.fisher.items()}
    assert relative_error(found, oracle) < 1e-5


def test_factors_are_half_blind_on_an_untrained_adapter_and_it_is_said() -> None:
    method = EWC(tiny_llama(), fisher={"samples": None})
    with pytest.warns(UserWarning, match=r"half blind.* 6 of 12 protected tensors.*ewc-lora"):
        learn_base(method, GENERAL)
    oracle = fisher_by_loop(tiny_llama(), method.fisher, GENERAL, seed=hash((0, -1)) % 2**63)
    seen = [name for name, square in oracle.items() if square.any()]
    assert relative_error({n: method.fisher[n] for n in seen}, {n: oracle[n] for n in seen}) < 1e-5
    assert all(F.any() == ("lora_B" in name) for name, F in method.fisher.items())
    with pytest.warns(UserWarning, match="half blind"):
        learn_base(DWD(tiny_llama(), groups=1), GENERAL)


@pytest.mark.parametrize(("make", "source"), [(InfLoRA, "features"), (EBLoRA, "mean gradient")])
def test_bases_hold_what_general_rows_use_of_the_untouched_model(make: Make, source: Any) -> None:
    method, untouched = guarded(partial(make, energy=0.9)), tiny_llama()
    found = statistics(untouched, {n: s.layer for n, s in sites(untouched).items()}, GENERAL, source, samples=None)
    for name, C in found.items():
        F = method._taken(name) if isinstance(method, InfLoRA) else method.bases[name]["F"]
        energy = lambda X: X.trace() if source == "features" else X.square().sum()  # noqa: E731
        inside = F.T @ C @ F if source == "features" else C @ F
        assert energy(inside) >= (0.9 - 1e-4) * energy(C)


@pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if not m.guards))
def test_a_method_that_cannot_hold_a_guard_says_so(name: str) -> None:
    method = METHODS[name](tiny_llama())
    with pytest.warns(UserWarning, match="'general'.* is not protected"):
        learn_base(method, GENERAL)
    assert not method.learned


def test_the_gauge_counts_a_guard_as_the_oldest_task() -> None:
    method = guarded(partial(EWCLoRA, decay=0.5, fisher={"sketches": 2}))
    train(method, FIRST)
    assert method.remembered == {"general": 1.0}
    foreseen = method.predicted_rise()
    assert foreseen.keys() == {"total", "general"} and foreseen["general"] > 0
    method.end_task(FIRST)
    assert method.remembered == {"general": 0.5, "first": 1.0}


def test_a_guard_comes_first() -> None:
    method = EWCLoRA(tiny_bert())
    method.learned["mood"] = torch.tensor(0)
    with pytest.raises(ValueError, match="the base model comes first, and mood"):
        learn_base(method, GENERAL)
