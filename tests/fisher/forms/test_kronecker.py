"""The Kronecker form: sides of whole examples' gradients, exact traces, and low rank against dense."""

import pytest
import torch

from gradients import collect, examples, factors
from oracles import example_gradients, fisher_matrix, form_matrix
from retain.fisher.forms import Kronecker

RANKS = [1, 2, 4, 8, 16]


def sides(data):
    """S = E[G G'] (out, out) and R = E[G' G] (in, in)."""
    G = example_gradients(*data)
    return (G @ G.mT).mean(0), (G.mT @ G).mean(0)


def side(state, name):
    return state[name] @ state[name].T + torch.diag(state[f"{name}.rest"])


def partial_traces(matrix, out=24, in_=30):
    blocks = matrix.view(out, in_, out, in_)
    return torch.einsum("ijkj->ik", blocks), torch.einsum("ijil->jl", blocks)


def test_dense_sides_are_the_moments_of_whole_gradients():
    state, (S, R) = collect("kronecker", examples(), batch=5, rank=None).state_dict(), sides(examples())
    torch.testing.assert_close(state["left"], S)
    torch.testing.assert_close(state["right"], R)


def test_partial_traces_are_those_of_the_fisher_matrix():
    """And so is the trace; they stay so when tasks are summed."""
    form, other = (collect("kronecker", examples(seed=seed), rank=None) for seed in (0, 1))
    F, G = (fisher_matrix(example_gradients(*examples(seed=seed))) for seed in (0, 1))
    torch.testing.assert_close(partial_traces(form_matrix(form.state_dict())), partial_traces(F))
    form.accumulate(other, 0.5)
    torch.testing.assert_close(partial_traces(form_matrix(form.state_dict())), partial_traces(0.5 * F + G))


def test_one_example_with_one_place_is_exact():
    """Its score is d x', and F is (d d') (x) (x x')."""
    data = examples(n=1, places=1)
    for rank in (None, 3):
        matrix = form_matrix(collect("kronecker", data, rank=rank).state_dict())
        torch.testing.assert_close(matrix, fisher_matrix(example_gradients(*data)))


def test_low_rank_approaches_dense_as_the_rank_grows():
    """Each side by itself, its diagonal exact at every rank; and the whole."""
    dense = collect("kronecker", examples(n=40), rank=None)
    forms = [collect("kronecker", examples(n=40), rank=rank).state_dict() for rank in RANKS]
    matrix = form_matrix(dense.state_dict())
    for name, exact in zip(("left", "right"), sides(examples(n=40)), strict=True):
        errors = [float((side(state, name) - exact).norm() / exact.norm()) for state in forms]
        assert all(b < a for a, b in zip(errors, errors[1:], strict=False)) and errors[-1] < errors[0] / 50
        for state in forms:
            torch.testing.assert_close(side(state, name).diagonal(), exact.diagonal())
            assert (state[f"{name}.rest"] >= 0).all()
    errors = [float((form_matrix(state) - matrix).norm() / matrix.norm()) for state in forms]
    assert all(b < a for a, b in zip(errors, errors[1:], strict=False)) and errors[-1] < 0.01


@pytest.mark.parametrize("rank", RANKS)
def test_low_rank_is_near_the_best_of_its_rank(rank):
    """One pass with a random probe of twice the rank, against the eigenvectors of the side that it never sees."""
    state = collect("kronecker", examples(n=40), rank=rank).state_dict()
    for name, exact in zip(("left", "right"), sides(examples(n=40)), strict=True):
        values, vectors = torch.linalg.eigh(exact)
        best = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T
        ours = state[name] @ state[name].T
        assert float((ours - exact).norm()) < 1.5 * float((best - exact).norm()) + 1e-9 * float(exact.norm())
        assert float(torch.linalg.eigvalsh(exact - ours).min()) > -1e-9 * float(values[-1])


def test_a_side_of_low_rank_is_exact():
    data, (S, R) = examples(n=2, places=1), sides(examples(n=2, places=1))
    state = collect("kronecker", data, rank=3).state_dict()
    torch.testing.assert_close(side(state, "left"), S)
    torch.testing.assert_close(side(state, "right"), R)


