"""The factored form: least divergence from the diagonal, a fit that is measured, and what happens where it fails."""

import pytest
import torch

from gradients import collect, even, examples, factors
from oracles import dense_penalty, example_gradients
from retain.fisher import penalty
from retain.fisher.forms import Diagonal, Factored
from retain.fisher.forms.factorise import Product, factorise


def profiles(components, out=90, in_=80, seed=0):
    """A matrix (out, in) that is a sum of ``components`` non-negative products, of overlapping parts."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = (torch.rand(components, n, generator=g, dtype=torch.float64) ** 4 for n in (out, in_))
    return rows.T @ columns


def divergence(matrix, product):
    near = product[slice(None)]
    return float((matrix * (matrix / near).log() - matrix + near).sum() / matrix.sum())


def fitted(matrix, components):
    return Factored.of(matrix, tuple(matrix.shape), components, matrix)


def test_one_component_is_row_and_column_sums():
    matrix = (example_gradients(*examples()) ** 2).mean(0)
    product = factorise(matrix, (24, 30), 1, matrix)
    torch.testing.assert_close(product[slice(None)], torch.outer(matrix.sum(1), matrix.sum(0)) / matrix.sum())


@pytest.mark.parametrize("components", [2, 4, 8])
def test_columns_and_trace_are_those_of_the_matrix(components):
    matrix = torch.rand(90, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    near = factorise(matrix, (90, 80), components, matrix)[slice(None)]
    torch.testing.assert_close(near.sum(0), matrix.sum(0))
    assert (near >= 0).all()


@pytest.mark.parametrize("components", [2, 4, 8])
def test_it_finds_factors_that_are_there(components):
    matrix = profiles(components)
    before, after = (divergence(matrix, factorise(matrix, (90, 80), m, matrix)) for m in (1, components))
    assert after < before / 20


@pytest.mark.parametrize("components", [2, 4])
def test_it_is_nearly_where_a_thousand_plain_updates_lead(components):
    """The slow twin: the updates of Lee and Seung, one at a time, from the best of three random starts."""
    matrix = profiles(12) * torch.rand(90, 80, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def slow(seed):
        g = torch.Generator().manual_seed(seed)
        W, H = (torch.rand(*shape, generator=g, dtype=torch.float64) for shape in ((90, components), (components, 80)))
        for _ in range(1000):
            W = W * (matrix / (W @ H) @ H.T) / H.sum(1)
            H = H * (W.T @ (matrix / (W @ H))) / W.sum(0)[:, None]
        return divergence(matrix, Product(W.T, H))

    assert divergence(matrix, factorise(matrix, (90, 80), components, matrix)) < 1.05 * min(map(slow, range(3)))


def test_what_is_kept_is_as_near_as_it_says():
    matrix = profiles(2) + 0.02 * profiles(9, seed=1)
    form, (B, A) = fitted(matrix, 4), factors(90, 80, 8)
    assert isinstance(form.kept, Product)
    assert 0 < form.fit.error <= 0.01 and 0.999 <= form.fit.cosine < 1
    held = factors(90, 80, 8, seed=5)
    assert float(form.quadratic(B, A, held)) == pytest.approx(float(dense_penalty(B, A, matrix, 1.0, held)), rel=0.01)


def test_it_falls_back_where_it_fails():
    """A permutation's pattern has no factors at all; the diagonal in bytes has no trouble with it."""
    matrix = torch.eye(90, dtype=torch.float64) + 1e-3
    form, (B, A) = fitted(matrix, 4), factors(90, 90, 8)
    assert isinstance(form.kept, Diagonal)
    assert form.fit.cosine < 0.999 or form.fit.error > 0.01
    assert float(form.quadratic(B, A)) == pytest.approx(float(dense_penalty(B, A, matrix, 1.0, None)), rel=5e-3)


def test_the_bounds_are_what_they_are_said_to_be(monkeypatch):
    from retain.fisher.forms import factored

    for fit, kept in ((0.0101, 0.9999), Diagonal), ((0.0099, 0.9989), Diagonal), ((0.0099, 0.9991), Product):
        monkeypatch.setattr(factored, "_measure", lambda *_, fit=fit: factored.Fit(*fit))
        form = fitted(profiles(2), 2)
        assert isinstance(form.kept, kept) and form.fit == fit


def test_a_small_site_is_kept_as_it_is():
    """Eight profiles of a weight (3, 80) are larger than the weight."""
    form = fitted(profiles(2, out=3), 8)
    assert isinstance(form.kept, Diagonal) and form.fit == (0.0, 1.0)
    assert fitted(profiles(2, out=200, in_=150), 8).nbytes == 8 * 350 * 8 + 16


def test_accumulated_factors_are_those_of_the_sum():
    first, second = profiles(2), profiles(2, seed=1)
    form = fitted(first, 4)
    form.accumulate(fitted(second, 4), 0.5)
    assert isinstance(form.kept, Product) and form.fit.holds
    matrix, pair = 0.5 * first + second, factors(90, 80, 8)
    assert float(form.quadratic(*pair)) == pytest.approx(float(dense_penalty(*pair, matrix, 1.0, None)), rel=0.01)
    assert form.trace == pytest.approx(float(matrix.sum()), rel=1e-9)


def test_a_sum_that_does_not_fit_falls_back_and_one_that_does_comes_back():
    form = fitted(profiles(2), 2)
    form.accumulate(fitted(profiles(2, seed=1), 2))
    assert isinstance(form.kept, Diagonal) and not form.fit.holds
    matrix, pair = profiles(2) + profiles(2, seed=1), factors(90, 80, 8)
    assert float(form.quadratic(*pair)) == pytest.approx(float(dense_penalty(*pair, matrix, 1.0, None)), rel=0.02)
    form.accumulate(fitted(1e6 * profiles(1), 2))
    assert isinstance(form.kept, Product) and form.fit.holds


def test_accumulating_needs_no_dense_matrix(monkeypatch):
    form, other = fitted(profiles(2), 2), fitted(profiles(2), 2)
    read, plain = [], Product.__getitem__

    def watched(self, rows):
        read.append(plain(self, rows).numel())
        return plain(self, rows)

    monkeypatch.setattr(penalty, "TILE", 200)
    monkeypatch.setattr(Product, "__getitem__", watched)
    form.accumulate(other)
    assert read and max(read) <= 200


def test_tiles_make_no_difference(monkeypatch):
    matrix = profiles(6)
    whole = factorise(matrix, (90, 80), 4, matrix)[slice(None)]
    monkeypatch.setattr(penalty, "TILE", 200)
    torch.testing.assert_close(factorise(matrix, (90, 80), 4, matrix)[slice(None)], whole)


def test_rows_and_columns_of_zeros():
    matrix = profiles(2)
    matrix[:7], matrix[:, 3:9] = 0, 0
    near = factorise(matrix, (90, 80), 4, matrix)[slice(None)]
    assert near.isfinite().all() and not near[:7].any() and not near[:, 3:9].any()
    torch.testing.assert_close(near, matrix, rtol=0, atol=0.05 * float(matrix.max()))


@pytest.mark.parametrize("components", [0, -1, 1.5, True, "2", None])
def test_components_is_a_whole_number(components):
    with pytest.raises(ValueError, match="components must be a whole number of at least 1, got"):
        Factored.collector(2, 3, torch.device("cpu"), torch.float32, components=components)


def test_a_state_with_other_components_is_refused():
    state = collect("factored", even(), components=1).state_dict()
    with pytest.raises(ValueError, match="not the state of a Factored with components=2: it has 1"):
        Factored.from_state_dict(state, components=2)
