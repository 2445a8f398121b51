"""InfLoRA: its directions against singular vectors of all inputs, what they protect, and where no space is left."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import tiny_resnet
from method_oracles import fewest_inputs, inputs_by_loop, leading_inputs
from models import CLASSES, adapted, fit, images, prompts, seeded, tiny_bert, tiny_llama, train
from retain import InfLoRA
from retain.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:trained for more than one task")
WIDTH = 12


def wide(rank: int = 2) -> Any:
    """12 -> 10 -> 3, both maps adapted."""
    base = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, 10), nn.Tanh(), nn.Linear(10, CLASSES)))
    return adapted(base, r=rank, target_modules=["0", "2"])


def steep(name: str, seed: int, spread: int = WIDTH) -> Task:
    """Rows whose extent halves from one of their ``spread`` directions to the next; directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(WIDTH, spread, generator=generator)).Q
    sizes = 2.0 ** -torch.arange(spread)
    rows = [torch.randn(n, spread, generator=generator) * sizes @ axes.T for n in (16, 16, 9)]
    return Task(name, [(x, (x @ axes)[:, :CLASSES].argmax(1)) for x in rows])


A, B, C = (steep(name, seed) for seed, name in enumerate("abc"))


def learned(*tasks: Task, model: Any = wide, **options: Any) -> InfLoRA:
    method = InfLoRA(model(), **{"energy": 0.9} | options)
    for task in tasks:
        fit(method, task)
    return method


def taken(method: InfLoRA) -> dict[str, Tensor]:
    return {name: method._taken(name) for name in method.sites}


def projector(F: Tensor) -> Tensor:
    return F.double() @ F.double().T


@pytest.mark.parametrize(("reference", "power"), [((), 1), (("squared energy",), 2)])
def test_a_task_starts_at_the_leading_directions_of_its_inputs_outside_what_is_taken(
    reference: Any, power: int
) -> None:
    method = learned(A, reference=reference)
    rows = {name: inputs_by_loop(method.model, name, B) for name in method.sites}
    method.begin_task(B)
    for name, site in method.sites.items():
        expected = leading_inputs(rows[name], method._taken(name), 2, power)
        cosines = (site.A.detach().double() @ expected).abs() * 3**0.5
        torch.testing.assert_close(cosines, torch.eye(2, dtype=torch.float64), atol=1e-4, rtol=0)
        assert not site.B.any()


@pytest.mark.parametrize("reference", [(), ("squared energy",)])
def test_what_is_taken_is_the_fewest_directions_that_hold_the_energy_of_the_inputs(reference: Any) -> None:
    method = InfLoRA(wide(), energy=0.9, reference=reference)
    for task in (A, B):
        before, expected = taken(method), {}
        train(method, task)
        for name, F in before.items():
            X = inputs_by_loop(method.model, name, task)
            expected[name] = fewest_inputs(X.T @ X if reference else X, F, 0.9)
        method.end_task(task)
        for name, F in taken(method).items():
            assert F.shape == expected[name].shape
            torch.testing.assert_close(projector(F), projector(expected[name]), atol=1e-4, rtol=0)
    assert 0.9 <= method.boundary["held"] <= 1 and 0 < method.boundary["explained"] < 1
    assert method.boundary["directions"] == sum(F.shape[1] for F in taken(method).values())


def test_only_b_trains_and_what_is_taken_is_mapped_as_before() -> None:
    method = learned(A)
    before = {name: (site.delta(), method._taken(name)) for name, site in method.sites.items()}
    method.begin_task(B)
    start = {name: site.A.clone() for name, site in method.sites.items()}
    trained = [p for group in method.param_groups() for p in group["params"]]
    assert len(trained) == len(method.sites)
    train(method, B, epochs=3)
    for name, site in method.sites.items():
        assert torch.equal(site.A, start[name])
        change, F = site.delta() - before[name][0], before[name][1]
        assert float(change.norm()) > 0.01 and float((change @ F).abs().max()) < 1e-6


def test_of_a_basis_and_its_complement_the_smaller_is_kept_and_both_say_the_same() -> None:
    method = learned(A, energy=0.95)
    assert "taken" in method.bases["0"] and 0 < 2 * method._taken("0").shape[1] <= WIDTH
    fit(method, B)
    fit(method, C)
    (kind, kept), *_ = method.bases["0"].items()
    F = method._taken("0")
    assert kind == "free" and 2 * kept.shape[1] < WIDTH and F.shape[1] + kept.shape[1] == WIDTH
    torch.testing.assert_close(projector(F) + projector(kept), torch.eye(WIDTH).double(), atol=1e-6, rtol=0)
    assert method.boundary["bytes"] == sum(x.nbytes for kept in method.bases.values() for x in kept.values())


def test_the_energy_rises_over_the_tasks_that_are_named_and_stays() -> None:
    method = InfLoRA(wide(), energy=0.6, energy_end=0.9, tasks=3)
    found = []
    for i in range(5):
        found.append(method._epsilon)
        fit(method, steep(str(i), seed=i, spread=4))
    assert found == pytest.approx([0.6, 0.7, 0.8, 0.9, 0.9])


