"""The multiplier: on a toy whose constrained optimum is known, and at the door."""

import math

import pytest
import torch
from torch import Tensor

from retain.multiplier import REACH, Multiplier, check_strength

D = 50


def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Curvature H and importance F (d,), and where the loss is least: 1/2 sum H (x - t)^2, R = 1/2 sum F x^2."""
    generator = torch.Generator().manual_seed(0)
    H = torch.logspace(-2, 0.5, D)[torch.randperm(D, generator=generator)]
    F = torch.logspace(-2, 1, D)[torch.randperm(D, generator=generator)]
    return H, F, 0.1 * torch.randn(D, generator=generator)


def optimum(budget: float) -> tuple[float, Tensor]:
    """lambda and x of min 1/2 sum H (x - t)^2 s.t. 1/2 sum F x^2 <= budget: x = H t / (H + lambda F), by bisection."""
    H, F, t = (v.double() for v in toy())
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        x = H * t / (H + math.exp(middle) * F)
        low, high = (middle, high) if 0.5 * float((F * x**2).sum()) > budget else (low, middle)
    return math.exp(middle), x


def trained(
    budget: float,
    start: float,
    steps: int,
    rate: float,
    schedule: str,
    noise: float = 0.03,
    reached: float | None = None,
) -> tuple:
    """x, R and the multiplier after AdamW on noisy gradients; ``reached``: what another training has left it at."""
    H, F, t = toy()
    generator, x = torch.Generator().manual_seed(1), torch.zeros(D, requires_grad=True)
    multiplier = Multiplier({"budget": budget}, start)
    multiplier.begin(1.0, None if reached is None else torch.tensor(math.log(reached)))
    optimizer = torch.optim.AdamW([x], lr=rate, weight_decay=0.0)
    falls = {"linear": lambda s: 1 - s, "cosine": lambda s: 0.5 + 0.5 * math.cos(math.pi * s), "constant": lambda s: 1}
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * falls[schedule](step / steps)
        gradient = H * (x.detach() - t) + noise * torch.randn(D, generator=generator)
        optimizer.zero_grad()
        ((x * gradient).sum() + multiplier.weigh(0.5 * (F * x**2).sum())).backward()
        optimizer.step()
        multiplier.step()
    return x.detach().double(), 0.5 * float((F * x.detach() ** 2).sum()), math.exp(float(multiplier.log))


FREE = 0.5 * float((toy()[1] * toy()[2] ** 2).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "start", "schedule"),
    [(0.02, 1.0, "linear"), (0.3, 1.0, "cosine"), (0.02, 100.0, "constant"), (0.3, 0.01, "linear")],
)
def test_the_optimum_under_a_budget_is_found_from_far_above_and_below(share: float, start: float, schedule: str):
    budget = share * FREE
    wanted, point = optimum(budget)
    x, rise, multiplier = trained(budget, start, 1500, 5e-3, schedule, noise=0.003)
    assert rise == pytest.approx(budget, rel=0.06)
    assert multiplier == pytest.approx(wanted, rel=0.3)
    assert float((x - point).norm() / point.norm()) < 0.1


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_a_short_and_noisy_training_comes_near(share: float) -> None:
    assert 0.7 < trained(share * FREE, 1.0, 75, 2e-2, "linear")[1] / (share * FREE) < 1.3


def test_a_tight_task_after_a_slack_one_keeps_its_budget() -> None:
    _, slack, reached = trained(5 * FREE, 1.0, 75, 2e-2, "linear")
    assert slack < 2 * FREE and reached < 1e-2
    assert trained(0.02 * FREE, 1.0, 75, 2e-2, "linear", reached=reached)[1] < 1.3 * 0.02 * FREE
    assert trained(0.02 * FREE, 1e-3, 75, 2e-2, "linear", reached=100.0)[1] < 1.3 * 0.02 * FREE


def test_a_budget_that_plain_training_does_not_use_up_leaves_it_alone() -> None:
    x, rise, multiplier = trained(5 * FREE, 1.0, 300, 5e-3, "linear", noise=0.0)
    assert multiplier < 1e-3 and rise == pytest.approx(FREE, rel=0.2)


def test_a_multiplier_has_bounds_and_a_number_does_not_move() -> None:
    multiplier = Multiplier({"budget": 1e-3}, 10.0)
    multiplier.begin(2.0)
    assert multiplier.allowed == 5e-4
    for _ in range(1000):
        multiplier.weigh(torch.tensor(1.0))
        multiplier.step()
    assert math.exp(float(multiplier.log)) == pytest.approx(10.0 * REACH)
    fixed = Multiplier(3.0, 10.0)
    fixed.begin(7.0)
    fixed.step()
    assert float(fixed.weigh(torch.tensor(2.0))) == 6.0 and fixed.state() == {} and fixed.value == 3.0


def test_auto_is_the_factor() -> None:
    multiplier = Multiplier("auto", 10.0)
    assert multiplier.value == 10.0
    multiplier.begin(3.0)
    assert multiplier.value == 3.0 and float(multiplier.weigh(torch.tensor(2.0))) == 6.0


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        ("aut", "strength: 'aut' is not allowed; expected a number, 'auto' or {budget: nats}"),
        (True, "True is not allowed"),
        (-1, "at least 0 and finite, got -1"),
        ({"budgt": 1}, "unknown key 'budgt'.*did you mean 'budget'"),
        ({"budget": 0}, "strength.budget: 0 is not allowed; expected nats above 0, or a share such as '2%'"),
        ({"budget": "2"}, "strength.budget: '2' is not allowed"),
        ({"budget": "100%"}, "strength.budget: '100%' is not allowed"),
        ({"budget": "a%"}, "strength.budget: 'a%' is not allowed"),
        ({"budget": " 2%"}, "strength.budget: ' 2%' is not allowed"),
        ({"budget": "1_0%"}, "strength.budget: '1_0%' is not allowed"),
        ({"budget": 1, "rollback": "yes"}, "strength.rollback: 'yes' is not allowed; expected true or false"),
        ({}, "strength.budget: None is not allowed"),
    ],
)
def test_a_strength_that_is_none_is_refused(strength: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_strength(strength)


def test_a_share_is_a_budget_in_another_unit() -> None:
    multiplier = Multiplier({"budget": "2%"}, 10.0)
    multiplier.begin(0.5)
    assert (multiplier.unit, multiplier.allowed) == ("%", pytest.approx(0.04))
    assert (multiplier.said(2), Multiplier({"budget": 0.05}, 10.0).said(2)) == ("4.00%", "0.1 nats")
