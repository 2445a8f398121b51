"""SD-LoRA: what its magnitudes multiply and are pulled by, against dense weights; that directions stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters import tiny_resnet
from method_oracles import magnitude_gradient
from models import MLP, adapted, fit, images, texts, tiny_bert, train, vectors
from retain import SDLoRA, Share
from retain.lora import adapter_parameters, load_adapter
from retain.task import Task, forward

A, B, C = (vectors(name, seed=seed) for seed, name in enumerate("abc"))
pytestmark = pytest.mark.filterwarnings("ignore:trained for more than one task")


def mlp() -> Any:
    """Its head stays as it is."""
    return adapted(MLP(), r=2, target_modules=["0", "2"])


def learned(*tasks: Any, **options: Any) -> tuple[SDLoRA, list[dict[str, Tensor]]]:
    """A method that has been through ``tasks``, and what each trained beside the past: s B A (out, in) by layer."""
    method, changes = SDLoRA(mlp(), **options), []
    for task in tasks:
        train(method, task, epochs=2)
        changes.append({n: (site.B @ site.A).detach().double() for n, site in method.sites.items()})
        method.end_task(task)
    return method, changes


def factors(method: SDLoRA) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What every task has in the past of a layer, (out, 2) and (2, in), the latest first."""
    pasts = {name: [x.detach().double() for x in site.past] for name, site in method.sites.items()}
    return {n: list(zip(B.split(2, 1), A.split(2), strict=True)) for n, (B, A) in pasts.items()}


def parts(method: SDLoRA) -> dict[str, list[Tensor]]:
    """Their products (out, in)."""
    return {name: [B @ A for B, A in pairs] for name, pairs in factors(method).items()}


def lengths(method: SDLoRA) -> dict[str, list[float]]:
    """||B|| ||A|| of them."""
    return {name: [float(B.norm() * A.norm()) for B, A in pairs] for name, pairs in factors(method).items()}


def magnitudes_of(method: SDLoRA) -> torch.nn.Parameter:
    return method.param_groups()[1]["params"][0]


def test_a_task_begins_with_the_function_and_directions_of_norm_one_over_all_layers() -> None:
    method, (first, second) = learned(A, B)
    before = {name: site.delta() for name, site in method.sites.items()}
    latest = {name: part[0] for name, part in parts(method).items()}
    for name, change in latest.items():
        torch.testing.assert_close(change, second[name])
    method.begin_task(C)
    assert all(torch.equal(site.delta(), before[name]) for name, site in method.sites.items())
    s, newer, older = method.magnitudes.tolist()
    assert s == pytest.approx(0.8)
    for magnitude, changes in ((newer, latest), (older, {n: part[1] for n, part in parts(method).items()})):
        assert sum(float((D / magnitude).square().sum()) for D in changes.values()) / 2 == pytest.approx(1)
    ratio = {n: float((part[1] * first[n]).sum() / first[n].square().sum()) for n, part in parts(method).items()}
    assert ratio["0"] == pytest.approx(ratio["2"]) and ratio["0"] != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("reference", [(), ("reset magnitudes",)])
def test_magnitudes_multiply_whole_directions_and_their_gradients_are_those_of_dense_weights(reference: Any) -> None:
    method, _ = learned(A, B, reference=reference)
    kept, norms = parts(method), lengths(method)
    method.begin_task(C)
    sizes = method.magnitudes[1:].tolist()
    with torch.no_grad():
        for site in method.sites.values():
            site.set_factors(torch.randn(site.B.shape) * 0.3, site.A)
        values = torch.tensor([0.5, -0.7, 1.9])
        magnitudes_of(method).copy_(values)
    directions = {}
    for name, site in method.sites.items():
        present = site.B.detach().double() @ site.A.detach().double() / 0.5
        earlier = [P / n for P, n in zip(kept[name], norms[name] if reference else sizes, strict=True)]
        directions[name] = [site.scale * D for D in (present, *earlier)]
        dense = sum(value * D for value, D in zip(values.tolist(), directions[name], strict=True))
        torch.testing.assert_close(site.delta().detach().double(), dense, atol=1e-6, rtol=1e-5)
    method.model.eval()
    C.loss.nll(*forward(method.model, C.train[0])).mean().backward()
    expected = magnitude_gradient(MLP(), directions, values.tolist(), C.train[0])
    torch.testing.assert_close(magnitudes_of(method).grad.double(), expected, atol=1e-6, rtol=1e-4)


def test_training_moves_every_magnitude_and_turns_no_direction() -> None:
    method, _ = learned(A, B)
    before = parts(method)
    train(method, C, epochs=2)
    began, now = method._began, method.magnitudes
    assert len(now) == 3 and bool((began != now).all())
    method.end_task(C)
    for name, part in parts(method).items():
        for i in (0, 1):
            torch.testing.assert_close(part[1 + i], before[name][i] * float(now[1 + i] / began[1 + i]))
    assert method.magnitudes.tolist() == pytest.approx([0.8])
    changes = (now / began)[1:]
    assert method.boundary["least"] == pytest.approx(float(changes.min()))
    assert method.boundary["most"] == pytest.approx(float(changes.max()))


def test_magnitudes_are_one_parameter_for_all_layers_without_weight_decay() -> None:
    method, _ = learned(A)
    method.begin_task(B)
    factors, magnitudes = method.param_groups()
    assert len(factors["params"]) == 4 and len({id(p) for p in factors["params"]}) == 4
    (shared,) = magnitudes["params"]
    assert magnitudes["weight_decay"] == 0 and "weight_decay" not in factors
    assert torch.equal(shared.detach(), method.magnitudes)
    assert sum(p is shared for p in method.model.parameters()) == 1
    assert sum(p is shared for p in adapter_parameters(method.model).values()) == 1


