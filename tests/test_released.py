"""What Share's release does at a boundary, against the same by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from models import fit, tiny_mlp, train, vectors
from retain import Share
from retain.lora import Site

A, B, C = (vectors(name, seed=seed) for seed, name in enumerate("abc"))


def inside(site: Site) -> tuple[Tensor, Tensor]:
    """Of both factors as columns: all but what the temporary columns give."""
    found = []
    for layer in (site.layer.lora_B, site.layer.lora_A):
        weight = layer[site.adapter].parametrizations.weight
        gain, free = weight[0].gain, weight.original1
        whole = layer[site.adapter].weight
        whole = whole.T if layer is site.layer.lora_A else whole
        found.append((whole - gain * free @ weight.original0[weight[0].basis.shape[1] :]).detach())
    return found[0], found[1]


def within_differences(columns: Tensor, X: Tensor) -> Tensor:
    """What of X lies in the span of ``columns`` less their mean: that of the differences to one of them."""
    span = (columns[:, 1:] - columns[:, :1]).double()
    return (span @ torch.linalg.lstsq(span, X.double(), driver="gelsd").solution).to(X)


def test_what_the_temporary_columns_learned_is_dropped_from_the_task_and_tilts_the_bases() -> None:
    method = Share(tiny_mlp(), reference=["dropped temporaries"], temporary=2)
    fit(method, A)
    train(method, B, epochs=3)
    expected = {name: site.scale * P @ Q.T for name, site in method.sites.items() for P, Q in [inside(site)]}
    whole = {name: site.delta() for name, site in method.sites.items()}
    widths = {name: bases.U.shape[1] for name, bases in method.bases.items()}
    method.end_task(B)
    for name, site in method.sites.items():
        torch.testing.assert_close(site.delta(), expected[name], rtol=0, atol=1e-6)
        assert float((whole[name] - expected[name]).norm() / whole[name].norm()) > 0.1
        assert method.bases[name].U.shape[1] > widths[name]
    assert method.residuals["b"] > 0.1 and method.residuals["a"] == 0


def test_centring_loses_the_mean_of_a_tasks_columns() -> None:
    method = Share(tiny_mlp(r=4), reference=["centring"])
    for task in (A, B):
        train(method, task, epochs=3)
        expected = {}
        for name, site in method.sites.items():
            halves = inside(site) if task is B else (None, None)
            columns = (site.B.detach(), site.A.detach().T)
            stacks = [
                X if part is None else torch.cat([part, X - part], 1) for X, part in zip(columns, halves, strict=True)
            ]
            P, Q = (within_differences(stack, X) for stack, X in zip(stacks, columns, strict=True))
            expected[name] = site.scale * P @ Q.T
            if task is A:  # of fewer columns than a layer has rows
                assert float((site.delta() - expected[name]).norm() / site.delta().norm()) > 0.01
        method.end_task(task)
        for name, site in method.sites.items():
            torch.testing.assert_close(site.delta(), expected[name], rtol=0, atol=1e-5)


def test_both_go_through_a_state() -> None:
    method = Share(tiny_mlp(), reference=["dropped temporaries", "centring"])
    for task in (A, B, C):
        fit(method, task)
    other = Share(tiny_mlp(), reference=["dropped temporaries", "centring"])
    other.load_state_dict(method.state_dict())
    assert other.residuals == method.residuals
