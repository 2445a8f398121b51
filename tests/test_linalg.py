"""Low-rank linear algebra against dense singular value decompositions in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retain.linalg import (
    complement,
    effective_rank,
    energy_concentration,
    leading_svd,
    orthonormal_basis,
    orthonormalised,
    project_out,
    rank_for_energy,
    spectral_entropy,
    stable_rank,
    thin_svd,
    truncate,
)

SHAPES = [(7, 5, 2), (5, 7, 2), (6, 6, 6), (4, 9, 6), (9, 4, 6), (3, 4, 11), (1, 5, 1), (5, 1, 3), (4, 3, 0)]


def factors(out, width, R, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(out, R, generator=generator, dtype=torch.float64)
    A = torch.randn(R, width, generator=generator, dtype=torch.float64)
    return B.to(dtype), A.to(dtype)


def assert_orthonormal(X, atol):
    torch.testing.assert_close(X.T @ X, torch.eye(X.shape[1], dtype=X.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize(("out", "width", "R"), SHAPES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_thin_svd_is_that_of_the_dense_product(out, width, R, dtype, atol):
    B, A = factors(out, width, R, dtype)
    U, S, V = thin_svd(B, A)
    k = min(out, width, R)
    assert (U.shape, S.shape, V.shape) == ((out, k), (k,), (width, k))
    assert U.dtype == S.dtype == V.dtype == dtype
    dense = B.double() @ A.double()
    torch.testing.assert_close(S.double(), torch.linalg.svdvals(dense)[:k], atol=atol, rtol=atol)
    torch.testing.assert_close((U * S @ V.T).double(), dense, atol=10 * atol, rtol=0)
    assert_orthonormal(U, atol)
    assert_orthonormal(V, atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_and_returned_in_float32(dtype):
    B, A = factors(8, 6, 3, dtype)
    U, S, V = thin_svd(B, A)
    assert U.dtype == S.dtype == V.dtype == torch.float32
    torch.testing.assert_close((U * S @ V.T).double(), B.double() @ A.double(), atol=1e-5, rtol=0)
    assert all(factor.dtype == torch.float32 and factor.is_contiguous() for factor in truncate(B, A, 2)[:2])


def test_mixed_precision_takes_the_finer():
    B, A = factors(8, 6, 3)
    assert thin_svd(B.bfloat16(), A)[1].dtype == torch.float64


@pytest.mark.parametrize("zero", ["B", "A", "both"])
def test_zero_product(zero):
    B, A = factors(5, 4, 3, torch.float32)
    B, A = B * (zero == "A"), A * (zero == "B")
    U, S, V = thin_svd(B, A)
    assert not S.any()
    assert_orthonormal(U, 1e-6)
    assert_orthonormal(V, 1e-6)
    small_B, small_A, error = truncate(B, A, 2)
    assert (small_B.shape, small_A.shape, error) == ((5, 2), (2, 4), 0.0)
    assert not small_B.any() and not small_A.any()


@pytest.mark.parametrize("call", [thin_svd, lambda B, A: truncate(B, A, 3)])
def test_no_dense_matrix_is_formed(call):
    B, A = factors(400, 300, 8, torch.float32)
    with LargestTensor() as seen:
        call(B, A)
    assert seen.numel == 400 * 8


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize(("out", "width", "R"), [shape for shape in SHAPES if shape[2]])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncate_is_the_best_approximation(out, width, R, rank):
    B, A = factors(out, width, R)
    small_B, small_A, error = truncate(B, A, rank)
    dense = B @ A
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    torch.testing.assert_close(small_B @ small_A, U[:, :rank] * S[:rank] @ Vh[:rank], atol=1e-11, rtol=0)
    assert small_B.shape[1] == small_A.shape[0] == min(rank, out, width, R)
    assert error == pytest.approx(((dense - small_B @ small_A).norm() / dense.norm()).item(), abs=1e-12)


def test_truncated_factors_are_balanced():
    B, A = factors(9, 7, 5)
    small_B, small_A, _ = truncate(B, A, 3)
    S = torch.diag(torch.linalg.svdvals(small_B @ small_A)[:3])
    torch.testing.assert_close(small_B.T @ small_B, S, atol=1e-11, rtol=0)
    torch.testing.assert_close(small_A @ small_A.T, S, atol=1e-11, rtol=0)


def test_truncating_to_the_full_rank_is_exact():
    B, A = factors(9, 7, 5, torch.float32)
    small_B, small_A, error = truncate(B, A, 8)
    assert small_B.shape == (9, 5) and error == 0.0
    torch.testing.assert_close(small_B @ small_A, B @ A)


def test_error_of_an_update_whose_squares_underflow():
    B, A = factors(9, 7, 5, torch.float32)
    expected = truncate(B, A, 2)[2]
    assert truncate(1e-15 * B, 1e-15 * A, 2)[2] == pytest.approx(expected, rel=1e-4)


def test_same_input_same_output_and_no_graph():
    B, A = (torch.nn.Parameter(factor) for factor in factors(12, 10, 20, torch.float32))
    first, second = (truncate(B, A, 4) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not first[0].requires_grad and not first[1].requires_grad


@pytest.mark.parametrize(
    ("B", "A", "rank", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), 1, r"\(out, R\) and \(R, in\); got \(3, 2\) and \(3, 4\)"),
        (torch.ones(3), torch.ones(3, 4), 1, r"got \(3,\) and \(3, 4\)"),
        (torch.full((3, 2), torch.nan), torch.ones(2, 4), 1, "finite"),
        (torch.ones(3, 2), torch.ones(2, 4), 0, "rank must be at least 1; got 0"),
    ],
)
def test_truncate_refuses(B, A, rank, message):
    with pytest.raises(ValueError, match=message):
        truncate(B, A, rank)


@pytest.mark.parametrize(("n", "m", "p"), [(8, 3, 3), (8, 5, 2), (4, 9, 4), (6, 6, 0), (5, 0, 0)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_orthonormal_basis_spans_the_columns(n, m, p, dtype, atol):
    B, A = factors(n, m, p, dtype)
    X = B @ A
    Q = orthonormal_basis(X)
    assert Q.shape == (n, p)
    assert_orthonormal(Q, atol)
    torch.testing.assert_close(Q @ Q.T @ X, X, atol=10 * atol, rtol=0)


def test_project_out_is_the_orthogonal_projection():
    F = orthonormal_basis(factors(10, 1, 4)[0])
    X = factors(10, 1, 6, seed=1)[0]
    expected = (torch.eye(10, dtype=torch.float64) - F @ F.T) @ X
    torch.testing.assert_close(project_out(X, F), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(project_out(expected, F), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(project_out(X, F[:, :0]), X)


def test_project_out_leaves_nothing_of_what_lies_almost_inside():
    F = orthonormal_basis(factors(200, 1, 50, torch.float32)[0])
    inside, outside = factors(200, 1, 5, torch.float32, seed=1)[0], factors(200, 1, 5, torch.float32, seed=2)[0]
    X = 1e4 * F @ (F.T @ inside) + 1e-2 * outside
    once, rest = X - F @ (F.T @ X), project_out(X, F)
    assert (F.T @ rest).norm() / rest.norm() < 1e-6 < (F.T @ once).norm() / once.norm()


@pytest.mark.parametrize(
    ("S", "energy", "expected"),
    [
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 2.0, 1.0], 9 / 14, 1),
        ([3.0, 2.0, 1.0], 0.65, 2),
        ([3.0, 2.0, 1.0], 13 / 14 + 1e-9, 3),
        ([3.0, 2.0, 0.0], 1.0, 2),
        ([1e-25, 1e-25], 0.5, 1),
        ([1.0] * 100, 0.07, 7),
        ([0.0, 0.0], 0.9, 0),
        ([], 0.9, 0),
    ],
)
def test_rank_for_energy(S, energy, expected):
    assert rank_for_energy(torch.tensor(S), energy) == expected


@pytest.mark.parametrize("energy", [-0.1, 1.1, 95, float("nan")])
def test_rank_for_energy_refuses(energy):
    with pytest.raises(ValueError, match="between 0 and 1"):
        rank_for_energy(torch.ones(2), energy)


def test_project_out_takes_batches_and_columns_of_zeros():
    F = torch.stack([orthonormal_basis(factors(10, 1, 4, seed=seed)[0]) for seed in range(3)])
    X = torch.stack([factors(10, 1, 2, seed=10 + seed)[0] for seed in range(3)])
    padded = torch.cat([F, torch.zeros(3, 10, 2, dtype=F.dtype)], 2)
    each = torch.stack([project_out(x, f) for x, f in zip(X, F, strict=True)])
    torch.testing.assert_close(project_out(X, padded), each, atol=1e-15, rtol=0)


def test_orthonormalised_columns_stay_near_and_span_the_same():
    X = orthonormal_basis(factors(10, 1, 4)[0])
    near = X + 1e-3 * factors(10, 1, 4, seed=1)[0]
    Q = orthonormalised(near)
    assert_orthonormal(Q, 1e-14)
    torch.testing.assert_close(project_out(near, Q), torch.zeros_like(near), atol=1e-14, rtol=0)
    assert (Q - X).abs().max() < 2e-2


@pytest.mark.parametrize("columns", [1, 5, 9])
def test_a_complement_is_all_the_rest(columns):
    F = orthonormal_basis(factors(10, 1, columns)[0])
    assert_orthonormal(torch.cat([F, complement(F)], 1), 1e-12)
    assert complement(F).shape == (10, 10 - columns)


@pytest.mark.parametrize(("n", "m", "rank"), [(60, 40, 5), (40, 60, 5), (6, 9, 4), (9, 6, 8)])
def test_leading_svd_finds_the_leading_triplets_of_a_flat_spectrum(n, m, rank):
    H, generator = factors(n, m, min(n, m))[0] @ factors(n, m, min(n, m))[1], torch.Generator().manual_seed(0)
    U, S, V = leading_svd(H, rank, generator)
    k = min(rank, n, m)
    expected = torch.linalg.svdvals(H)[:k]
    assert (U.shape, S.shape, V.shape) == ((n, k), (k,), (m, k))
    torch.testing.assert_close(S, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(H @ V, U * S, rtol=0, atol=0.05 * float(expected[0]))
    assert_orthonormal(U, 1e-12)
    assert_orthonormal(V, 1e-12)
    assert all(column[column.abs().argmax()] > 0 for column in U.T)
    again = leading_svd(H, rank, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((U, S, V), again, strict=True))


@pytest.mark.parametrize("k", [1, 4])
def test_an_even_spectrum_has_full_rank_by_every_measure(k):
    S = torch.full((k,), 0.3)
    assert spectral_entropy(S) == pytest.approx(torch.tensor(float(k)).log().item(), abs=1e-7)
    assert effective_rank(S) == pytest.approx(k) and stable_rank(S) == pytest.approx(k)
    assert energy_concentration(S, 1) == pytest.approx(1 / k)


def test_measures_of_a_spectrum_by_hand():
    S = torch.tensor([3.0, 1.0, 0.0])
    assert spectral_entropy(S) == pytest.approx(-(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log()))
    assert stable_rank(S) == pytest.approx(10 / 9)
    assert [energy_concentration(S, k) for k in (0, 1, 2, 5)] == pytest.approx([0, 0.9, 1, 1])
    assert energy_concentration(S.flip(0), 1) == pytest.approx(0.9)


@pytest.mark.parametrize("S", [torch.zeros(3), torch.zeros(0)])
def test_measures_of_nothing_are_zero(S):
    assert (spectral_entropy(S), effective_rank(S), stable_rank(S), energy_concentration(S, 1)) == (0, 0, 0, 0)


def test_measures_of_an_update_come_from_its_factors():
    B, A = factors(9, 7, 3, torch.float32)
    dense = torch.linalg.svdvals(B.double() @ A.double())
    S = thin_svd(B, A)[1]
    for measure in (spectral_entropy, effective_rank, stable_rank):
        assert measure(S) == pytest.approx(measure(dense), rel=1e-4)
