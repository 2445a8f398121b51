"""One adapter a task: the task's own at inference, the untouched model for a task that was never seen."""

import torch
from safetensors.torch import load, save

from models import fit, tiny_mlp, vectors
from retain.methods.per_task import PerTask
from retain.methods.sequential import Sequential

A, B = vectors("a", seed=0), vectors("b", seed=1)


def headless():
    return tiny_mlp(modules_to_save=None)


def outputs(model):
    model.eval()
    with torch.no_grad():
        return model(A.train[0][0])


def through(*tasks):
    """The method after ``tasks``, and what the model gave after each."""
    method, given = PerTask(headless()), {}
    for task in tasks:
        fit(method, task, epochs=5)
        given[task.name] = outputs(method.model)
    return method, given


def test_every_task_gets_its_own_adapter_back_to_the_bit():
    method, given = through(A, B)
    assert not torch.equal(given["a"], given["b"])
    for task in ("a", "b", "a"):
        method.activate(task)
        assert torch.equal(outputs(method.model), given[task])
    method.activate(None)
    assert torch.equal(outputs(method.model), given["b"])


def test_a_task_not_yet_learned_gets_the_untouched_model():
    method, given = through(A)
    method.activate("b")
    assert torch.equal(outputs(method.model), outputs(headless()))
    method.activate("a")
    assert torch.equal(outputs(method.model), given["a"])


def test_before_the_first_task_there_is_nothing_to_activate():
    method, untouched = PerTask(headless()), outputs(headless())
    for task in ("a", None):
        method.activate(task)
        assert torch.equal(outputs(method.model), untouched)


def test_every_task_starts_at_the_untouched_model():
    method, _ = through(A)
    method.begin_task(B)
    assert torch.equal(outputs(method.model), outputs(headless()))


def test_the_first_adapter_is_that_of_sequential():
    method, given = through(A)
    plain = Sequential(headless())
    fit(plain, A, epochs=5)
    assert torch.equal(given["a"], outputs(plain.model))


def test_adapters_go_through_safetensors():
    method, given = through(A, B)
    other = PerTask(headless())
    other.load_state_dict(load(save(method.state_dict())))
    for task in ("a", "b", None):
        other.activate(task)
        assert torch.equal(outputs(other.model), given[task or "b"])
