"""Sums over examples against float64 loops that write every gradient out."""

from itertools import product

import pytest
import torch

from oracles import example_gradients
from retain.fisher import contract

# N, T, in, out: one place to many; more places than widths and fewer; narrow, wide, square; one example and none.
SHAPES = [
    (N, T, n_in, out)
    for N, n_in, out in [(1, 5, 3), (4, 3, 5), (3, 8, 8), (7, 1, 4), (5, 4, 1)]
    for T in (1, 2, 3, 4, 5, 17)
] + [(0, 1, 3, 2), (0, 2, 3, 2), (0, 5, 3, 2), (3, 70, 6, 40), (2, 5, 400, 500), (2, 2, 400, 500)]
DTYPES = (torch.float32, torch.float64)


def drawn(N, T, n_in, out, dtype=torch.float64):
    generator = torch.Generator().manual_seed(N + 10 * T + 100 * n_in + 1000 * out)
    random = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return random(N, T, n_in), random(N, T, out), random


def close(ours, exact, tolerance=None):
    """In units of the largest entry."""
    assert ours.shape == exact.shape
    if not exact.any():
        assert not ours.any()
        return
    limit = tolerance or (1e-5 if ours.dtype == torch.float32 else 1e-12)
    assert float((ours.double() - exact).abs().max()) <= limit * float(exact.abs().max())


def of_blocks(monkeypatch, entries):
    monkeypatch.setattr(contract, "CPU_TILE", entries)


ACCUMULATED = {
    "add_squares": (lambda N, T, i, o: (o, i), lambda G: (G**2).sum(0)),
    "add_left": (lambda N, T, i, o: (o, o), lambda G: (G @ G.mT).sum(0)),
    "add_right": (lambda N, T, i, o: (i, i), lambda G: (G.mT @ G).sum(0)),
}


@pytest.mark.parametrize("tile", [16, 1 << 18])
@pytest.mark.parametrize(("N", "T", "n_in", "out"), SHAPES)
def test_matrices_are_added_in_place(monkeypatch, N, T, n_in, out, tile):
    of_blocks(monkeypatch, tile * max(1, n_in * out // 1000))
    for dtype, (name, (shape, exact)) in product(DTYPES, ACCUMULATED.items()):
        x, d, random = drawn(N, T, n_in, out, dtype)
        before = random(*shape(N, T, n_in, out)).abs()
        total = before.clone()
        assert getattr(contract, name)(total, x, d) is None
        close(total, before.double() + exact(example_gradients(x, d)))


@pytest.mark.parametrize(("N", "T", "n_in", "out"), SHAPES)
def test_products_with_a_probe(N, T, n_in, out):
    for dtype, k in product(DTYPES, (1, 4)):
        x, d, random = drawn(N, T, n_in, out, dtype)
        G = example_gradients(x, d)
        for name, matrices, width in (("left", G @ G.mT, out), ("right", G.mT @ G, n_in)):
            before, probe = random(width, k), random(width, k)
            total = before.clone()
            getattr(contract, f"add_{name}_product")(total, x, d, probe)
            close(total, before.double() + matrices.sum(0) @ probe.double())


@pytest.mark.parametrize("tile", [16, 1 << 18])
@pytest.mark.parametrize(("N", "T", "n_in", "out"), SHAPES)
def test_energies(monkeypatch, N, T, n_in, out, tile):
    of_blocks(monkeypatch, tile * max(1, n_in * out // 1000))
    for dtype in DTYPES:
        x, d, _ = drawn(N, T, n_in, out, dtype)
        G = example_gradients(x, d)
        close(contract.row_energies(x, d), (G**2).sum((0, 2)))
        close(contract.column_energies(x, d), (G**2).sum((0, 1)))
        close(contract.energies(x, d), (G**2).sum((1, 2)))


@pytest.mark.parametrize(("N", "T", "n_in", "out"), SHAPES)
def test_slopes_along_an_update(N, T, n_in, out):
    for dtype in DTYPES:
        x, d, random = drawn(N, T, n_in, out, dtype)
        B, A = random(out, 2), random(2, n_in)
        G, update = example_gradients(x, d).flatten(1), (B.double() @ A.double()).flatten()
        ours = contract.along(x, d, B, A)
        assert ours.dtype == dtype and ours.shape == (N,)
        # A slope is a sum of terms of either sign: its error is measured against their sizes.
        size = G.norm(dim=1) * update.norm()
        assert bool(((ours.double() - G @ update).abs() <= (1e-5 if dtype == torch.float32 else 1e-12) * size).all())


@pytest.mark.parametrize("T", [1, 2, 5, 64])
def test_bfloat16_inputs_are_summed_in_float32(T):
    """1000 equal squares: a sum in bfloat16 would stop at 256 of them."""
    x, d, _ = drawn(1, T, 40, 500, torch.bfloat16)
    x, d = x.expand(1000, -1, -1), d.expand(1000, -1, -1)
    total = torch.zeros(500, 40)
    contract.add_squares(total, x, d)
    G = example_gradients(x[:1], d[:1])
    close(total, 1000 * (G**2).sum(0), 1e-2)
    close(contract.row_energies(x, d), 1000 * (G**2).sum((0, 2)), 1e-2)
    assert contract.energies(x, d).dtype == contract.along(x, d, torch.ones(500, 1), torch.ones(1, 40)).dtype
    left = torch.zeros(500, 500)
    contract.add_left(left, x, d)
    close(left, 1000 * (G @ G.mT).sum(0), 1e-2)


def test_squares_are_never_negative_where_places_cancel():
    """Two places whose gradients cancel but for rounding."""
    x, d, _ = drawn(50, 1, 30, 20, torch.float32)
    total = torch.zeros(20, 30)
    contract.add_squares(total, torch.cat([x, x], 1), torch.cat([d, -d * (1 + 1e-4)], 1))
    assert bool((total >= 0).all())


def test_a_gradient_of_a_large_layer_is_never_whole(monkeypatch):
    sizes = []
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape: sizes.append(torch.Size(shape).numel()) or empty(self, *shape)
    )
    x, d, _ = drawn(3, contract.PAIRS + 1, 600, 900, torch.float32)
    contract.add_squares(torch.zeros(900, 600), x, d)
    assert sizes and max(sizes) <= contract.CPU_TILE < 600 * 900