def test_the_reference_resets_magnitudes_so_that_the_function_jumps_as_a_task_begins() -> None:
    method, _ = learned(A, reference=["reset magnitudes"])
    before, norms = parts(method), lengths(method)
    method.begin_task(B)
    assert method.magnitudes.tolist() == pytest.approx([0.8, 0.8])
    for name, part in parts(method).items():
        torch.testing.assert_close(part[0], 0.8 * before[name][0] / norms[name][0])


def test_a_training_that_stopped_continues_from_state_and_parameters_to_the_bit() -> None:
    first, _ = learned(A, B)
    second = SDLoRA(mlp())
    with torch.no_grad():
        for name, parameter in adapter_parameters(second.model).items():
            parameter.copy_(adapter_parameters(first.model)[name])
    second.load_state_dict(first.state_dict())
    train(first, C)
    second.begin_task(C)
    with torch.no_grad():
        for name, parameter in adapter_parameters(second.model).items():
            parameter.copy_(adapter_parameters(first.model)[name])
    assert all(torch.equal(site.delta(), second.sites[name].delta()) for name, site in first.sites.items())


def test_a_state_that_is_taken_back_in_the_middle_of_a_task_is_that_of_the_boundary() -> None:
    method, _ = learned(A, B)
    state, before = method.state_dict(), parts(method)
    train(method, C)
    with torch.no_grad():
        magnitudes_of(method).mul_(2)
    method.load_state_dict(state)
    assert method.magnitudes.tolist() == pytest.approx([0.8])
    for name, part in parts(method).items():
        assert all(torch.equal(P, Q) for P, Q in zip(part, before[name], strict=True))


def test_stock_factors_of_the_same_training_give_its_magnitudes_back(tmp_path: Any) -> None:
    method, _ = learned(A, B)
    train(method, C, epochs=2)
    method.model.save_pretrained(tmp_path)
    wanted, deltas = method.magnitudes, {n: site.delta() for n, site in method.sites.items()}
    held = parts(method)
    with torch.no_grad():
        magnitudes_of(method).copy_(torch.tensor([0.8, 1.0, -2.0]))
    method.model.load_adapter(str(tmp_path), "default", is_trainable=True)
    torch.testing.assert_close(method.magnitudes[1:], wanted[1:])
    for name, site in method.sites.items():
        torch.testing.assert_close(site.delta(), deltas[name])
        torch.testing.assert_close(parts(method)[name][1], held[name][1])


@pytest.mark.parametrize(
    ("make", "task"),
    [(tiny_bert, texts), (tiny_resnet, images)],
    ids=["bert", "resnet"],
)
def test_in_the_middle_of_a_task_every_kind_of_layer_leaves_as_stock_lora(make: Any, task: Any, tmp_path: Any) -> None:
    method = SDLoRA(make())
    for module in method.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics are no part of an adapter
    fit(method, task("a"), learning_rate=1e-3)
    train(method, task("b", seed=1), learning_rate=1e-3)
    method.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not [name for name in saved if "past" in name or "parametrizations" in name]
    stock = load_adapter(make().unload(), tmp_path).eval()
    batch = task("c", seed=2).train[0]
    method.model.eval()
    with torch.no_grad():
        ours, theirs = forward(method.model, batch)[0], forward(stock, batch)[0]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_a_copy_of_the_model_has_magnitudes_of_its_own() -> None:
    method, _ = learned(A)
    train(method, B)
    twin = copy.deepcopy(method.model)
    before = forward(twin, C.train[0])[0]
    with torch.no_grad():
        magnitudes_of(method).mul_(3)
    torch.testing.assert_close(forward(twin, C.train[0])[0], before, atol=0, rtol=0)
    assert not torch.equal(forward(method.model, C.train[0])[0], before)


def test_magnitudes_are_float32_beside_factors_of_less() -> None:
    """A step of 1e-3 is nothing to 0.8 in bfloat16."""
    method = SDLoRA(mlp().bfloat16())
    task = Task("half", [(x.bfloat16(), y) for x, y in A.train])
    fit(method, task)
    train(method, task, learning_rate=1e-3)
    assert method.magnitudes.dtype == torch.float32
    assert bool((method.magnitudes != method._began).all()) and method.sites["0"].past[0].dtype == torch.bfloat16


def test_an_adapter_that_is_no_fresh_one_is_folded_and_not_lost() -> None:
    model = mlp()
    with torch.no_grad():
        for p in (p for n, p in model.named_parameters() if "lora_B" in n):
            p.normal_(std=0.1)
    method = SDLoRA(model)
    before = {name: site.delta() for name, site in method.sites.items()}
    method.begin_task(A)
    assert len(method.magnitudes) == 2
    for name, site in method.sites.items():
        torch.testing.assert_close(site.delta(), before[name], atol=1e-6, rtol=1e-5)


def test_factors_that_another_method_parametrised_and_a_bad_option_are_refused() -> None:
    model = mlp()
    Share(model)
    with pytest.raises(ValueError, match="0: weight has another parametrisation already"):
        SDLoRA(model)
    with pytest.raises(ValueError, match="unknown reference 'reset magnitude'; known: reset magnitudes; did you mean"):
        SDLoRA(mlp(), reference=["reset magnitude"])
