"""EBLoRA: the manifold around any optimizer, where a task starts, what it leaves protected."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from adapters import tiny_resnet
from manifold import off_manifold, unevenness
from method_oracles import riemannian_descent
from models import (
    adapted,
    bare_bert,
    fit,
    images,
    layers,
    prompts,
    texts,
    tiny_bert,
    tiny_llama,
    tiny_mlp,
    train,
    vectors,
)
from retain import EBLoRA, attach
from retain.balanced import originals
from retain.lora import adapter_parameters, load_adapter
from retain.subspace import statistics
from retain.task import Task, forward

A, B, C = (texts(name, seed=seed) for seed, name in enumerate("abc"))
pytestmark = pytest.mark.filterwarnings("ignore:trained for more than one task")


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, centered=True, momentum=0.5),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("AdamW", 100),
        pytest.param("AdamW", 1000, marks=pytest.mark.slow),
        ("SGD", 100),
        ("RMSprop", 100),
        ("Adafactor", 100),
    ],
)
def test_any_optimizer_stays_on_the_manifold_whatever_the_gradients(name: str, steps: int) -> None:
    method = EBLoRA(tiny_mlp(), energy=0.5)
    fit(method, vectors("first"))
    assert any(basis["F"].shape[1] for basis in method.bases.values())
    method.begin_task(vectors("second", seed=1))
    optimizer = OPTIMIZERS[name](method.param_groups())
    attach(optimizer, method)
    factors = [p for site in method.sites.values() for p in site.parameters]
    before = [p.detach().clone() for p in factors]
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for p in factors:
            p.grad = 10 ** (step % 5 - 2) * torch.randn(p.shape, generator=generator)
        optimizer.step()
    assert off_manifold(method) < 1e-5
    assert unevenness(method) < 1e-5
    assert all(not torch.allclose(p, q, atol=1e-6) for p, q in zip(factors, before, strict=True))


@pytest.mark.parametrize(
    ("make", "task"),
    [(tiny_bert, texts), (tiny_llama, prompts), (tiny_resnet, images)],
    ids=["bert", "llama", "resnet"],
)
def test_every_kind_of_layer_stays_on_the_manifold_and_leaves_as_stock_lora(
    make: Any, task: Any, tmp_path: Any
) -> None:
    method = EBLoRA(make(), energy=0.6)
    for module in method.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics are no part of an adapter
    for seed, name in enumerate("ab"):
        train(method, task(name, seed=seed), learning_rate=1e-3)
        assert off_manifold(method) < 1e-5 and unevenness(method) < 1e-5
        if seed == 0:
            method.end_task(task(name, seed=seed))
    method.model.save_pretrained(tmp_path)
    stock = load_adapter(make().unload(), tmp_path).eval()
    batch = task("c", seed=2).train[0]
    method.model.eval()
    with torch.no_grad():
        ours, theirs = forward(method.model, batch)[0], forward(stock, batch)[0]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_a_step_of_plain_sgd_is_riemannian_gradient_descent() -> None:
    method, rate = EBLoRA(tiny_bert().double(), energy=0.6), 0.05
    fit(method, A)
    method.begin_task(B)
    optimizer = torch.optim.SGD(method.param_groups(), lr=rate)
    method.model.eval()
    B.loss.nll(*forward(method.model, B.train[0])).mean().backward()
    start = {n: (s.A.detach().clone(), originals(s)[0].detach().clone()) for n, s in method.sites.items()}
    slope = {n: [p.grad.clone() for p in s.parameters] for n, s in method.sites.items()}
    before = {n: originals(s)[1].detach().clone() for n, s in method.sites.items()}
    attach(optimizer, method)
    optimizer.step()
    for name, site in method.sites.items():
        (A0, Q0), (dQ, ds, dA), (Q, s) = start[name], slope[name], originals(site)
        F = method.bases[name]["F"]
        ours = [(site.A.T, A0.T, dA.T, F), (Q, Q0, dQ, Q0[:, :0])]
        for found, X, gradient, kept in ours:
            expected = riemannian_descent(X, gradient, kept, rate * (4096 / len(X)) ** 0.5)
            torch.testing.assert_close(found.detach(), expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(s.detach(), before[name] - rate * ds)


@pytest.mark.parametrize("reference", [(), ("rank scaling",)])
def test_the_rotation_of_a_step_does_not_depend_on_the_width(reference: tuple[str, ...]) -> None:
    """Of the mean column of both factors under AdamW with random gradients; the reference's grows by sqrt 2."""
    turned = []
    for width in (64, 128):
        model = adapted(bare_bert(hidden_size=width, intermediate_size=width), target_modules=["query", "value"])
        method = EBLoRA(model, reference=reference, width=512)
        method.begin_task(A)
        start = {n: (s.A.detach().clone(), originals(s)[0].detach().clone()) for n, s in method.sites.items()}
        optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3)
        attach(optimizer, method)
        generator = torch.Generator().manual_seed(0)
        for p in (p for site in method.sites.values() for p in site.parameters):
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        cosines = [(site.A * start[n][0]).sum(1) for n, site in method.sites.items()]
        cosines += [(originals(site)[0] * start[n][1]).sum(0) for n, site in method.sites.items()]
        turned.append(float(torch.cat(cosines).double().clamp(max=1).acos().mean()))
    assert turned[1] / turned[0] == pytest.approx(2**0.5 if reference else 1, rel=0.05)
    if not reference:
        assert turned[0] == pytest.approx(1e-3 * 512**0.5, rel=0.1)


