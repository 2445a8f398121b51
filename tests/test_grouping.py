"""Units, their clusters, and the strengths of groups, against plain loops and clusters that are known."""

import warnings

import pytest
import torch

from method_oracles import group_strengths
from retain.grouping import Units, group_factors, signatures, spectral_groups


def clouds(sizes=(6, 9, 5), spread=0.05, seed=0):
    """Points around centres that are far from each other, in random order, and the number of each one's centre."""
    draws = torch.Generator().manual_seed(seed)
    centres = 3 * torch.eye(max(3, len(sizes)), dtype=torch.float64)
    ids = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])[torch.randperm(sum(sizes), generator=draws)]
    return centres[ids] + spread * torch.randn(len(ids), centres.shape[1], generator=draws).double(), ids


def same_partition(one, other):
    return bool(((one[:, None] == one) == (other[:, None] == other)).all())


def test_units_are_blocks_of_rows_of_nearly_one_size():
    units = Units({"wide": (7, 0), "columns": (3, 1), "bias": (2, 0)}, most=9)
    assert units.cuts["wide"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert units.cuts["columns"].tolist() == [3, 4, 5] and units.cuts["bias"].tolist() == [6, 7]
    assert units.count == 8
    assert Units({"a": (5, 0), "b": (4, 0)}, most=1).count == 2, "a tensor is one unit at least"


def test_sums_are_those_of_the_blocks():
    units = Units({"rows": (4, 0), "columns": (3, 1), "kernel": (2, 0)}, most=6)
    values = {"rows": torch.randn(4, 5), "columns": torch.randn(6, 3), "kernel": torch.randn(2, 3, 2, 2)}
    rows, columns, kernel = values.values()
    wanted = [rows[:2].sum(), rows[2:].sum(), columns[:, :2].sum(), columns[:, 2:].sum(), kernel[0].sum()]
    wanted = torch.stack([*wanted, kernel[1].sum()]).double()
    torch.testing.assert_close(units.sums(values.items()), wanted, rtol=1e-5, atol=1e-5)
    by_row = units.by_row(wanted)
    assert torch.equal(by_row["rows"], wanted[[0, 0, 1, 1]]) and torch.equal(by_row["columns"], wanted[[2, 2, 3]])


def test_a_signature_has_no_unit_and_no_probe_counts_more_than_another():
    means = torch.rand(7, 4, dtype=torch.float64) + 0.1
    found = signatures(means)
    torch.testing.assert_close(found.mean(0), torch.zeros(4).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.square().mean(0), torch.ones(4).double())
    torch.testing.assert_close(signatures(1e-9 * means * torch.tensor([1.0, 50.0, 1.0, 1.0])), found)


def test_units_without_importance_and_probes_that_tell_nothing_have_signatures_too():
    means = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0], [4.0, 5.0, 3.0]])
    found = signatures(means)
    assert found.isfinite().all() and not found[:, 2].any()


@pytest.mark.parametrize("assign", ["k-means", "mixture"])
@pytest.mark.parametrize("groups", [3, None])
def test_clusters_that_are_far_from_each_other_are_found_and_counted(assign, groups):
    points, ids = clouds()
    found = spectral_groups(points, groups, assign, seed=3)
    assert same_partition(found, ids)
    assert found[0] == 0 and sorted(set(found.tolist())) == [0, 1, 2]
    assert torch.equal(found, spectral_groups(points, groups, assign, seed=3))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_widest_eigengap_counts_the_clusters(count):
    points, ids = clouds((6,) * count)
    assert same_partition(spectral_groups(points, None, "k-means", seed=0), ids)


def test_there_are_no_more_groups_than_different_units():
    points = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spectral_groups(points, 4, "k-means", seed=0).tolist() == [0, 0, 1, 1]
        assert spectral_groups(torch.ones(5, 2), 4, "mixture", seed=0).tolist() == [0] * 5
        assert spectral_groups(torch.ones(5, 2), None, "k-means", seed=0).tolist() == [0] * 5
    assert spectral_groups(clouds()[0], 1, "k-means", seed=0).tolist() == [0] * 20


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
def test_strengths_of_groups_are_those_of_plain_loops_and_keep_the_total(exponent):
    totals, counts = torch.tensor([3.0, 0.5, 40.0, 1e-6, 2.0]), torch.tensor([4.0, 5.0, 1.0, 6.0, 2.0])
    ids = torch.tensor([0, 1, 2, 3, 0])
    found = group_factors(totals, counts, ids, exponent)
    wanted = group_strengths(totals.tolist(), counts.tolist(), ids.tolist(), exponent)
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)
    assert float((found * totals).sum()) == pytest.approx(float(totals.sum()), rel=1e-6)
    assert found[0] == found[4] and float(found.max() / found.min()) <= 100 * (1 + 1e-6)
    assert exponent or found.tolist() == pytest.approx([1] * 5)
    assert not exponent or found[2] > found[0] >= found[1] >= found[3]
