"""EBLoRA at the boundaries of tasks: what it protects, what it does where no space is left, what it refuses."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from manifold import off_manifold, unevenness
from models import (
    fit,
    layers,
    texts,
    tiny_bert,
    train,
)
from retain import EBLoRA
from retain.subspace import statistics
from retain.task import Task

A, B, C = (texts(name, seed=seed) for seed, name in enumerate("abc"))
pytestmark = pytest.mark.filterwarnings("ignore:trained for more than one task")


def test_an_adapter_that_is_no_fresh_one_is_folded_and_not_lost() -> None:
    model = tiny_bert()
    with torch.no_grad():
        for p in (p for n, p in model.named_parameters() if "lora_B" in n):
            p.normal_(std=0.1)
    method = EBLoRA(model)
    before = {n: s.delta() for n, s in method.sites.items()}
    method.begin_task(A)
    for name, site in method.sites.items():
        past_B, past_A = site.past
        torch.testing.assert_close(site.scale * past_B @ past_A, before[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["mean gradient", "second moment", "features"])
def test_what_a_task_leaves_is_held_and_later_updates_do_not_reach_it(source: str) -> None:
    method = EBLoRA(tiny_bert(), subspace=source, energy=0.8)
    train(method, A)
    method.model.eval()
    found = statistics(method.model, layers(method.model), A, source, seed=method.boundary_seed)
    method.end_task(A)
    past = {n: s.past for n, s in method.sites.items()}
    train(method, B)
    for name, site in method.sites.items():
        F = method.bases[name]["F"]
        C = (found[name].T @ found[name] if source == "mean gradient" else found[name]).double()
        assert float((F.T.double() @ C @ F.double()).trace() / C.trace()) >= 0.8 - 1e-5
        assert torch.equal(site.past[0], past[name][0])
        assert float((site.A @ F).abs().max()) < 1e-5
    method.end_task(B)
    assert method.boundary["held"] >= 0.8 - 1e-5 and 0 < method.boundary["fullest"] <= 1
    assert method.boundary["directions"] == sum(b["F"].shape[1] for b in method.bases.values())
    assert method.boundary["bytes"] == sum(t.nbytes for b in method.bases.values() for t in b.values())


def test_without_energy_updates_are_balanced_and_nothing_is_held() -> None:
    with pytest.warns(UserWarning, match="energy is 0: .* kept clear of nothing"):
        method = EBLoRA(tiny_bert(), energy=0.0)
    for task in (A, B):
        train(method, task)
        assert unevenness(method) < 1e-5
        method.end_task(task)
    assert method.boundary["directions"] == 0


@pytest.mark.parametrize("policy", ["lower energy", "drop least"])
def test_exhausted_space_is_told_with_numbers_and_leaves_room_for_the_next_task(policy: str) -> None:
    method = EBLoRA(tiny_bert(r=12, lora_alpha=12), subspace="second moment", energy=1.0, exhausted=policy)
    fit(method, A)
    with pytest.warns(UserWarning, match=rf"no space left at \d of 6 sites after 'b'; .*: 20 of 32 .* \({policy}\)"):
        fit(method, B)
    assert all(basis["F"].shape[1] <= 20 for basis in method.bases.values())
    train(method, C)
    assert off_manifold(method) < 1e-5


def test_exhausted_space_stops_where_it_is_to() -> None:
    method = EBLoRA(tiny_bert(r=12, lora_alpha=12), subspace="second moment", energy=1.0, exhausted="stop")
    with pytest.raises(ValueError, match=r"query: no space left: \d+ of at most 20 directions are taken"):
        for task in (A, B):
            fit(method, task)


def test_a_basis_that_leaves_no_room_is_refused_at_the_start_of_a_task() -> None:
    method = EBLoRA(tiny_bert())
    state = method.state_dict()
    name = next(iter(method.sites))
    state[f"bases/{name}/F"], state[f"bases/{name}/energy"] = torch.eye(32)[:, :30], torch.ones(30)
    method.load_state_dict(state)
    with pytest.raises(ValueError, match=f"{name}: no space left: earlier tasks take 30 of 32 .* the adapter needs 4"):
        method.begin_task(A)
    state[f"bases/{name}/F"] = torch.eye(31)[:, :30]
    with pytest.raises(ValueError, match=rf"{name}: a basis \(31, 30\) does not fit 32 inputs"):
        method.load_state_dict(state)


class Flat:
    """A likelihood that no parameter changes."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * outputs.sum(1)

    def scores(self, labels: Any, outputs: Tensor, *_: Any) -> Any:
        yield torch.zeros_like(outputs)


def test_without_any_gradient_it_warns_at_the_start_and_refuses_at_the_end() -> None:
    method, flat = EBLoRA(tiny_bert()), Task("flat", A.train, loss=Flat())
    with pytest.warns(UserWarning, match="no gradient on 'flat': bert.* start at random"):
        method.begin_task(flat)
    assert off_manifold(method) < 1e-5
    with pytest.raises(RuntimeError, match="the mean gradient of 'flat' is zero everywhere, so nothing would protect"):
        method.end_task(flat)


def test_what_trains_beside_is_warned_of() -> None:
    method = EBLoRA(tiny_bert())
    fit(method, A)
    with pytest.warns(UserWarning, match="trained for more than one task, but not protected: .*classifier"):
        method.begin_task(B)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subspace": "features "}, "unknown subspace 'features '; known: mean gradient, second moment, features; did"),
        ({"exhausted": "ignore"}, "unknown exhausted 'ignore'; known: lower energy, drop least, stop"),
        ({"energy": -0.1}, r"energy must lie in \[0, 1\], got -0.1"),
        ({"energy": 99}, r"energy must lie in \[0, 1\], got 99"),
        ({"s_min": 0.1, "s_max": 0.01}, "0 <= s_min <= s_max must hold, got 0.1 and 0.01"),
        ({"s_max": math.inf}, "0 <= s_min <= s_max must hold"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"reference": ["half base"]}, "unknown reference 'half base'; known: pretrained gradients, .*; did you mean"),
    ],
)
def test_a_bad_option_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EBLoRA(tiny_bert(), **options)
    assert "\n" not in str(error.value)


def test_factors_of_half_precision_are_refused() -> None:
    with pytest.raises(ValueError, match=r"factors in torch.bfloat16 are orthonormal to three digits only"):
        EBLoRA(tiny_bert().bfloat16())


def test_a_scale_at_which_little_is_learned_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="lora_alpha/r is 1: .* set lora_alpha to 5 r"):
        EBLoRA(tiny_bert(r=4, lora_alpha=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        EBLoRA(tiny_bert(r=4, lora_alpha=20))