def test_a_task_starts_at_the_leading_directions_of_its_mean_gradient_downhill_and_deeper_layers_farther() -> None:
    method = EBLoRA(tiny_bert(), energy=0.6, s_min=1e-3, s_max=3e-3)
    fit(method, A)
    G = statistics(method.model, layers(method.model), B, "mean gradient")
    losses = [loss(method, B)]
    method.begin_task(B)
    losses.append(loss(method, B))
    assert losses[1] < losses[0]
    for name, site in method.sites.items():
        F = method.bases[name]["F"]
        H = G[name].T - F @ (F.T @ G[name].T)
        U, S, Vh = torch.linalg.svd(H.double(), full_matrices=False)
        slope = float((G[name] * site.scale * (site.B @ site.A)).sum())
        s = -1e-3 if "layer.0" in name else -3e-3
        assert slope == pytest.approx(site.scale * s * float(S[:4].sum()), rel=1e-3)
        assert float(originals(site)[1]) == pytest.approx(s)
    assert off_manifold(method) < 1e-5


def loss(method: EBLoRA, task: Task) -> float:
    method.model.eval()
    with torch.no_grad():
        return float(torch.cat([task.loss.nll(*forward(method.model, batch)) for batch in task.train]).mean())


def test_factors_have_no_weight_decay_and_what_is_beside_keeps_its_own() -> None:
    method = EBLoRA(tiny_bert())
    groups = method.param_groups()
    factors = {id(p) for site in method.sites.values() for p in site.parameters}
    assert {id(p) for p in groups[0]["params"]} == factors and groups[0]["weight_decay"] == 0
    assert "weight_decay" not in groups[1]


def test_a_state_goes_through_and_continues_without_another_beginning() -> None:
    """An own loop that stopped in the middle of a task: parameters and state are enough for A F = 0."""
    first, second = EBLoRA(tiny_bert(), energy=0.6), EBLoRA(tiny_bert(), energy=0.6)
    fit(first, A)
    first.begin_task(B)
    with torch.no_grad():
        for name, parameter in adapter_parameters(second.model).items():
            parameter.copy_(adapter_parameters(first.model)[name])
    second.load_state_dict(first.state_dict())
    for method in (first, second):
        method.model.eval()
        optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3)
        attach(optimizer, method)
        B.loss.nll(*forward(method.model, B.train[0])).mean().backward()
        optimizer.step()
    ours, theirs = adapter_parameters(first.model), adapter_parameters(second.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert off_manifold(second) < 1e-5


@pytest.mark.slow
def test_each_choice_of_the_reference_does_what_it_says() -> None:
    def learned(*reference: Any) -> EBLoRA:
        method = EBLoRA(tiny_bert(), energy=0.6, reference=reference)
        fit(method, A)
        train(method, B, learning_rate=1e-3)
        return method

    plain = learned()
    for quirk in ("pretrained gradients", "rank scaling", "non-projector", "half bases"):
        with warnings.catch_warnings(action="ignore"):
            other = learned(quirk)
        assert any(not torch.equal(s.A, other.sites[n].A) for n, s in plain.sites.items()), quirk
        if quirk == "half bases":
            errors = [(b["F"].T @ b["F"] - torch.eye(b["F"].shape[1])).abs().max() for b in other.bases.values()]
            assert 1e-5 < max(errors) < 1e-2


def adapted_like(method: EBLoRA) -> Any:
    """The tiny model without an update, under the head that ``method`` has trained."""
    bare = tiny_bert()
    trained = {name: p for name, p in method.model.named_parameters() if "classifier" in name}
    bare.load_state_dict(trained, strict=False)
    return bare


def test_pretrained_gradients_are_those_of_the_model_without_the_adapter() -> None:
    method = EBLoRA(tiny_bert(), energy=0.6, reference=["pretrained gradients"])
    fit(method, A)
    train(method, B)
    before = {n: (s.delta(), s.past[0].clone()) for n, s in method.sites.items()}
    found = method._measured(B, "mean gradient")
    for name, site in method.sites.items():
        assert torch.equal(site.delta(), before[name][0]) and torch.equal(site.past[0], before[name][1])
    bare = adapted_like(method)
    expected = statistics(bare, layers(bare), B, "mean gradient", samples=1000, seed=method.boundary_seed)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
