"""What a stream promises, on every architecture: two tasks under three methods, and the Fisher against an oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import CASES, Case
from models import filled, fit, layers, train
from oracles import lora_fisher_by_loop, relative_error
from retain import EBLoRA, EWCLoRA, Method, Share, export, sites
from retain.fisher import weight_fisher
from retain.lora import adapter_parameters, load_adapter
from retain.task import Task

METHODS: dict[str, Callable[..., Method]] = {
    "ewc-lora": partial(EWCLoRA, fisher={"samples": None}),
    "eblora": EBLoRA,
    "share": Share,
}
AT_ONCE = {("gpt2", "share"), ("t5", "ewc-lora"), ("vit", "eblora")}  # the other streams with the slow tests
SLOW = {"unet", "dit"}  # diffusers takes seconds to load
STREAMS = [(case, method) for case in CASES for method in METHODS]


def marked(*names: str, slow: bool) -> Any:
    values = [(CASES | METHODS)[name] for name in names]
    return pytest.param(*values, id="-".join(names), marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("case", [marked(name, slow=name in SLOW) for name in CASES])
def test_importance_is_that_of_one_example_after_the_other(case: Case) -> None:
    model, task = filled(case.model()).double(), case.task(dtype=torch.float64)
    ours = weight_fisher(model, layers(model), task)
    oracle = lora_fisher_by_loop(model, task, outputs=case.plain)
    assert ours.keys() == oracle.keys()
    met = {name: fisher for name, fisher in oracle.items() if fisher.any()}
    assert len(met) >= 0.8 * len(oracle) and not any(ours[name].any() for name in oracle.keys() - met.keys())
    assert relative_error({name: ours[name] for name in met}, met) < 1e-6


@pytest.mark.parametrize(("case", "make"), [marked(*pair, slow=pair not in AT_ONCE) for pair in STREAMS])
def test_a_stream_of_two_tasks(case: Case, make: Callable[..., Method], tmp_path: Any) -> None:
    model, first, second = case.model(), case.task("a"), case.task("b", seed=1)
    base = {name: p.detach().clone() for name, p in model.named_parameters() if name not in adapter_parameters(model)}
    method = make(model)
    fit(method, first)
    train(method, second)
    before, changes = outputs(model, second), deltas(model)
    assert all(change.any() for change in changes.values())
    method.end_task(second)
    torch.testing.assert_close(outputs(model, second), before, rtol=0, atol=1e-5)
    for name, change in deltas(model).items():
        torch.testing.assert_close(change, changes[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    export(model, tmp_path / "adapter")
    stock = load_adapter(case.bare(), tmp_path / "adapter").eval()
    torch.testing.assert_close(outputs(stock, second), outputs(model, second), rtol=0, atol=1e-5)


@torch.no_grad()
def outputs(model: Any, task: Task) -> Tensor:
    model.eval()
    return torch.cat([task.forward(model, batch)[0].flatten() for batch in task.train])


def deltas(model: Any) -> dict[str, Tensor]:
    return {name: site.delta() for name, site in sites(model).items()}