def test_exhausted_space_is_told_with_numbers_and_leaves_room_for_the_next_task() -> None:
    method = learned(A, energy=0.999)
    with pytest.warns(UserWarning, match=r"no space left at \d of 2 sites after 'b'; worst is \d: \d+ of 1\d dir"):
        fit(method, B)
    assert method.boundary["fullest"] == 1 and method.boundary["held"] < 0.999
    with warnings.catch_warnings(action="ignore"):
        train(method, C)
    assert all(float((site.A @ method._taken(name)).abs().max()) < 1e-6 for name, site in method.sites.items())
    stopping = learned(A, energy=0.999, exhausted="stop")
    with pytest.raises(ValueError, match=r"\d: no space left: \d+ of at most \d+ directions are taken"):
        fit(stopping, B)


def test_a_basis_that_leaves_no_room_or_does_not_fit_is_refused() -> None:
    method = InfLoRA(wide())
    state = method.state_dict()
    state["bases/0/taken"] = torch.eye(WIDTH)[:, : WIDTH - 1]
    method.load_state_dict(state)
    with pytest.raises(ValueError, match="0: no space left: earlier tasks take 11 of 12 directions, the .* needs 2"):
        method.begin_task(A)
    state["bases/0/taken"] = torch.eye(11)[:, :3]
    with pytest.raises(ValueError, match=r"0: a basis \(11, 3\) does not fit 12 inputs"):
        method.load_state_dict(state)


def test_columns_without_a_direction_stay_zero_and_are_warned_of() -> None:
    method = InfLoRA(wide(rank=3), energy=0.9)
    flat = steep("flat", seed=3, spread=1)
    with pytest.warns(UserWarning, match="little is left to learn 'flat' with at 1 of 2 .* at 0: .* 1 of the 3 dir"):
        train(method, flat)
    site = method.sites["0"]
    assert site.B[:, 0].any() and not site.B[:, 1:].any() and not site.A[1:].any()


def test_a_task_that_no_input_takes_part_in_is_refused() -> None:
    class Flat:
        def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 0 * outputs.sum(1)

        def scores(self, labels: Any, outputs: Tensor, *_: Any) -> Any:
            yield torch.zeros_like(outputs)

    flat = Task("flat", A.train, loss=Flat())
    method = InfLoRA(wide())
    with warnings.catch_warnings(action="ignore"):
        method.begin_task(flat)
    with pytest.raises(RuntimeError, match="no input of an adapted layer has a part in the loss of 'flat'"):
        method.end_task(flat)


def test_an_adapter_that_is_no_fresh_one_is_folded_and_not_lost() -> None:
    model = wide()
    with torch.no_grad():
        for p in (p for n, p in model.named_parameters() if "lora_B" in n):
            p.normal_(std=0.1)
    method = InfLoRA(model)
    before = {name: site.delta() for name, site in method.sites.items()}
    method.begin_task(A)
    for name, site in method.sites.items():
        torch.testing.assert_close(site.delta(), before[name], atol=1e-6, rtol=1e-5)


def test_one_less_is_what_the_reference_takes_of_the_first_task_only() -> None:
    plain, other = (learned(A, reference=reference) for reference in ((), ("one less",)))
    for name, F in taken(plain).items():
        torch.testing.assert_close(other._taken(name), F[:, :-1])
    assert other.boundary["held"] < 0.9 <= plain.boundary["held"]
    fit(other, B)
    assert other.boundary["held"] >= 0.9


@pytest.mark.parametrize(
    ("make", "task"),
    [(tiny_llama, prompts), (tiny_resnet, images)],
    ids=["llama", "resnet"],
)
def test_every_kind_of_layer_is_kept_clear_of(make: Any, task: Any) -> None:
    method = InfLoRA(make(), energy=0.6)
    fit(method, task("a"))
    train(method, task("b", seed=1))
    for name, site in method.sites.items():
        F = method._taken(name)
        assert F.shape[1] and site.A.any() and float((site.A @ F).abs().max()) < 1e-6


def test_without_energy_nothing_is_taken_and_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="energy is 0: A is kept clear of nothing"):
        method = InfLoRA(tiny_bert(), energy=0.0)
    assert not any(F.shape[1] for F in taken(method).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 1.5}, r"energy must lie in \[0, 1\], got 1.5"),
        ({"energy_end": -1, "tasks": 3}, r"energy_end must lie in \[0, 1\], got -1"),
        ({"energy_end": 1.0}, r"energy_end=1.0 is reached over tasks=None: give both or neither"),
        ({"tasks": 3}, r"energy_end=None is reached over tasks=3: give both or neither"),
        ({"tasks": 0, "energy_end": 1.0}, "tasks must be at least 1, got 0"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"exhausted": "drop least"}, "unknown exhausted 'drop least'; known: lower energy, stop"),
        ({"reference": ["squared"]}, "unknown reference 'squared'; known: squared energy, one less; did you mean 'sq"),
    ],
)
def test_a_bad_option_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        InfLoRA(tiny_bert(), **options)
    assert "\n" not in str(error.value)
