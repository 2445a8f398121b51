"""Likeness of tasks: overlap of importance, kernel alignment of features; which edges are kept."""

import pytest
import torch
from torch import nn

from models import images, texts, tiny_bert, tiny_mlp, tiny_vit, vectors
from retain.lora import sites
from retain.taskgraph import edges, fisher_overlaps, layer_features, linear_cka


def test_the_overlap_of_importance_is_that_of_all_numbers_together():
    one = {"a": torch.rand(3, 2), "b": torch.rand(4)}
    others = {"same": {n: 7 * F for n, F in one.items()}, "else": {n: torch.rand_like(F) for n, F in one.items()}}
    others["apart"] = {"a": torch.zeros(3, 2), "b": torch.zeros(4)}
    found = fisher_overlaps(iter(one.items()), others)
    F, G = (torch.cat([x.flatten() for x in tensors.values()]).double() for tensors in (one, others["else"]))
    assert found["same"] == pytest.approx(1, rel=1e-6) and found["apart"] == 0
    assert found["else"] == pytest.approx(float(((F / F.sum()) * (G / G.sum())).sqrt().sum()), rel=1e-6)
    assert fisher_overlaps([("a", torch.tensor([1.0, 0.0]))], {"t": {"a": torch.tensor([0.0, 2.0])}}) == {"t": 0}


def test_alignment_is_the_definition_on_features():
    X, Y = torch.randn(9, 4).double(), torch.randn(9, 6).double()
    x, y = X - X.mean(0), Y - Y.mean(0)
    wanted = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert linear_cka(X, Y) == pytest.approx(float(wanted), rel=1e-10)
    turn = torch.linalg.qr(torch.randn(4, 4).double()).Q
    assert linear_cka(X, 3 * X @ turn + 5) == pytest.approx(1)
    assert linear_cka(X, torch.ones(9, 2)) == 0


def test_light_edges_are_left_out_and_the_rest_keeps_its_share():
    assert edges({"a": 3.0, "b": 0.5, "c": 1.5}) == {"a": 0.6, "b": 0.1, "c": 0.3}
    assert edges({"a": 3.0, "b": 0.3, "c": 1.2}) == {"a": pytest.approx(3 / 4.5), "c": pytest.approx(1.2 / 4.5)}
    assert edges({str(i): 1.0 for i in range(11)}) == {} == edges({"a": 0.0}) == edges({})


@pytest.mark.parametrize(("build", "task"), [(tiny_mlp, vectors), (tiny_vit, images), (tiny_bert, texts)])
def test_features_are_means_over_the_places_of_a_row(build, task):
    model, task = build(), task()
    model.train()
    layer = list(sites(model).values())[-1].layer
    generator = torch.get_rng_state()
    found = layer_features(model, layer, task.train)
    assert len(found) == 11 and found.dim() == 2
    assert torch.equal(torch.get_rng_state(), generator) and model.training and not layer._forward_hooks
    torch.testing.assert_close(layer_features(model, layer, task.train[1:]), found[4:], rtol=1e-5, atol=1e-6)


def test_padding_has_no_part_in_features():
    model = tiny_bert()
    layer = list(sites(model).values())[-1].layer
    (batch,) = texts(sizes=(1,)).train
    padded = {k: nn.functional.pad(v, (0, 3)) if v.dim() == 2 else v for k, v in batch.items()}
    one, other = (layer_features(model, layer, [b]) for b in (batch, padded))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
