"""A step of gradients that are no numbers is refused by name, or left out, and nothing has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import texts, tiny_bert
from retain import run as running
from retain import store
from retain.config import ConfigError, parse
from retain.gradients import MOST, Gradients
from retain.hf import fit
from retain.hooks import attach
from retain.lora import adapter_parameters
from retain.method import Method
from retain.methods import METHODS
from runs import document, quiet, settings
from test_hf import arguments, rows_task


class Watched(Method):
    """Tells which of its hooks were called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.called: list[str] = []

    def before_step(self) -> None:
        self.called.append("before")

    def after_step(self) -> None:
        self.called.append("after")


def spoil(parameter: Tensor, *times: int, value: float = float("nan")) -> Any:
    """Let one number of the gradients that ``parameter`` gets at these ``times``, from 0 on, be ``value``."""
    calls = iter(range(1000))

    def hook(gradient: Tensor) -> Tensor:
        if next(calls) in times:
            gradient = gradient.clone()
            gradient.view(-1)[-1] = value
        return gradient

    return parameter.register_hook(hook)


def factor(model: nn.Module) -> tuple[str, nn.Parameter]:
    """A parameter in the middle of the adapter, with its name."""
    name = next(name for name in adapter_parameters(model) if "layer.1" in name and "lora_B" in name)
    return name, dict(model.named_parameters())[name]


def step(method: Method, optimizer: torch.optim.Optimizer) -> None:
    method.model(**texts().train[0]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def moving(method: Method, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes."""
    averages = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    return [x.detach().clone() for x in (*adapter_parameters(method.model).values(), *averages)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_own_loop_stops_before_the_step_and_names_the_parameter(value: float) -> None:
    method = Watched(tiny_bert())
    optimizer = torch.optim.AdamW(method.param_groups(), lr=0.01)
    attach(optimizer, method)
    name, parameter = factor(method.model)
    spoil(parameter, 1, value=value)
    step(method, optimizer)
    before = moving(method, optimizer)
    with pytest.raises(FloatingPointError, match=f"the gradient of {name} is not finite: lower the learning rate"):
        step(method, optimizer)
    assert method.called == ["before", "after"]
    assert all(torch.equal(one, other) for one, other in zip(before, moving(method, optimizer), strict=True))


def test_a_step_that_is_left_out_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Watched(tiny_bert().eval())
    optimizer = torch.optim.AdamW(method.param_groups(), lr=0.01)
    gradients = Gradients(method.model, "skip")
    attach(optimizer, method, gradients)
    spoil(factor(method.model)[1], 1, *range(3, 4 + MOST))
    step(method, optimizer)
    before = moving(method, optimizer)
    step(method, optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, moving(method, optimizer), strict=True))
    assert method.called == ["before", "after"] and gradients.left_out == 1
    step(method, optimizer)
    assert method.called == ["before", "after"] * 2
    assert not all(torch.equal(one, other) for one, other in zip(before, moving(method, optimizer), strict=True))
    for _ in range(MOST):
        step(method, optimizer)
    with pytest.raises(FloatingPointError, match=f"is not finite, {MOST + 1} steps in a row"):
        step(method, optimizer)


def test_clipping_does_not_hide_whose_gradient_it_was(tmp_path: Path) -> None:
    """It multiplies all gradients by the norm of all, which is NaN."""
    method = METHODS["sequential"](tiny_bert())
    name, parameter = factor(method.model)
    spoil(parameter, 2)
    options = arguments(tmp_path, max_steps=3, gradient_accumulation_steps=2, max_grad_norm=1.0)
    with pytest.raises(FloatingPointError, match=f"the gradient of {name} is not finite"):
        fit(method.model, rows_task(), method, options)


def test_retraction_names_the_factor_that_leaves_the_manifold() -> None:
    method = METHODS["eblora"](tiny_bert())
    method.begin_task(texts())
    optimizer = torch.optim.SGD(method.param_groups(), lr=1.0)
    attach(optimizer, method)
    name = list(method.sites)[1]

    def jump(*_: Any) -> None:
        method.sites[name].layer.lora_A["default"].weight.data.fill_(float("inf"))

    optimizer.register_step_pre_hook(jump)
    with pytest.raises(FloatingPointError, match=f"A of {name}: a step has left the Stiefel manifold"):
        step(method, optimizer)


def test_dependent_columns_are_named_too() -> None:
    from retain.stiefel import Points

    X = torch.linalg.qr(torch.randn(2, 6, 3)).Q
    points = Points([nn.Parameter(x) for x in X], names=["one", "two"])
    points.parameters[1].data -= points.start[1] @ torch.diag(torch.tensor([0.0, 0.0, 1.0]))
    points.start[1] = points.parameters[1].data  # a start that was no point already
    with pytest.raises(ValueError, match="^two: no orthonormal columns are nearest to dependent ones"):
        points.retract(1.0, "euclidean")


@pytest.mark.usefixtures("fast_runs")
def test_a_run_says_what_is_saved_or_what_it_has_left_out(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(model: Any, *args: Any, **kwargs: Any) -> int:
        hook = spoil(factor(model)[1], 3)
        try:
            return fit(model, *args, **kwargs)
        finally:
            hook.remove()

    monkeypatch.setattr(running, "fit", spoiled)
    training = {"max_steps": 5, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
    config = settings(bert, tmp_path, "mood", training=training)
    saved = Path(config.output, "tasks", "00-mood", "trainer", "checkpoint-2")
    with pytest.raises(FloatingPointError, match=f"lora_B.* is not finite: .* What is saved is good: {saved}"):
        running.run(config, quiet())
    config = settings(bert, tmp_path, "mood", training=training, not_finite="skip", output=str(tmp_path / "skip"))
    running.run(config, quiet())
    found = store.read_json(Path(config.output, "tasks", "00-mood", "scores.json"))
    assert found["warnings"] == ["steps that were left out because their gradients were not finite: 1"]
    assert [entry.get("left_out", 0) for entry in found["history"]] == [0, 0, 0, 1, 1, 1]


def test_what_is_to_be_done_is_checked_at_the_door(bert: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not_finite: 'ignore' is not allowed; expected 'skip' or 'stop'|'stop' or"):
        parse(document(bert, tmp_path, "mood", not_finite="ignore"))
    with pytest.raises(ValueError, match="not_finite='ignore' is not allowed; known: stop, skip"):
        Gradients(tiny_bert(), "ignore")  # type: ignore[arg-type]