def test_low_rank_in_float32():
    data = examples(n=40)
    S, R = sides(data)
    state = collect("kronecker", [t.float() for t in data], rank=8).state_dict()
    exact = collect("kronecker", data, rank=8).state_dict()
    for name, whole in (("left", S), ("right", R)):
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(
            side(state, name).double(), side(exact, name), rtol=0, atol=1e-4 * float(whole.max())
        )
        torch.testing.assert_close(side(state, name).diagonal().double(), whole.diagonal(), rtol=1e-5, atol=0)


def test_low_rank_sums_keep_the_diagonal_and_the_leading_directions():
    data = [examples(n=1, places=2, seed=seed) for seed in (0, 1)]
    form, other = (collect("kronecker", d, rank=4) for d in data)
    form.accumulate(other, 0.5)
    for name, (first, second) in zip(("left", "right"), zip(*map(sides, data), strict=True), strict=True):
        torch.testing.assert_close(side(form.state_dict(), name), 0.5 * first + second)
    third = examples(n=5, seed=2)
    form.accumulate(collect("kronecker", third, rank=4))
    for name, parts in zip(("left", "right"), zip(*map(sides, (*data, third)), strict=True), strict=True):
        exact = 0.5 * parts[0] + parts[1] + parts[2]
        ours = side(form.state_dict(), name)
        torch.testing.assert_close(ours.diagonal(), exact.diagonal())
        values = torch.linalg.eigvalsh(exact)
        assert float((ours - exact).norm()) < 1.5 * float(values[:-4].norm())
        assert (form.state_dict()[f"{name}.rest"] >= 0).all()


def test_bytes():
    """Directions and a diagonal a side, in float32; a side that they would not make smaller is dense."""
    data = [t.float() for t in examples()]
    assert collect("kronecker", data, rank=5).nbytes == 4 * 6 * (24 + 30)
    assert collect("kronecker", data, rank=None).nbytes == 4 * (24**2 + 30**2)
    assert collect("kronecker", data, rank=23).nbytes == 4 * (24**2 + 24 * 30)
    assert collect("kronecker", data).nbytes == 4 * 17 * (24 + 30)


def test_the_product_of_the_sides_may_be_below_float32():
    """Sides of 1e-25: their product is nothing in float32, the penalty is not."""
    x, d = (t.float() for t in examples())
    pair = factors(24, 30, 3, dtype=torch.float32)
    for rank in (None, 3):
        once, small = (collect("kronecker", (x, scale * d), rank=rank) for scale in (1.0, 2.0**-46))
        ratio = float(small.quadratic(*pair).double() / once.quadratic(*pair).double())
        assert ratio == pytest.approx(2.0**-92, rel=1e-4)


def test_units_that_see_nothing():
    """Rows and columns of zeros stay zero, with no division by them."""
    x, d = examples()
    x[..., :4], d[..., 5:9] = 0, 0
    for rank in (None, 3, 20):
        matrix = form_matrix(collect("kronecker", (x, d), rank=rank).state_dict()).view(24, 30, 24, 30)
        assert matrix.isfinite().all() and matrix.any()
        assert not matrix[5:9].any() and not matrix[:, :4].any()


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "32"])
def test_rank_is_a_whole_number(rank):
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got"):
        Kronecker.collector(2, 3, torch.device("cpu"), torch.float32, rank=rank)


@pytest.mark.parametrize("had, asked", [(4, 5), (4, None), (None, 4), (4, 23)])
def test_a_state_of_another_rank_is_refused(had, asked):
    state = collect("kronecker", examples(), rank=had).state_dict()
    with pytest.raises(ValueError, match=f"not the state of a Kronecker with rank={asked}: (left|right) is"):
        Kronecker.from_state_dict(state, rank=asked)


@pytest.mark.parametrize("ranks", [(None, 1), (None, 4), (4, None)], ids=str)
def test_a_dense_and_a_low_rank_side_are_not_summed(ranks):
    mine, its = (collect("kronecker", examples(), rank=rank) for rank in ranks)
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    with pytest.raises(ValueError, match="same rank"):
        mine.accumulate(its)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
