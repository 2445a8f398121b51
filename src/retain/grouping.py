"""Units of a model's weights whose importance moves together: their clusters, and a strength for each cluster.

A unit is a block of rows (or columns) of one tensor, never a single number: clustering n units takes O(n^3).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Assign = Literal["k-means", "mixture"]
MOST_GROUPS = 8  # that an eigengap is looked for
CLIP = 10.0  # by which a group's strength may differ from the common one, either way, before the total is restored
FLOOR = 1e-8  # of the mean importance: below it there is no telling units apart


class Units:
    """The units of tensors by name: contiguous blocks of rows of nearly one size, ``most`` at most in all (one a tensor
    at least), numbered tensor by tensor.

    Args:
        rows: (how many, along which dimension) of each tensor.
        most: of units.
    """

    def __init__(self, rows: Mapping[str, tuple[int, int]], most: int) -> None:
        share = max(1, most // len(rows))
        self.axes = {name: axis for name, (_, axis) in rows.items()}
        self.cuts, self.count = dict[str, Tensor](), 0
        for name, (length, _) in rows.items():
            self.cuts[name] = torch.arange(length) * min(length, share) // length + self.count
            self.count = int(self.cuts[name][-1]) + 1

    def sums(self, tensors: Iterable[tuple[str, Tensor]]) -> Tensor:
        """(U,) sums of the ``tensors`` over each unit, in float64."""
        found = torch.zeros(self.count, dtype=torch.float64)
        for name, tensor in tensors:
            rows = tensor.movedim(self.axes[name], 0).reshape(len(self.cuts[name]), -1)
            found.index_add_(0, self.cuts[name], rows.sum(1, dtype=torch.float64).cpu())
        return found

    def by_row(self, values: Tensor) -> dict[str, Tensor]:
        """For each row of each tensor that of ``values`` (U,) which belongs to its unit, by name."""
        return {name: values[units] for name, units in self.cuts.items()}


def signatures(means: Tensor) -> Tensor:
    """(U, M) what units are compared by, of their mean importance ``means`` (U, M) on M probes: logarithms,
    standardised probe by probe, so that no probe counts more than another."""
    logs = means.double().clamp(min=FLOOR * float(means.double().mean())).log()
    centred = logs - logs.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > 0, centred / spread, 0.0)


def spectral_groups(points: Tensor, groups: int | None, assign: Assign, seed: int) -> Tensor:
    """(U,) the cluster of each of ``points`` (U, M), numbered in the order of their first members.

    Normalised spectral clustering (Ng, Jordan and Weiss 2001): Gaussian affinities whose width is the median distance,
    the eigenvectors of I - D^-1/2 W D^-1/2 with the least eigenvalues, rows of them scaled to length 1, and k-means
    (from k-means++) or a Gaussian mixture on these.

    Args:
        groups: how many; fewer are found where there are not as many different points. None: where the gap between
            eigenvalues k and k + 1 is widest, k from 2 to 8.
        assign: what the rows of the embedding are clustered by.
        seed: of k-means or the mixture; the same seed gives the same clusters.
    """
    points = points.double()
    different = len(points.unique(dim=0))
    if different == 1 or groups == 1:
        return torch.zeros(len(points), dtype=torch.long)
    values, vectors = torch.linalg.eigh(_laplacian(points))
    count = min(_eigengap(values) if groups is None else groups, different)
    embedding = torch.nn.functional.normalize(vectors[:, :count], dim=1)
    return _renumbered(torch.from_numpy(_assigned(embedding, count, assign, seed)).long())


def group_factors(totals: Tensor, counts: Tensor, ids: Tensor, exponent: float) -> Tensor:
    """(U,) by what factor the strength of each unit differs from the common one, in float64.

    (mean importance of its group / mean of all)^exponent, at most 10 times the common strength and at least a tenth of
    it, and then all alike scaled so that sum_u factor_u ``totals``_u = sum_u ``totals``_u.

    Args:
        totals: (U,) importance summed over each unit.
        counts: (U,) how many weights each unit has.
        ids: (U,) the group of each.
    """
    totals, counts = totals.double(), counts.double()
    by_group, size = (torch.zeros(int(ids.max()) + 1).double().index_add_(0, ids, x) for x in (totals, counts))
    relative = (by_group / size) / (totals.sum() / counts.sum())
    factors = (relative**exponent).clamp(1 / CLIP, CLIP)[ids]
    return factors * (totals.sum() / (factors * totals).sum())


def _laplacian(points: Tensor) -> Tensor:
    """I - D^-1/2 W D^-1/2 (U, U). A unit is like itself, so that no degree is zero."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    above = distances[tuple(torch.triu_indices(len(points), len(points), 1))]
    width = above.median() if above.median() > 0 else above.mean()
    affinity = (-0.5 * (distances / width).square()).exp()
    root = affinity.sum(1).rsqrt()
    normal = root[:, None] * affinity * root
    return torch.eye(len(points)).double() - (normal + normal.T) / 2


def _eigengap(values: Tensor) -> int:
    """k in [2, MOST_GROUPS] with the widest gap behind the k-th of the ascending eigenvalues ``values`` (U,)."""
    gaps = values.diff()[1:MOST_GROUPS]
    return 2 + int(gaps.argmax()) if len(gaps) else 2


def _assigned(embedding: Tensor, count: int, assign: Assign, seed: int) -> np.ndarray:
    """The labels (U,) that scikit-learn gives."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    state = seed % 2**32
    if assign == "k-means":
        model = KMeans(count, n_init=10, random_state=state)
    else:
        model = GaussianMixture(count, random_state=state)
    with warnings.catch_warnings():
        # Fewer clusters than were asked for are reported by who asked.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(embedding.numpy())


def _renumbered(labels: Tensor) -> Tensor:
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels.tolist()])
