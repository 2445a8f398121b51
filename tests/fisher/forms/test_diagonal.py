"""The diagonal form: what each storage keeps of E[G o G], and that it is read in tiles."""

import pytest
import torch

from gradients import collect, examples, factors
from oracles import example_gradients
from retain.fisher import penalty
from retain.fisher.forms import Diagonal


def spread(out=40, in_=30, decades=12.0, seed=0):
    """Positive entries (out, in) over many decades, rows of very different size among them."""
    g = torch.Generator().manual_seed(seed)
    return 10 ** (decades * (torch.rand(out, in_, generator=g) - 1) + torch.randn(out, 1, generator=g))


def stored(matrix, storage):
    return Diagonal.of(matrix, tuple(matrix.shape), storage, matrix)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of three rows of 30."""
    monkeypatch.setattr(penalty, "TILE", 100)


def test_it_is_the_mean_squared_gradient():
    form = collect("diagonal", examples(), batch=5)
    torch.testing.assert_close(form.state_dict()["fisher"], (example_gradients(*examples()) ** 2).mean(0))


def test_squares_of_batch_means_are_a_batch_size_smaller():
    """As reference codes have them: (1/N) sum_b n_b g_b^2, here with batches of 5, 5 and 2 of 12."""
    data = examples()
    form = collect("diagonal", data, batch=5, squares="batch")
    batches = example_gradients(*data).split(5)
    expected = sum(len(G) * G.mean(0) ** 2 for G in batches) / 12
    torch.testing.assert_close(form.state_dict()["fisher"], expected)
    alone = collect("diagonal", data, batch=1, squares="batch")
    torch.testing.assert_close(alone.state_dict(), collect("diagonal", data).state_dict())


def test_bfloat16_rounds_to_eight_bits():
    matrix = spread()
    ours = stored(matrix, "bfloat16")[slice(None)]
    assert float((ours / matrix - 1).abs().max()) <= 2**-8
    assert not torch.equal(ours, matrix)


def test_uint8_is_off_by_half_a_step_of_the_root():
    matrix = spread().double()
    root, step = matrix.sqrt(), matrix.sqrt().amax(1, keepdim=True) / 255
    ours = stored(matrix, "uint8")[slice(None)].sqrt()
    assert float(((ours - root).abs() / step).max()) <= 0.5 + 1e-6
    assert float(((ours - root).abs() / step).max()) > 0.4


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "uint8"])
def test_rows_of_zeros_and_of_almost_nothing(storage):
    matrix = torch.zeros(3, 4)
    matrix[1], matrix[2] = torch.arange(4) * 1e-33, torch.arange(4.0)
    torch.testing.assert_close(stored(matrix, storage)[slice(None)], matrix, rtol=1e-2, atol=0)


@pytest.mark.parametrize("storage, bytes_", [("float32", 4 * 1200), ("bfloat16", 2 * 1200), ("uint8", 1200 + 4 * 40)])
def test_bytes(storage, bytes_):
    assert stored(spread(), storage).nbytes == bytes_


@pytest.mark.parametrize("storage", ["bfloat16", "uint8"])
def test_the_penalty_is_that_of_full_precision(storage):
    matrix, (B, A) = spread(384, 384, 4.0), factors(384, 384, 8, dtype=torch.float32)
    values, gradients = [], []
    for form in (stored(matrix, "float32"), stored(matrix, storage)):
        pair = B.clone().requires_grad_(), A.clone().requires_grad_()
        value = form.quadratic(*pair)
        values.append(float(value.detach()))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, pair)]))
    assert values[1] / values[0] == pytest.approx(1, abs=1e-3)
    assert float(torch.nn.functional.cosine_similarity(*gradients, 0)) > 0.99999


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "uint8"])
def test_tiles_make_no_difference(storage, monkeypatch):
    def after(tile):
        monkeypatch.setattr(penalty, "TILE", tile)
        form = stored(spread(), storage)
        form.accumulate(stored(spread(seed=1), storage), 0.7)
        return form.state_dict(), float(form.quadratic(*factors(40, 30, 4, dtype=torch.float32))), form.trace

    (state, *numbers), (whole, *others) = after(100), after(1 << 18)
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    assert numbers == pytest.approx(others, rel=1e-6)


def test_no_more_than_a_tile_is_read_at_a_time(small_tiles, monkeypatch):
    read, plain = [], Diagonal.__getitem__

    def watched(self, rows):
        read.append(plain(self, rows).numel())
        return plain(self, rows)

    form, other = stored(spread(), "uint8"), stored(spread(seed=1), "uint8")
    monkeypatch.setattr(Diagonal, "__getitem__", watched)
    form.accumulate(other)
    form.quadratic(*factors(40, 30, 4, dtype=torch.float32))
    assert form.trace > 0
    assert len(read) > 4 * 13 and max(read) <= 100


def test_low_precision_loses_what_is_far_below_it():
    """As its description says: a later task's importance under the rounding of the sum is not kept."""
    for storage, kept in (("float32", True), ("bfloat16", False), ("uint8", False)):
        form = stored(torch.ones(2, 4), storage)
        form.accumulate(stored(torch.tensor([[1e-3, 0, 0, 0]] * 2), storage))
        assert bool((form[slice(None)][:, 0] > form[slice(None)][:, 1]).all()) == kept


@pytest.mark.parametrize("storage", ["bfloat", None, 8])
def test_an_unknown_storage_is_refused(storage):
    hint = "; did you mean 'bfloat16'" if storage == "bfloat" else ""
    with pytest.raises(ValueError, match=f"unknown storage {storage!r}; known: float32, bfloat16, uint8{hint}"):
        Diagonal.collector(2, 3, torch.device("cpu"), torch.float32, storage=storage)


def test_unknown_squares_are_refused():
    with pytest.raises(ValueError, match="unknown squares 'batches'; known: example, batch; did you mean 'batch'"):
        Diagonal.collector(2, 3, torch.device("cpu"), torch.float32, squares="batches")


def test_a_state_stored_otherwise_is_refused():
    states = {storage: stored(spread(), storage).state_dict() for storage in ("float32", "bfloat16", "uint8")}
    for storage in states:
        for other in set(states) - {storage}:
            with pytest.raises(ValueError, match="not the state of a Diagonal"):
                Diagonal.from_state_dict(states[other], storage=storage)
