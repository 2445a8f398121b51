"""The restricted Stiefel manifold against linear constraints and singular value decompositions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from method_oracles import riemannian_descent, tangent_by_constraints
from retain.stiefel import Points, retract, tangent

M, R, P = 12, 3, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def point(seed: int = 0, m: int = M, p: int = P) -> tuple[Tensor, Tensor]:
    """X (m, R) and F (m, p) with orthonormal columns, X orthogonal to F."""
    Q = torch.linalg.qr(random(m, R + p, seed=seed)).Q
    return Q[:, :R], Q[:, R:]


def assert_on(X: Tensor, F: Tensor | None = None, tolerance: float = 1e-12) -> None:
    eye = torch.eye(X.shape[-1], dtype=X.dtype).expand(*X.shape[:-2], -1, -1)
    torch.testing.assert_close(X.mT @ X, eye, atol=tolerance, rtol=0)
    if F is not None:
        assert (F.mT @ X).abs().max() < tolerance


@pytest.mark.parametrize("p", [0, P, M - R])
def test_tangent_is_the_nearest_that_the_constraints_allow(p: int) -> None:
    X, F = point(p=p)
    Z = random(M, R, seed=1)
    torch.testing.assert_close(tangent(X, Z, F), tangent_by_constraints(X, Z, F), atol=1e-12, rtol=0)
    if not p:
        torch.testing.assert_close(tangent(X, Z), tangent(X, Z, F), atol=1e-15, rtol=0)


def test_tangent_is_idempotent_and_self_adjoint() -> None:
    (X, F), Y, Z = point(), random(M, R, seed=1), random(M, R, seed=2)
    once = tangent(X, Z, F)
    torch.testing.assert_close(tangent(X, once, F), once, atol=1e-14, rtol=0)
    torch.testing.assert_close((Y * once).sum(), (tangent(X, Y, F) * Z).sum(), atol=1e-13, rtol=0)


def test_the_canonical_gradient_is_no_projection() -> None:
    """Of a tangent vector X W + rest, W skew, it doubles X W: a second use is no longer the first."""
    X, F = point()
    skew = random(R, R, seed=1)
    inside, outside = X @ (skew - skew.T), tangent(X, random(M, R, seed=2), torch.cat([F, X], 1))
    torch.testing.assert_close(tangent(X, inside + outside, F), inside + outside, atol=1e-13, rtol=0)
    doubled = tangent(X, inside + outside, F, metric="canonical")
    torch.testing.assert_close(doubled, 2 * inside + outside, atol=1e-13, rtol=0)


def test_batches_are_their_members() -> None:
    pairs = [point(seed) for seed in range(3)]
    X, F = (torch.stack(t) for t in zip(*pairs, strict=True))
    Z = random(3, M, R, seed=9)
    padded = torch.cat([F, torch.zeros(3, M, 2, dtype=F.dtype)], 2)
    each = torch.stack([tangent(x, z, f) for (x, f), z in zip(pairs, Z, strict=True)])
    torch.testing.assert_close(tangent(X, Z, padded), each, atol=1e-14, rtol=0)
    torch.testing.assert_close(retract(X + each), torch.stack([retract(y) for y in X + each]), atol=1e-13, rtol=0)


@pytest.mark.parametrize("method", ["eigh", "svd", "newton-schulz"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_every_retraction_is_the_polar_factor(method: str, dtype: torch.dtype, tolerance: float) -> None:
    X, F = point()
    step = tangent(X, random(M, R, seed=1), F)
    Y = X + 0.7 * step / torch.linalg.matrix_norm(step, 2)
    U, _, Vh = torch.linalg.svd(Y, full_matrices=False)
    found = retract(Y.to(dtype), method)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), U @ Vh, atol=tolerance, rtol=0)
    assert_on(found.double(), F, 2 * tolerance)


def test_half_precision_is_retracted_in_float32() -> None:
    X = retract(random(M, R).bfloat16())
    assert X.dtype == torch.float32
    assert_on(X, tolerance=1e-6)


def test_where_the_gram_matrix_is_ill_conditioned_singular_values_are_taken_of_the_matrix_itself() -> None:
    X, _ = point()
    Y = (X * torch.tensor([1.0, 1e-2, 1e-5])).float()
    assert_on(retract(Y), tolerance=1e-6)
    torch.testing.assert_close(retract(Y).double(), X, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["eigh", "svd"])
@pytest.mark.parametrize("Y", [torch.zeros(5, 2), torch.ones(5, 2)])
def test_dependent_columns_have_no_polar_factor(method: str, Y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"dependent ones: of \(5, 2\), the smallest singular value is"):
        retract(Y, method)


def test_newton_schulz_says_where_it_does_not_converge() -> None:
    with pytest.raises(ValueError, match="Newton-Schulz has not converged"):
        retract(10 * point()[0], "newton-schulz")


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        retract(torch.full((5, 2), torch.nan))
    with pytest.raises(ValueError, match="unknown retraction 'qr'; known: eigh, svd, newton-schulz"):
        retract(torch.eye(3), "qr")


@pytest.mark.parametrize("turned", [False, True])
def test_a_step_of_plain_descent_around_points_is_riemannian_gradient_descent(turned: bool) -> None:
    pairs = [point(seed) for seed in range(2)]
    gradients = [random(M, R, seed=5 + i) for i in range(2)]
    parameters = [torch.nn.Parameter((x.T if turned else x).clone()) for x, _ in pairs]
    points = Points(parameters, turned=turned, F=torch.stack([f for _, f in pairs]))
    optimizer = torch.optim.SGD(parameters, lr=0.3)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = (gradient.T if turned else gradient).clone()
    points.project_gradients("euclidean")
    optimizer.step()
    with torch.no_grad():
        points.retract(0.5, "euclidean")
    for parameter, (X, F), gradient in zip(parameters, pairs, gradients, strict=True):
        found = parameter.detach().T if turned else parameter.detach()
        torch.testing.assert_close(found, riemannian_descent(X, gradient, F, 0.15), atol=1e-12, rtol=0)


def test_what_does_not_train_stays_to_the_bit() -> None:
    X, _ = point()
    moving, frozen = (torch.nn.Parameter(X.clone()) for _ in range(2))
    frozen.requires_grad_(False)
    points = Points([moving, frozen])
    moving.grad = random(M, R, seed=1)
    points.project_gradients("euclidean")
    assert frozen.grad is None
    with torch.no_grad():
        moving -= 0.1 * moving.grad
        points.retract(1.0, "euclidean")
    assert torch.equal(frozen, X) and not torch.equal(moving, X)
    assert_on(moving.detach())
