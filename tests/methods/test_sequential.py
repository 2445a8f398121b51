"""Sequential fine-tuning in its two modes."""

import pytest
import torch

from models import fit, tiny_mlp, vectors
from retain.method import Method
from retain.methods.sequential import Sequential


def test_shared_mode_is_the_method_that_does_nothing():
    ours, nothing = Sequential(tiny_mlp()), Method(tiny_mlp())
    for method in (ours, nothing):
        fit(method, vectors("a", seed=0))
        fit(method, vectors("b", seed=1))
    expected = dict(nothing.model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in ours.model.named_parameters())
    assert ours.state_dict().keys() == {"learned/a", "learned/b"} and ours.boundary == {}


def test_merge_mode_adds_products_and_starts_afresh():
    method = Sequential(tiny_mlp(), mode="merge")
    expected = dict.fromkeys(method.sites, torch.zeros(()))
    for seed in range(2):
        method.begin_task(task := vectors(str(seed), seed=seed))
        with torch.no_grad():
            for name, site in method.sites.items():
                site.B.normal_()
                expected[name] = expected[name] + site.scale * site.B @ site.A
        method.end_task(task)
        assert not any(site.B.any() for site in method.sites.values())
    for name, site in method.sites.items():
        torch.testing.assert_close(site.delta(), expected[name])
        assert len(site.past[1]) == 4


def test_a_fresh_start_depends_on_the_seed_and_the_task_only():
    def start(seed, tasks):
        method = Sequential(tiny_mlp(), mode="merge", seed=seed)
        for i in range(tasks):
            method.end_task(vectors(str(i)))
            torch.rand(3)
        return torch.cat([site.A.detach().flatten() for site in method.sites.values()])

    assert torch.equal(start(0, 2), start(0, 2))
    assert not torch.equal(start(0, 1), start(0, 2)) and not torch.equal(start(0, 2), start(1, 2))


def test_a_capped_past():
    method = Sequential(tiny_mlp(), mode="merge", rank=2)
    fit(method, vectors("a", seed=0))
    assert method.boundary["fold_error"] == 0
    fit(method, vectors("b", seed=1))
    assert 0 < method.boundary["fold_error"] < 1
    assert {len(site.past[1]) for site in method.sites.values()} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "continue"}, "unknown mode 'continue'; known: shared, merge"), ({"rank": 2}, "needs mode='merge'")],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Sequential(tiny_mlp(), **options)
