"""Statistics against a loop over examples in float64, and what must hold of a basis that grows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import tiny_resnet
from models import filled, images, layers, prompts, texts, tiny_bert, tiny_llama
from oracles import log_likelihoods, relative_error, single_rows
from retain.lora import sites
from retain.subspace import Basis, grow, grow_by_moment, statistics
from retain.task import Draws

N = 20


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steep(m: int = 9, seed: int = 0, base: float = 2.0) -> Tensor:
    """H (N, m) whose singular values halve from one to the next."""
    U, _, Vh = torch.linalg.svd(random(N, m, seed=seed), full_matrices=False)
    return U * base ** -torch.arange(min(N, m), dtype=torch.float64) @ Vh


def empty(n: int = N) -> Basis:
    return Basis.empty(torch.zeros(1, dtype=torch.float64), n)


def share(F: Tensor, H: Tensor) -> float:
    return float((F.T @ H).square().sum() / H.square().sum())


def assert_orthonormal(F: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(F.T @ F, torch.eye(F.shape[1], dtype=F.dtype), atol=tolerance, rtol=0)


@pytest.mark.parametrize("m", [9, 33])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_the_first_growth_takes_the_fewest_directions_that_hold_the_energy(m: int, energy: float) -> None:
    H = steep(m)
    growth = grow(empty(), H, energy, N)
    F, S = growth.basis.F, torch.linalg.svdvals(H).square()
    held = S.cumsum(0) / S.sum()
    assert F.shape[1] == growth.wanted == int((held < energy - 1e-12).sum()) + 1 or energy == 1.0
    assert_orthonormal(F)
    assert share(F, H) == pytest.approx(growth.held, abs=1e-12) and growth.held >= energy - 1e-12
    torch.testing.assert_close(growth.basis.energy, (S / S.sum())[: F.shape[1]], atol=1e-12, rtol=0)
    assert growth.explained == growth.lost == 0


def test_growing_keeps_the_span_reaches_the_energy_and_takes_nothing_for_what_is_explained() -> None:
    first = grow(empty(), steep(seed=0), 0.95, N).basis
    second = grow(first, steep(seed=1), 0.95, N)
    F = second.basis.F
    assert_orthonormal(F)
    torch.testing.assert_close(F @ (F.T @ first.F), first.F, atol=1e-12, rtol=0)
    assert 0 < second.explained < 0.95 <= second.held
    assert F.shape[1] == first.F.shape[1] + second.wanted
    fewer = grow(first, steep(seed=1), 0.95, N).basis.F[:, :-1].shape[1]
    assert fewer + 1 == F.shape[1]
    again = grow(second.basis, steep(seed=1), 0.95, N)
    assert again.wanted == 0 and again.basis.F.shape == F.shape
    assert float(again.basis.energy.sum()) == pytest.approx(float(second.basis.energy.sum()) + again.held)


def test_energies_are_what_the_columns_hold_of_all_that_was_learned() -> None:
    tasks = [steep(m=N, seed=seed, base=1.3) for seed in range(3)]
    basis = empty()
    for H in tasks:
        basis = grow(basis, H, 1.0, N).basis
    held = [sum(float((f @ H).square().sum() / H.square().sum()) for H in tasks) for f in basis.F.T]
    assert basis.energy.tolist() == pytest.approx(held, abs=1e-10)
    assert held == sorted(held, reverse=True)


def test_stop_raises_with_numbers() -> None:
    basis = grow(empty(), steep(seed=0), 0.99, N).basis
    with pytest.raises(
        ValueError, match=rf"no space left: {basis.F.shape[1]} of at most 6 .* holding 0.99 .* takes \d"
    ):
        grow(basis, steep(seed=1), 0.99, 6, "stop")


def test_lower_energy_keeps_what_was_held_and_adds_the_strongest_that_fit() -> None:
    first = grow(empty(), steep(seed=0), 0.99, N).basis
    limit = first.F.shape[1] + 1
    growth = grow(first, steep(seed=1), 0.99, limit, "lower energy")
    F = growth.basis.F
    assert F.shape[1] == limit and growth.wanted > 1 and growth.lost == 0
    torch.testing.assert_close(F @ (F.T @ first.F), first.F, atol=1e-12, rtol=0)
    rest = steep(seed=1) - first.F @ (first.F.T @ steep(seed=1))
    best = float(torch.linalg.svdvals(rest)[0] ** 2 / steep(seed=1).square().sum())
    assert growth.held == pytest.approx(growth.explained + best) and growth.held < 0.99
    full = grow(growth.basis, steep(seed=2), 0.99, limit, "lower energy")
    assert full.held == pytest.approx(full.explained) and full.wanted > 0 and full.basis.F.shape == F.shape


def test_drop_least_lets_the_weakest_go_whoever_they_belong_to() -> None:
    first = grow(empty(), steep(seed=0), 0.99, N).basis
    limit = first.F.shape[1]
    growth = grow(first, steep(seed=1), 0.99, limit, "drop least")
    assert growth.basis.F.shape[1] == limit and 0 < growth.lost < 0.1
    assert_orthonormal(growth.basis.F)
    stubborn = grow(first, steep(seed=1), 0.99, limit, "lower energy")
    assert growth.held > stubborn.held
    assert share(growth.basis.F, steep(seed=0)) > 0.9
    everything = grow(first, steep(seed=1), 0.99, N, "drop least")
    assert everything.lost == 0 and everything.basis.F.shape[1] > limit


def test_float32_stays_orthonormal_over_many_tasks() -> None:
    basis = Basis.empty(torch.zeros(1), 200)
    for seed in range(12):
        basis = grow(basis, random(200, 30, seed=seed).float(), 0.9, 190, "drop least").basis
    assert basis.F.dtype == torch.float32 and basis.F.is_contiguous()
    assert_orthonormal(basis.F, 2e-6)


@pytest.mark.parametrize("H", [torch.zeros(N, 3), torch.full((N, 3), torch.nan)])
def test_nothing_to_hold_is_refused(H: Tensor) -> None:
    with pytest.raises(ValueError, match=r"nothing to hold: the squared norm of H \(20, 3\) is"):
        grow(empty(), H, 0.9, N)


@pytest.mark.parametrize(("limit", "exhausted"), [(N, "stop"), (8, "lower energy"), (8, "drop least")])
def test_a_second_moment_grows_a_basis_as_its_root_does(limit: int, exhausted: Any) -> None:
    ours = theirs = empty()
    for H in (steep(seed=seed) for seed in range(3)):
        found, expected = grow_by_moment(ours, H @ H.T, 0.9, limit, exhausted), grow(theirs, H, 0.9, limit, exhausted)
        for number in ("explained", "held", "wanted", "lost"):
            assert getattr(found, number) == pytest.approx(getattr(expected, number), abs=1e-9)
        ours, theirs = found.basis, expected.basis
        torch.testing.assert_close(ours.F @ ours.F.T, theirs.F @ theirs.F.T, atol=1e-9, rtol=0)
        torch.testing.assert_close(ours.energy, theirs.energy, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", [0, 9, 11])
def test_a_second_moment_of_inputs_most_of_which_are_always_zero_converges(seed: int) -> None:
    """In float32 the eigenvalues of some of these do not."""
    alive = torch.rand(144, generator=torch.Generator().manual_seed(seed)) < 0.3
    X = torch.where(alive, random(20, 144, seed=seed).relu(), 0).float()
    growth = grow_by_moment(Basis.empty(X, 144), X.T @ X, 1.0, 144)
    assert growth.held == pytest.approx(1, abs=1e-5) and growth.basis.F.shape[1] <= 20


def gradients(model: Any, task: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """E[G] and E[G'G] of every adapted weight by a loop over rows through the merged model, in float64."""
    names = list(sites(model))
    merged = copy.deepcopy(model).double().eval().merge_and_unload()
    weights = {name: merged.get_submodule(name).weight for name in names}
    for parameter in merged.parameters():
        parameter.requires_grad_(any(parameter is w for w in weights.values()))
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for row in single_rows(task):
        ((_, likelihood),) = log_likelihoods(merged, row, task, "data", Draws(torch.tensor([0])))
        for name, g in zip(names, torch.autograd.grad(-likelihood, list(weights.values())), strict=True):
            found[name].append(g.flatten(1))
    means = {name: sum(each) / len(each) for name, each in found.items()}
    return means, {name: sum(g.T @ g for g in each) / len(each) for name, each in found.items()}


@pytest.mark.parametrize(("make", "rows"), [(tiny_bert, texts), (tiny_llama, prompts), (tiny_resnet, images)])
def test_gradients_are_those_of_single_rows_whatever_the_batch(make: Any, rows: Any) -> None:
    model, task = filled(make()), rows()
    mean, second = gradients(model, task)
    for size in (16, 3) if make is not tiny_resnet else (4,):
        assert relative_error(statistics(model, layers(model), task, "mean gradient", batch_size=size), mean) < 2e-4
        assert relative_error(statistics(model, layers(model), task, "second moment", batch_size=size), second) < 2e-4


def test_features_are_second_moments_of_inputs_that_count_and_of_no_padding() -> None:
    model, task = tiny_bert(), texts()
    name = "bert.encoder.layer.0.intermediate.dense"
    seen: list[Tensor] = []
    handle = sites(model)[name].layer.register_forward_hook(lambda _, args, __: seen.append(args[0].detach()))
    model.eval()
    with torch.no_grad():
        for batch in task.train:
            model(**{key: value for key, value in batch.items() if key != "labels"})
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in task.train]
    used = torch.cat([x[m] for x, m in zip(seen, masks, strict=True)]).double()
    found = statistics(model, layers(model), task, "features")[name]
    torch.testing.assert_close(found.double(), used.T @ used / 11, rtol=1e-4, atol=1e-5)


def test_a_pass_leaves_no_tracks_and_reads_as_many_rows_as_it_is_told() -> None:
    model, task = tiny_bert().train(), texts()
    before = [p.requires_grad for p in model.parameters()]
    few, all_ = (statistics(model, layers(model), task, "mean gradient", samples=n) for n in (3, None))
    assert model.training and [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    assert any(not torch.allclose(few[name], all_[name]) for name in few)
    other = statistics(model, layers(model), task, "mean gradient", samples=3, seed=5)
    assert any(not torch.allclose(few[name], other[name]) for name in few)
