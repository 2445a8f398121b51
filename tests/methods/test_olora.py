"""O-LoRA: its penalty against plain sums, and what it does to the overlap of tasks."""

import pytest
import torch

from method_oracles import overlap_penalty
from models import fit, tiny_bert, tiny_mlp, train, vectors
from retain.methods.olora import OLoRA
from retain.methods.sequential import Sequential

FIRST, SECOND, THIRD = (vectors(str(seed), seed=seed) for seed in range(3))


def learned(*tasks, model=tiny_mlp, **options):
    method = OLoRA(model(), **options)
    for task in tasks:
        fit(method, task)
    return method


@pytest.mark.parametrize(("overlap", "power"), [("absolute", 1), ("squared", 2)])
def test_the_penalty_is_the_sum_over_all_pairs_of_directions_and_so_is_its_gradient(overlap, power):
    method = learned(FIRST, SECOND, orthogonality=0.3, overlap=overlap)
    penalty = method.extra_loss()
    expected = 0.3 * sum(overlap_penalty(site.past[1], site.A, power) for site in method.sites.values())
    torch.testing.assert_close(penalty.double(), expected)
    factors = [site.A for site in method.sites.values()]
    found, wanted = (torch.autograd.grad(loss, factors, retain_graph=True) for loss in (penalty, expected))
    assert all(torch.allclose(f, w.to(f), rtol=1e-4, atol=1e-6) for f, w in zip(found, wanted, strict=True))


def test_orthogonal_directions_cost_nothing_and_neither_does_the_first_task():
    method = OLoRA(tiny_mlp())
    assert method.extra_loss() == 0
    fit(method, FIRST)
    with torch.no_grad():
        for site in method.sites.values():
            A, past = site.A.double(), site.past[1].double()
            site.set_factors(site.B, (A - A @ torch.linalg.pinv(past) @ past).to(site.A))
    assert method.extra_loss().item() == pytest.approx(0, abs=1e-4)


def test_without_orthogonality_it_is_sequential_with_an_adapter_a_task_to_the_bit():
    ours, plain = OLoRA(tiny_bert(), orthogonality=0.0), Sequential(tiny_bert(), mode="merge")
    for method in (ours, plain):
        for task in (FIRST, SECOND):
            torch.manual_seed(0)
            method.begin_task(task)
            with torch.no_grad():
                for site in method.sites.values():
                    site.B.normal_()
            method.end_task(task)
    for name, site in ours.sites.items():
        assert all(torch.equal(x, y) for x, y in zip(site.past, plain.sites[name].past, strict=True))


def test_it_turns_the_directions_of_a_task_away_from_those_before():
    def shared(orthogonality):
        method = learned(FIRST, orthogonality=orthogonality)
        train(method, SECOND, epochs=5)
        return max(float((site.past[1] @ site.A.detach().T).abs().max()) for site in method.sites.values())

    assert shared(5.0) < 0.3 * shared(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orthogonality": -1.0}, "orthogonality must be at least 0 and finite, got -1.0"),
        ({"overlap": "square"}, "unknown overlap 'square'; known: absolute, squared; did you mean 'squared'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        OLoRA(tiny_mlp(), **options)
