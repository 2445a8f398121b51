"""Shared bases: closed forms against dense least squares and SVDs, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method_oracles import nearest_core
from retain.bases import Bases, Change, add, compressed, reprojected, union, within

OUT, IN = 14, 11


def change(seed, rank=3, out=OUT, in_=IN, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((out, rank), (rank, in_)))
    return Change(size * B, A)


def empty():
    return Bases.empty(change(0).B, change(0).A)


def dense(one):
    return one.B @ one.A


def restored(bases, name):
    B, A = bases.factors(name)
    return B @ A


CHANGES = {name: change(seed, size=10.0**-seed) for seed, name in enumerate("abc")}


def test_what_is_added_comes_back_and_what_was_there_stays():
    bases = empty()
    for name, one in CHANGES.items():
        bases = add(bases, {name: one})
        for earlier in bases.cores:
            torch.testing.assert_close(restored(bases, earlier), dense(CHANGES[earlier]), rtol=1e-9, atol=1e-12)
    for basis in (bases.U, bases.V):
        torch.testing.assert_close(basis.T @ basis, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)
    assert all(core.residual < 1e-6 for core in bases.cores.values())


def test_changes_that_lie_in_the_bases_widen_nothing():
    bases = add(empty(), CHANGES)
    inside = Change(bases.U[:, :4] * 2.0, bases.V[:, 2:6].T.contiguous())
    wider = add(bases, {"inside": inside})
    assert (wider.U.shape, wider.V.shape) == (bases.U.shape, bases.V.shape)
    torch.testing.assert_close(restored(wider, "inside"), dense(inside))


def test_it_does_not_depend_on_how_a_change_is_split_into_factors():
    turn = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    other = {n: Change(one.B @ turn, torch.linalg.solve(turn, one.A)) for n, one in CHANGES.items()}
    one, two = (compressed(add(empty(), changes), 4) for changes in (CHANGES, other))
    torch.testing.assert_close(one.U @ one.U.T, two.U @ two.U.T, rtol=0, atol=1e-8)
    for name in CHANGES:
        torch.testing.assert_close(restored(one, name), restored(two, name), rtol=0, atol=1e-8)


@pytest.mark.parametrize("weights", ["relative", "absolute"])
def test_a_cut_side_is_that_of_the_svd_of_all_changes_side_by_side(weights):
    tall = {n: change(seed, in_=6, size=3.0**-seed) for seed, n in enumerate("abcd")}  # so that only U is cut
    bases = compressed(add(Bases.empty(tall["a"].B, tall["a"].A), tall), 6, weights=weights)
    stacked = [dense(one) / (dense(one).norm() if weights == "relative" else 1) for one in tall.values()]
    expected = torch.linalg.svd(torch.cat(stacked, 1))[0][:, :6]
    torch.testing.assert_close(bases.U @ bases.U.T, expected @ expected.T, rtol=0, atol=1e-9)
    for name, one in tall.items():
        kept = expected @ expected.T @ dense(one)
        torch.testing.assert_close(restored(bases, name), kept, rtol=0, atol=1e-9)
        lost = float((dense(one) - kept).norm() / dense(one).norm())
        assert bases.cores[name].residual == pytest.approx(lost, rel=1e-6)
        assert bases.cores[name].bound == pytest.approx(lost, rel=1e-6)


def test_after_several_cuts_the_residual_is_near_what_they_have_taken_and_the_bound_above():
    bases = empty()
    for name, one in CHANGES.items():
        bases = compressed(add(bases, {name: one}), 4)
    for name, one in CHANGES.items():
        lost = float((dense(one) - restored(bases, name)).norm() / dense(one).norm())
        assert bases.cores[name].residual == pytest.approx(lost, rel=0.03) and lost > 0.1
        assert lost <= bases.cores[name].bound * (1 + 1e-9)


def test_taking_turns_leaves_less_than_either_side_alone_would():
    bases = add(empty(), CHANGES)
    both = compressed(bases, 4)
    stacked = [dense(one) / dense(one).norm() for one in CHANGES.values()]
    U = torch.linalg.svd(torch.cat(stacked, 1))[0][:, :4]
    V = torch.linalg.svd(torch.cat([one.T for one in stacked], 1))[0][:, :4]
    apart = sum(float((U.T @ one @ V).square().sum()) for one in stacked)
    assert sum(1 - core.residual**2 for core in both.cores.values()) > apart


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_closed_form_is_the_least_squares_solution_for_bases_that_are_not_orthonormal(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (OUT, 4), (IN, 3), (OUT, 5), (IN, 4))
    C, U, V, new_U, new_V = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    torch.testing.assert_close(
        reprojected(C, U, V, new_U, new_V), nearest_core(U @ C @ V.T, new_U, new_V), rtol=1e-7, atol=1e-9
    )


def test_cores_after_a_cut_are_the_least_squares_solution():
    whole = add(empty(), CHANGES)
    bases = compressed(whole, 4)
    for name, core in bases.cores.items():
        expected = nearest_core(restored(whole, name), bases.U, bases.V)
        torch.testing.assert_close(core.left @ core.right, expected, rtol=1e-7, atol=1e-12)
        before, after = whole.cores[name].kept, core.kept
        assert before - after == pytest.approx(float((restored(whole, name) - restored(bases, name)).square().sum()))


def test_a_threshold_leaves_out_directions_that_are_nearly_there():
    bases = add(empty(), {"a": CHANGES["a"]})
    near = CHANGES["a"].B[:, :1] / CHANGES["a"].B[:, :1].norm() + 0.05 * torch.linalg.svd(bases.U)[0][:, -1:]
    one = Change(near, bases.V[:, :1].T)
    assert add(bases, {"b": one}, threshold=0.1).U.shape == bases.U.shape
    assert add(bases, {"b": one}, threshold=0.01).U.shape[1] == bases.U.shape[1] + 1
    lost = add(bases, {"b": one}, threshold=0.1).cores["b"].residual
    assert lost == pytest.approx(0.05 / near.norm().item(), rel=1e-6)


def test_energy_keeps_as_few_columns_as_hold_it():
    bases = compressed(add(empty(), CHANGES), 9, energy=0.8)
    assert max(bases.U.shape[1], bases.V.shape[1]) < 9
    held = sum(1 - core.residual**2 for core in bases.cores.values()) / 3
    assert 0.6 < held < 1


@pytest.mark.parametrize("bound", [0.5, 0.2, 0.01])
def test_a_bound_on_the_residual_is_kept_with_as_few_columns_as_that_takes(bound):
    whole = add(empty(), CHANGES)
    kept = within(whole, 2, 1.0, "relative", bound)
    width = max(kept.U.shape[1], kept.V.shape[1])
    assert max(core.bound for core in kept.cores.values()) <= bound
    assert max(core.bound for core in compressed(whole, width - 1).cores.values()) > bound
    with pytest.raises(ValueError, match="cannot be kept: up to 0.[0-9]+ has been cut already"):
        within(compressed(whole, 2), 2, 1.0, "relative", 0.001)


def test_the_union_of_two_sites_has_the_tasks_of_both():
    one, other = add(empty(), {"a": CHANGES["a"]}), compressed(add(empty(), {"b": CHANGES["b"], "c": CHANGES["c"]}), 4)
    both = union(one, other)
    torch.testing.assert_close(restored(both, "a"), dense(CHANGES["a"]))
    for name in "bc":
        torch.testing.assert_close(restored(both, name), restored(other, name))
        assert both.cores[name].residual == pytest.approx(other.cores[name].residual, rel=1e-6)
    with pytest.raises(ValueError, match="both have a task 'a'"):
        union(one, one)


def test_a_change_that_is_zero_is_kept_as_one():
    bases = add(empty(), {"nothing": Change(torch.zeros(OUT, 3, dtype=torch.float64), CHANGES["a"].A)})
    assert bases.U.shape == (OUT, 0) and bases.cores["nothing"].residual == 0
    assert compressed(bases, 4, energy=0.9) is bases
    bases = compressed(add(bases, CHANGES), 4)
    assert not restored(bases, "nothing").any()
