"""Non-negative factors of a matrix at least Kullback-Leibler divergence (Lee and Seung 2001), tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retain.fisher.penalty import Rows, blocks

SWEEPS = 40
SPEED = 1.8  # exponent of an update; fixed points stay attracting below 2 (Badeau et al. 2010)
SLOW = 2  # sweeps without it, far from any fixed point
MIX = 0.2  # share of the mean profile in a profile to start from, so that none starts at zero


class Product:
    """The matrix sum_m g_m h_m' (out, in) of ``rows`` (m, out) and ``columns`` (m, in); blocks of rows on demand."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    def __getitem__(self, rows: slice) -> Tensor:
        return self.rows[:, rows].T @ self.columns


@torch.no_grad()
def factorise(matrix: Rows, shape: tuple[int, int], components: int, like: Tensor) -> Product:
    """The product of ``components`` non-negative factors near ``matrix`` (out, in), none of which exceeds a few tiles.

    Row and column sums are those of ``matrix`` (the columns' always, the rows' for one component, which is then the
    exact optimum). More components start from the profiles of rows that are far from each other and take a fixed
    number of multiplicative updates.

    Args:
        matrix: (out, in), non-negative.
        shape: (out, in).
        components: m.
        like: a tensor of the device and precision to compute and return in.
    """
    mass, profile = _sums(matrix, shape, like)
    total = profile.sum()
    tiny = torch.finfo(like.dtype).tiny
    profile = profile / total.clamp(min=tiny)
    if components == 1 or not total:
        return Product(*(F.pad(x[None], (0, 0, 0, components - 1)) for x in (mass, profile)))
    H = _far(matrix, shape, mass, profile, components)
    W = (mass / components)[:, None].expand(-1, components).contiguous()
    for sweep in range(SWEEPS):
        speed = SPEED if sweep >= SLOW else 1.0
        reached = torch.zeros_like(H)
        for rows in blocks(shape, like.device):
            block, w = matrix[rows], W[rows]
            w = w * ((block / (w @ H).clamp_(min=tiny)) @ H.T).pow_(speed)
            W[rows] = w
            reached += w.T @ (block / (w @ H).clamp_(min=tiny))
        H *= (reached / W.sum(0).clamp(min=tiny)[:, None]).pow_(1.0 if sweep == SWEEPS - 1 else speed)
        size = H.sum(1)
        H /= size.clamp(min=tiny)[:, None]
        W *= size
    return Product(W.T.contiguous(), H)


def _sums(matrix: Rows, shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums (out,) and column sums (in,)."""
    mass, profile = like.new_zeros(shape[0]), like.new_zeros(shape[1])
    for rows in blocks(shape, like.device):
        tile = matrix[rows]
        mass[rows] = tile.sum(1)
        profile += tile.sum(0)
    return mass, profile


def _far(matrix: Rows, shape: tuple[int, int], mass: Tensor, mean: Tensor, count: int) -> Tensor:
    """Profiles (count, in), each adding up to one, of rows that are far from the mean and from each other.

    Farthest points in the chi-squared distance, weighted with the rows' ``mass`` (out,).
    """
    tiny = torch.finfo(mass.dtype).tiny
    distance, chosen = torch.full_like(mass, torch.inf), [mean]
    for _ in range(count):
        for rows in blocks(shape, mass.device):
            weight = mass[rows]
            profiles = matrix[rows] / weight.clamp(min=tiny)[:, None]
            new = ((profiles - chosen[-1]).square_() / mean.clamp(min=tiny)).sum(1) * weight
            distance[rows] = torch.minimum(distance[rows], new)
        row = int(distance.argmax())
        chosen.append(matrix[slice(row, row + 1)][0] / mass[row].clamp(min=tiny))
    return torch.stack([(1 - MIX) * profile + MIX * mean for profile in chosen[1:]])
