"""LwF: its loss against single rows, whose classes it holds, from which model, and what continues after a restart."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from method_oracles import distilled
from models import MLP, filled, fit, prompts, texts, tiny_bert, tiny_llama, train, vectors
from oracles import single_rows
from retain.methods.lwf import LwF
from retain.task import CrossEntropy, SquaredError, Task, forward

OWN = CrossEntropy(torch.tensor([2, 0, 2, 1, 0]))


def in_group(task, group):
    """``task`` with labels of the classes that ``OWN`` gives to ``group``, of which there are two."""
    classes = (OWN.groups == group).nonzero()[:, 0]
    return replace(task, train=[(x, classes[y % len(classes)]) for x, y in task.train], loss=OWN)


def numbers(task):
    """``task`` with numbers for labels, which the output owned by group 1 is to give."""
    return replace(task, train=[(x, x[:, 0]) for x, _ in task.train], loss=SquaredError(OWN.groups, 1))


def five_classes():
    return MLP(classes=5)


STREAMS = {
    "one head": (tiny_bert, [texts("a"), texts("b", seed=1, length=9)], [[0, 1, 2]]),
    "language model": (tiny_llama, [prompts("a"), prompts("b", seed=1, length=9)], [list(range(48))]),
    "heads": (
        five_classes,
        [in_group(vectors("a"), 2), in_group(vectors("b", seed=1), 1), in_group(vectors("c", seed=2), 0)],
        [[3], [0, 2]],
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_loss_and_its_gradient_are_those_of_single_rows_and_of_the_model_as_it_was(name):
    model, (*earlier, last), heads = STREAMS[name]
    method = LwF(model(), weight=0.7, temperature=3.0, batch_size=100)
    for task in earlier:
        fit(method, task)
    before = copy.deepcopy(method.model).double().eval()
    train(method, last)
    method.model.eval()
    now = copy.deepcopy(method.model).double()
    expected = 0.7 * distilled(before, now, single_rows(last), heads, 3.0)
    loss = method.extra_loss()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-7)
    names = [n for n, p in method.model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [method.model.get_parameter(n) for n in names])
    wanted = torch.autograd.grad(expected, [now.get_parameter(n) for n in names])
    for name, ours, oracle in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), oracle, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("order", ["numbers first", "classes first"])
def test_numbers_are_held_as_gaussians(order):
    tasks = [numbers(vectors("a")), in_group(vectors("b", seed=1), 2)]
    first, last = tasks if order == "numbers first" else tasks[::-1]
    method = LwF(five_classes(), weight=0.7, batch_size=100)
    fit(method, first)
    method.load_state_dict(load(save(method.state_dict())))
    before = copy.deepcopy(method.model)
    train(method, last)
    x = torch.cat([x for x, _ in last.train])
    old, new = before(x), method.model(x)
    if order == "numbers first":
        expected = (old[:, 3] - new[:, 3]).square().mean() / 2
    else:
        pairs = [(z[:, [0, 2]] / 2).softmax(1) for z in (old, new)]
        expected = (pairs[0] * (pairs[0] / pairs[1]).log()).sum(1).mean()
    torch.testing.assert_close(method.extra_loss(), 0.7 * expected)


def test_it_starts_at_zero_with_every_task_and_the_first_has_nothing_to_hold():
    method = LwF(tiny_llama())
    for task in (prompts("a"), prompts("b", seed=1), prompts("c", seed=2)):
        method.begin_task(task)
        method.model.eval()
        first = method.extra_loss()
        assert first == 0 if not method.learned else abs(first.item()) < 1e-6
        train(method, task)
        assert not method.learned or method.extra_loss() > 1e-4
        method.end_task(task)
        assert method.extra_loss() == 0, "the copy of the old model is gone"


def test_the_model_as_it_was_runs_without_dropout_and_the_model_stays_as_it_is():
    method = LwF(filled(tiny_bert()), batch_size=100)
    fit(method, texts("a"))
    method.begin_task(texts("b", seed=1))
    method.model.train()
    parameters = [(p, p.detach().clone(), p._version) for p in method.model.parameters()]
    modes = [module.training for module in method.model.modules()]
    losses = [method.extra_loss().item() for _ in range(2)]
    assert min(losses) > 1e-5 and losses[0] != losses[1], "with dropout here, and not there"
    assert modes == [module.training for module in method.model.modules()]
    assert all(torch.equal(p, value) and p._version == version for p, value, version in parameters)
    layer = next(iter(method.sites.values())).layer.lora_A["default"]
    seen = []
    layer.register_forward_hook(lambda module, *_: seen.append(module.training))
    method.extra_loss()
    assert seen == [False, True]


def test_draws_are_a_function_of_the_seed_the_boundary_and_the_step():
    def draws(method, steps):
        return [method.extra_loss().item() for method.steps in steps]

    method = LwF(MLP(), batch_size=3)
    fit(method, vectors("a"))
    train(method, vectors("b", seed=1))
    assert method.steps == 3
    values = draws(method, range(6))
    assert len(set(values)) > 3 and draws(method, [4, 2]) == [values[4], values[2]]


def test_finished_heads_are_known_after_a_restart_to_the_bit():
    _, (first, second, third), _ = STREAMS["heads"]
    whole, again = (LwF(five_classes(), batch_size=4) for _ in range(2))
    for task in (first, second):
        fit(whole, task)
    state = whole.state_dict()
    assert sum(x.nbytes for x in state.values()) == 2 * 16, "of every task its number and its head"
    again.load_state_dict(load(save(state)))
    again.model.load_state_dict(whole.model.state_dict())
    for method in (whole, again):
        fit(method, third)
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_rows_without_a_target_cost_nothing():
    method = LwF(tiny_llama())
    fit(method, prompts("a"))
    silent = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in prompts("b").train]
    method.begin_task(Task("b", silent))
    assert method.extra_loss() == 0


def test_it_holds_what_earlier_classes_get():
    first, second = (in_group(vectors(str(group), (40,), seed=group), group) for group in (0, 2))

    def risen(weight):
        method = LwF(five_classes(), weight=weight)
        fit(method, first, epochs=40)
        train(method, second, epochs=40)
        with torch.no_grad():
            return OWN.nll(*forward(method.model, first.train[0])).mean()

    assert risen(10.0) < 0.5 * risen(1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, "weight must be positive and finite, got 0.0"),
        ({"temperature": -2.0}, "temperature must be positive and finite, got -2.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LwF(MLP(), **options)


def test_what_has_no_classes_is_refused_before_training():
    class Other(SquaredError.__base__):
        pass

    task = Task("heights", [(x, x[:, :3]) for x, _ in vectors().train], loss=Other())
    with pytest.raises(ValueError, match="task 'heights': lwf distils .* or a SquaredError, got Other"):
        LwF(MLP()).begin_task(task)
