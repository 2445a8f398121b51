"""What all methods share: how far a task moved the weights, and the warning of a frozen model."""

import warnings

import pytest
import torch

from models import MLP, fit, texts, tiny_bert, tiny_mlp, train, vectors
from retain import DWD, EWC, METHODS, EWCLoRA, Task

A, B = vectors("a"), vectors("b", seed=1)


def deltas(method):
    """The weight change of every site, or every parameter of a plain module."""
    if method.sites:
        return {name: site.delta() for name, site in method.sites.items()}
    return {name: p.detach().clone() for name, p in method.parameters.items()}


def length(one, other):
    return float(sum((one[name] - other[name]).double().square().sum() for name in one)) ** 0.5


MAKERS = {
    "ewc-lora": lambda **k: EWCLoRA(tiny_mlp(modules_to_save=None, use_rslora=True), **k),
    "ewc-lora, merged": lambda **k: EWCLoRA(tiny_mlp(modules_to_save=None), mode="merge", **k),
    "dwd": lambda **k: DWD(tiny_mlp(modules_to_save=None, use_rslora=True), protect="update", probes=4, **k),
    "ewc": lambda **k: EWC(MLP(), **k),
    "ewc, online": lambda **k: EWC(MLP(), decay=0.9, **k),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_maker
def test_how_far_a_task_moves_the_weights_is_compared_with_the_first(make):
    method, moved = make(strength=1.0), []
    for task in (A, B, A):
        before = deltas(method)
        train(method, task)
        moved.append(length(deltas(method), before))
        method.end_task(task)
        assert ("moved" in method.boundary) == (len(moved) > 1)
    assert method.boundary["moved"] == pytest.approx(moved[-1] / moved[0], rel=1e-4)


@every_maker
def test_a_protection_that_freezes_the_model_says_so_and_what_to_do(make):
    method = make(strength=1e12)
    fit(method, A)
    train(method, B, learning_rate=1e-5)
    said = r"'b' has moved the weights by 0\.\d% of what the first .* frozen .* method.strength is 1e\+12: lower it"
    with pytest.warns(UserWarning, match=said):
        method.end_task(B)


@every_maker
@pytest.mark.parametrize(
    ("strength", "rate", "task"),
    [
        (0.0, 1e-5, B),  # what does not pull cannot freeze
        (1e12, 0.0, B),  # nor was anything trained
        (1.0, 0.02, B),
        (1e4, 0.02, B),
        (1.0, 5e-3, vectors("short", sizes=(1,), seed=1)),
    ],
)
def test_there_is_no_false_alarm(make, strength, rate, task):
    method = make(strength=strength)
    fit(method, A)
    train(method, task, learning_rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.end_task(task)


def test_a_task_of_few_rows_may_move_the_weights_less():
    """The first task moves them by 30 in 300 rows; a later one of 3 rows may do so by 0.01."""
    method = EWCLoRA(tiny_mlp(), strength=1.0)
    method.learned, method.moved = {"a": torch.tensor(0)}, {"0": torch.tensor([900.0, 300.0])}
    short, long = (Task("b", [(torch.zeros(n, 4), torch.zeros(n).long())]) for n in (3, 300))
    for square, task, alarmed in ((0.8, long, True), (0.82, long, False), (1e-4, short, False), (8e-5, short, True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.compare_movement({"0": square}, task)
        assert bool(caught) is alarmed, square
        assert method.boundary["moved"] == pytest.approx(square**0.5 / 30)


def test_the_first_movement_is_remembered_when_a_run_goes_on():
    method, other = (EWCLoRA(tiny_bert(), strength=1.0) for _ in range(2))
    fit(method, texts("a"))
    other.load_state_dict(method.state_dict())
    other.model.load_state_dict(method.model.state_dict())
    for each in (method, other):
        torch.manual_seed(0)
        fit(each, texts("b", seed=1))
    assert method.boundary == other.boundary and 0 < method.boundary["moved"] < 10


def test_without_a_beginning_nothing_is_compared():
    method = EWCLoRA(tiny_mlp(), strength=1.0)
    for task in (A, B):
        method.end_task(task)
    assert "moved" not in method.boundary and method.moved == {}


@pytest.mark.parametrize("name", METHODS)
def test_finished_tasks_are_remembered_in_their_order(name):
    method = METHODS[name](tiny_mlp())
    for task in (vectors("z"), vectors("y"), vectors("x")):
        fit(method, task)
    method.learned = dict(reversed(method.learned.items()))
    assert method.remembered == {"z": 1, "y": 1, "x": 1} and list(method.remembered) == ["z", "y", "x"]
