"""Joint training: one training on all rows, which no stream of single tasks can see."""

import pytest
import torch

from models import fit, tiny_mlp, vectors
from retain.methods.joint import Joint
from retain.methods.sequential import Sequential
from retain.task import forward, joined

A, B = vectors("a", seed=0), vectors("b", seed=1)


def loss(method, task):
    method.model.eval()
    with torch.no_grad():
        return float(sum(task.loss.nll(*forward(method.model, batch)).sum() for batch in task.train))


def test_trains_once_on_all_rows():
    assert Joint.cumulative and not Sequential.cumulative
    method = Joint(tiny_mlp())
    fit(method, joined([A, B]))
    assert list(method.learned) == ["joint"] and method.state_dict().keys() == {"learned/joint"}


@pytest.mark.slow
def test_is_better_on_all_tasks_than_the_stream():
    joint, stream = Joint(tiny_mlp()), Sequential(tiny_mlp())
    fit(joint, joined([A, B]), epochs=40)
    for task in (A, B):
        fit(stream, task, epochs=40)
    assert loss(joint, A) + loss(joint, B) < 0.7 * (loss(stream, A) + loss(stream, B))
