"""Batches that mix tasks give every row what its own task would."""

import pytest
import torch

from models import fit, texts, tiny_bert
from retain import Share
from retain.serving import Serving

A, B = texts("a", seed=0), texts("b", seed=1)
TOKENS = torch.arange(24).view(4, 6)


def learned(model=tiny_bert):
    method = Share(model())
    for task in (A, B):
        fit(method, task)
    method.model.eval()
    return method


def serving(method):
    return Serving(method.sites, method.bases)


def alone(method, task):
    method.activate(task)
    with torch.no_grad():
        return method.model(input_ids=TOKENS).logits


def test_every_row_of_a_batch_sees_its_own_task():
    method = learned()
    expected = {task: alone(method, task) for task in "ab"}
    assert not torch.allclose(expected["a"], expected["b"], atol=1e-3)
    with serving(method) as server, torch.no_grad():
        server.select(["a", "b", "b", "a"])
        mixed = method.model(input_ids=TOKENS).logits
        server.select("b")
        of_one = method.model(input_ids=TOKENS).logits
    for row, task in enumerate("abba"):
        torch.testing.assert_close(mixed[row], expected[task][row], rtol=0, atol=1e-5)
    torch.testing.assert_close(of_one, expected["b"], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone(method, None), expected["b"], rtol=0, atol=1e-6)
    assert not any(m._forward_hooks for m in method.model.modules())


def test_a_task_joins_while_others_are_served():
    method = learned()
    expected = alone(method, "a")
    with serving(method) as server, torch.no_grad():
        server.select("a")
        before = method.model(input_ids=TOKENS).logits
        given = {n: (torch.randn(len(s.B), 5), torch.randn(5, s.A.shape[1])) for n, s in method.sites.items()}
        method.absorb({"new": given})
        server.refresh()
        server.select(["a", "new", "a", "new"])
        after = method.model(input_ids=TOKENS).logits
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(after[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[[1, 3]], alone(method, "new")[[1, 3]], rtol=1e-4, atol=1e-4)


def test_a_boundary_changes_what_is_served_only_when_it_is_refreshed():
    method = learned()
    with serving(method) as server, torch.no_grad():
        server.select("a")
        before = method.model(input_ids=TOKENS).logits
        method.absorb(
            {"new": {n: (torch.randn(len(s.B), 1), torch.randn(1, s.A.shape[1])) for n, s in method.sites.items()}}
        )
        assert torch.equal(method.model(input_ids=TOKENS).logits, before)


def test_rows_are_routed_while_tasks_are_served():
    method = Share(tiny_bert(), route=True)
    for task in (A, B):
        fit(method, task)
    method.model.eval()
    expected = method.guess({"input_ids": TOKENS})
    with serving(method) as server, torch.no_grad(), server.aside():
        assert method.guess({"input_ids": TOKENS}) == expected


def test_what_does_not_fit_is_said():
    method = learned()
    with pytest.raises(ValueError, match="no task has been learned or added yet"):
        serving(Share(tiny_bert()))
    with serving(method) as server:
        with pytest.raises(ValueError, match="no task 'bb' is served; known: a, b; did you mean 'b'"):
            server.select(["a", "bb"])
        with pytest.raises(ValueError, match="tasks were selected for 0 rows, and the batch has 4"):
            method.model(input_ids=TOKENS)
