"""Springs on factors and on the update: value and gradients against plain loops and dense matrices; their Fisher."""

import pytest
import torch

from adapters import tiny_resnet
from method_oracles import grouped_penalty
from models import filled, images, texts, tiny_bert, tiny_mlp, vectors
from oracles import dense_penalty, explicit_ewc, fisher_by_loop, lora_fisher_by_loop, relative_error
from retain.fisher import springs as module
from retain.fisher.springs import Springs
from retain.lora import sites

KINDS = {"mlp": (tiny_mlp, vectors), "bert": (tiny_bert, texts), "resnet": (tiny_resnet, images)}
both = pytest.mark.parametrize("protect", ["factors", "update"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def held(kind, protect):
    """Springs of a model as if it had been trained; classifiers beside the adapter are held with it."""
    model = filled(KINDS[kind][0]().eval())
    beside = {n: p for n, p in model.named_parameters() if "modules_to_save" in n}
    return Springs(model, sites(model), beside, protect)


@torch.no_grad()
def displaced(springs, seed, size=0.1):
    """Move the weights, and return where they are now."""
    generator = torch.Generator().manual_seed(seed)
    for p in springs.anchored.values():
        p += size * torch.randn(p.shape, generator=generator)
    return springs.here()


def random_importance(springs, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: (len(s.B), s.A.shape[1]) for n, s in springs.updates.items()}
    shapes |= {n: p.shape for n, p in springs.parameters.items()}
    fisher = {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}
    return fisher, {n: torch.rand(length, generator=generator) for n, (length, _) in springs.rows.items()}


def changes(springs, anchor):
    """What each tensor of importance is of, dense, as it changed since ``anchor``."""
    found = {n: (p - anchor[n]).detach() for n, p in springs.parameters.items()}
    for name, site in springs.updates.items():
        B, A = (anchor[factor].flatten(1) for factor in springs.factors[name])
        found[name] = (site.scale * (site.B.double() @ site.A.double() - B.double() @ A.double())).detach()
    return found


@both
@every_kind
def test_springs_are_the_sum_over_all_numbers(kind, protect):
    springs = held(kind, protect)
    anchor, (fisher, factors) = springs.here(), random_importance(springs)
    assert all(float(rise) == 0 for rise in springs.rises(fisher, anchor, factors))
    displaced(springs, 1)
    axes = {name: axis for name, (_, axis) in springs.rows.items()}
    wanted = grouped_penalty(changes(springs, anchor), fisher, factors, axes)
    assert sum(springs.rises(fisher, anchor, factors)).item() == pytest.approx(wanted, rel=1e-5)
    ones = {name: torch.ones(length) for name, (length, _) in springs.rows.items()}
    wanted = grouped_penalty(changes(springs, anchor), fisher, ones, axes)
    assert sum(springs.rises(fisher, anchor, {})).item() == pytest.approx(wanted, rel=1e-5)
    assert sum(springs.moved(anchor).values()) == pytest.approx(
        sum(float(c.double().square().sum()) for c in changes(springs, anchor).values()), rel=1e-5
    )


@both
def test_gradients_are_those_of_the_dense_formula(protect):
    springs = held("bert", protect)
    anchor, (fisher, factors) = springs.here(), random_importance(springs)
    displaced(springs, 1)
    dense = []
    for name in springs.names:
        shape = [1] * fisher[name].dim()
        shape[springs.rows[name][1]] = -1
        weighted = (fisher[name] * factors[name].view(shape)).double()
        if name in springs.updates:
            site, pair = springs.updates[name], [anchor[factor].flatten(1) for factor in springs.factors[name]]
            dense.append(dense_penalty(site.B, site.A, weighted, site.scale, pair))
        else:
            p = springs.parameters[name]
            dense.append(0.5 * (weighted * (p.double() - anchor[name]) ** 2).sum())
    ours = sum(springs.rises(fisher, anchor, factors))
    moving = list(springs.anchored.values())
    for mine, theirs in zip(*(torch.autograd.grad(loss, moving) for loss in (ours, sum(dense))), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_rows_are_rank_indices_of_factors_and_outputs_of_the_rest():
    springs = held("mlp", "factors")
    A, B = (f"base_model.model.0.lora_{x}.default.weight" for x in "AB")
    head = "base_model.model.4.modules_to_save.default"
    assert springs.rows[A] == (2, 0) and springs.rows[B] == (2, 1) and springs.rows[f"{head}.bias"] == (3, 0)
    assert held("mlp", "update").rows == {
        n: (k, 0) for n, k in {"0": 6, "2": 5, f"{head}.weight": 3, f"{head}.bias": 3}.items()
    }


@pytest.mark.parametrize(("protect", "free"), [("factors", False), ("update", True)])
def test_only_the_update_depends_on_no_gauge(protect, free):
    springs = held("mlp", protect)
    anchor, (fisher, factors) = springs.here(), random_importance(springs)
    R = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    for site in sites(springs.model).values():
        site.set_factors(site.B.detach() @ R.inverse(), R @ site.A.detach())
    rise = sum(springs.rises(fisher, anchor, factors)).item()
    assert (abs(rise) < 1e-10) == free


@every_kind
def test_importance_is_the_fisher_of_factors_or_of_the_update(kind):
    task = KINDS[kind][1](sizes=(3, 2))
    factors, update = held(kind, "factors"), held(kind, "update")
    found = dict(factors.importance(task, None, seed=3))
    assert relative_error(found, fisher_by_loop(factors.model, factors.names, task, seed=3)) < 1e-4
    if kind != "resnet":  # its merged twin has weights of four dimensions
        found = {n: F for n, F in update.importance(task, None, seed=3) if n in update.updates}
        assert relative_error(found, lora_fisher_by_loop(update.model, task, seed=3)) < 1e-4


@both
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_few_tensors_at_a_time_give_the_same(protect, at_once, monkeypatch):
    springs, task = held("bert", protect), texts()
    whole = dict(springs.importance(task, None, seed=3, samples=6))
    sizes = []
    for name in ("unchecked_parameters", "unchecked_weights"):
        true = getattr(module, name)

        def spy(model, part, task, true=true, **options):
            sizes.append(len(part))
            return true(model, part, task, **options)

        monkeypatch.setattr(module, name, spy)
    parts = dict(springs.importance(task, at_once, seed=3, samples=6))
    assert list(parts) == list(whole) == springs.names
    assert max(sizes) == at_once and sum(sizes) == len(springs.names)
    assert relative_error(parts, whole) < 1e-5


def test_what_has_no_part_in_the_outputs_has_no_importance():
    model = filled(tiny_mlp())
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    springs = Springs(model, sites(model), {"unused": model.unused}, "factors")
    found = dict(springs.importance(vectors(), None))
    assert found["unused"].tolist() == [0, 0, 0] and all(F.any() for name, F in found.items() if name != "unused")
    with pytest.raises(RuntimeError, match="do not depend on anything whose importance was asked for"):
        dict(springs.importance(vectors(), 1))


@both
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_pull_to_many_points_is_one_parabola(protect, count):
    springs = held("mlp", protect)
    points = {str(i): displaced(springs, i) for i in range(count)}
    weights = {str(i): w for i, w in enumerate([0.4, 0.1, 0.2, 0.15, 0.12][:count])}
    start = displaced(springs, 9)
    pull = springs.pull(points, weights)
    assert pull() == 0

    def explicit():
        ones = {n: torch.ones_like(p) for n, p in springs.parameters.items()}
        tasks = [({n: w * one for n, one in ones.items()}, points[i]) for i, w in weights.items()]
        total = explicit_ewc(springs.parameters, tasks, 1.0).double()
        for name, site in springs.updates.items():
            for i, w in weights.items():
                pair = [points[i][factor] for factor in springs.factors[name]]
                one = torch.ones(len(site.B), site.A.shape[1])
                total = total + w * dense_penalty(site.B, site.A, one, site.scale, pair)
        return total

    before = explicit().item()
    displaced(springs, 10)
    assert pull().item() == pytest.approx(explicit().item() - before, rel=1e-4, abs=1e-6)
    moving = list(springs.anchored.values())
    for mine, theirs in zip(*(torch.autograd.grad(loss, moving) for loss in (pull(), explicit())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    with springs.at(start):
        assert pull().item() == pytest.approx(0, abs=1e-6)
        assert all(torch.equal(p, start[n]) for n, p in springs.anchored.items())
    assert not any(torch.equal(p, start[n]) for n, p in springs.anchored.items())


@both
def test_bytes_are_those_of_what_is_kept(protect):
    springs = held("bert", protect)
    assert springs.value_bytes == sum(t.nbytes for t in springs.here().values())
    assert springs.importance_bytes == sum(F.nbytes for _, F in springs.importance(texts(sizes=(2,)), None))
