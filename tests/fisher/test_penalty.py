"""The tiled penalty against the dense formula in float64, and what it may keep in memory."""

import pytest
import torch

from oracles import dense_penalty
from retain.fisher import quadratic
from retain.fisher.penalty import TILE

SHAPES = [(7, 5, 2), (5, 9, 3), (1, 4, 1), (6, 6, 6)]
ANCHORS = ["none", "same rank", "lower rank", "higher rank"]


def problem(out, width, r, anchor="same rank", dtype=torch.float64):
    """Factors that want gradients, a Fisher over six decades, and an anchor, all seeded."""
    g = torch.Generator().manual_seed(0)
    B, A = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((out, r), (r, width)))
    q = {"none": 0, "same rank": r, "lower rank": max(1, r - 1), "higher rank": r + 2}[anchor]
    pair = [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in ((out, q), (q, width))]
    fisher = torch.logspace(-3, 3, out * width, dtype=torch.float64)[torch.randperm(out * width, generator=g)]
    B, A = (x.to(dtype).requires_grad_() for x in (B, A))
    return B, A, fisher.view(out, width).to(dtype), None if anchor == "none" else (pair[0], pair[1])


def value_and_gradients(value, B, A):
    return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, (B, A)))]


def assert_same(ours, dense, rtol):
    """Entries to ``rtol`` of the largest of their tensor."""
    for x, y in zip(ours, dense, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=rtol * float(y.abs().max()))


@pytest.mark.parametrize("tile", [1, 3, 10, 17, TILE])
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(("out", "width", "r"), SHAPES)
def test_float64_is_the_dense_formula(out, width, r, anchor, tile):
    B, A, fisher, held = problem(out, width, r, anchor)
    dense = value_and_gradients(dense_penalty(B, A, fisher, 1.7, held), B, A)
    assert_same(value_and_gradients(quadratic(B, A, fisher, 1.7, held, tile), B, A), dense, 1e-13)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_lower_precision(anchor, dtype, rtol):
    B, A, fisher, held = problem(30, 20, 4, anchor, dtype)
    dense = value_and_gradients(dense_penalty(B, A, fisher, 0.3, held), B, A)
    ours = quadratic(B, A, fisher, 0.3, held, tile=64)
    assert ours.dtype == torch.float32
    assert_same(value_and_gradients(ours, B, A), dense, rtol)


def test_gradients_against_finite_differences():
    B, A, fisher, held = problem(4, 3, 2)
    assert torch.autograd.gradcheck(lambda B, A: quadratic(B, A, fisher, 0.5, held, 5), (B, A))


def test_no_cancellation_near_the_anchor():
    """A step after the boundary the change is some 1e-5 of B A; at the boundary it is nothing at all."""
    B, A, fisher, _ = problem(30, 20, 4, "none", torch.float32)
    held = B.detach().clone(), A.detach().clone()
    assert [float(x.abs().max()) for x in value_and_gradients(quadratic(B, A, fisher, 2.0, held), B, A)] == [0, 0, 0]
    with torch.no_grad():
        B += 1e-5 * torch.randn_like(B)
    dense = value_and_gradients(dense_penalty(B, A, fisher, 2.0, held), B, A)
    assert_same(value_and_gradients(quadratic(B, A, fisher, 2.0, held), B, A), dense, 1e-5)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_invariant_under_a_change_of_gauge(anchor):
    B, A, fisher, held = problem(7, 5, 3, anchor)
    R = torch.randn(3, 3, dtype=torch.float64)
    turned = quadratic(B @ R.inverse(), R @ A, fisher, 1.7, held)
    torch.testing.assert_close(turned, quadratic(B, A, fisher, 1.7, held), rtol=1e-10, atol=0)


def test_scales_with_what_is_added_to_the_loss():
    """The upstream gradient (the strength) reaches both factors, in half precision without underflow too."""
    B, A, fisher, held = problem(6, 5, 2, dtype=torch.float16)
    fisher = fisher.float() * 1e-9
    (1e9 * quadratic(B, A, fisher, 1.0, held)).backward()
    dense = value_and_gradients(1e9 * dense_penalty(B, A, fisher, 1.0, held), B, A)[1:]
    assert_same([B.grad.double(), A.grad.double()], dense, 1e-2)


def test_nothing_of_the_size_of_the_weight_is_kept_for_backward():
    B, A, fisher, held = problem(40, 30, 2)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = quadratic(B, A, fisher, 1.0, held, tile=60)
    assert kept == [B.numel(), A.numel()]
    closed_over = [x for x in vars(value.grad_fn).values() if isinstance(x, torch.Tensor)]
    assert not closed_over
