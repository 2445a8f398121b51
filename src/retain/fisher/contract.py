"""Sums over examples of what per-example gradients are made of; no example's gradient is kept.

An example meets a linear map at T places with inputs x_n (T, in) and output gradients d_n (T, out), so the gradient of
its weight is G_n = d_n' x_n (out, in). Everything here takes x (N, T, in) and d (N, T, out) of one type, and sums over
the N examples. Sums are float32, or float64 for float64 inputs; whatever accumulates does so in place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retain.task import precise

# Entries of a gradient that are computed at a time. On a CPU at most 1 MiB, which stays in cache beside the sum that it
# is added to; elsewhere what keeps a device busy.
CPU_TILE, TILE = 1 << 18, 1 << 26
PAIRS = 4  # with so few places, squares of a sum over them are cheaper as products of pairs
SMALL = 8  # so many gradients in one tile: one batched product costs less than that many calls
HALF = 64  # from so many places on, products of bfloat16 inputs gain more than rounding and widening them costs


def add_squares(total: Tensor, x: Tensor, d: Tensor, unit: float = 1.0) -> None:
    """``total`` (out, in) += ``unit`` sum_n G_n o G_n, element by element."""
    if x.shape[1] <= PAIRS:
        _add_squares_of_few(total, precise(x), precise(d), unit)
        return
    if (group := _tile(x) // total.numel()) >= SMALL:
        for x_n, d_n in zip(x.split(group), d.split(group), strict=True):
            total.add_((precise(d_n).mT @ precise(x_n)).square_().sum(0), alpha=unit)
        return
    for rows, G in _blocks(x, d):
        total[rows].addcmul_(G, G, value=unit)


def add_left(total: Tensor, x: Tensor, d: Tensor) -> None:
    """``total`` (out, out) += sum_n G_n G_n'."""
    x, d = precise(x), precise(d)
    (T, n_in), out = x.shape[1:], d.shape[2]
    if T * T * (n_in + out) + T * out * out > T * n_in * out + n_in * out * out:
        for x_n, d_n in zip(x, d, strict=True):
            G = d_n.T @ x_n
            total.addmm_(G, G.T)
        return
    for x_n, d_n in _groups(x, d):
        total.addmm_(d_n.flatten(0, 1).T, (x_n @ x_n.mT @ d_n).flatten(0, 1))


def add_right(total: Tensor, x: Tensor, d: Tensor) -> None:
    """``total`` (in, in) += sum_n G_n' G_n."""
    add_left(total, d, x)


def add_left_product(total: Tensor, x: Tensor, d: Tensor, probe: Tensor) -> None:
    """``total`` (out, k) += sum_n G_n (G_n' ``probe``), for ``probe`` (out, k): O(T k (out + in)) an example."""
    x, d = precise(x), precise(d)
    fewer_places = x.shape[1] <= 2 * probe.shape[1]
    for x_n, d_n in _groups(x, d):
        there = d_n @ probe
        back = x_n @ x_n.mT @ there if fewer_places else x_n @ (x_n.mT @ there)
        total.addmm_(d_n.flatten(0, 1).T, back.flatten(0, 1))


def add_right_product(total: Tensor, x: Tensor, d: Tensor, probe: Tensor) -> None:
    """``total`` (in, k) += sum_n G_n' (G_n ``probe``), for ``probe`` (in, k): O(T k (out + in)) an example."""
    add_left_product(total, d, x, probe)


def row_energies(x: Tensor, d: Tensor) -> Tensor:
    """(out,) sum over n of the squared norm of each row of G_n: the diagonal of what ``add_left`` adds."""
    total = precise(d).new_zeros(d.shape[2])
    if _has_few_places(x, d):
        for x_n, d_n in _groups(precise(x), precise(d)):
            total += (x_n @ x_n.mT @ d_n).mul_(d_n).sum((0, 1))
    else:
        for rows, G in _blocks(x, d):
            total[rows] += G.square_().sum(1)
    return total


def column_energies(x: Tensor, d: Tensor) -> Tensor:
    """(in,) sum over n of the squared norm of each column of G_n: the diagonal of what ``add_right`` adds."""
    return row_energies(d, x)


def along(x: Tensor, d: Tensor, B: Tensor, A: Tensor) -> Tensor:
    """(N,) <G_n, B A> of each example, its slope along the update B A, for ``B`` (out, r), ``A`` (r, in)."""
    x, d = precise(x), precise(d)
    return ((d @ B.to(d)) * (x @ A.to(x).T)).sum((1, 2))


def energies(x: Tensor, d: Tensor) -> Tensor:
    """(N,) ||G_n||_F^2 of each example."""
    x, d = precise(x), precise(d)
    if _has_few_places(x, d):
        return torch.cat([((x_n @ x_n.mT) * (d_n @ d_n.mT)).sum((1, 2)) for x_n, d_n in _groups(x, d)])
    total = d.new_empty(len(d))
    for n, (x_n, d_n) in enumerate(zip(x, d, strict=True)):
        total[n] = (d_n.T @ x_n).square_().sum()
    return total


def _add_squares_of_few(total: Tensor, x: Tensor, d: Tensor, unit: float) -> None:
    """One matrix product for all examples: (sum_t a_t)^2 = sum_st a_s a_t, a_t being the gradient from place t."""
    T = x.shape[1]
    if T == 1:
        total.addmm_(d[:, 0].square().T, x[:, 0].square(), alpha=unit)
        return
    s, t = torch.triu_indices(T, T, device=x.device)
    d_pairs = d[:, s] * d[:, t] * torch.where(s == t, 1, 2)[:, None]
    total.addmm_(d_pairs.flatten(0, 1).T, (x[:, s] * x[:, t]).flatten(0, 1), alpha=unit)
    total.clamp_(min=0)  # where places cancel, rounding may leave less than nothing


def _blocks(x: Tensor, d: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Every block of rows (r, in) of every G_n, block by block and in it n by n, in a buffer that the next overwrites.

    So the rows of a sum that the blocks are added to stay in cache until they are done.
    """
    if x.shape[1] < HALF:
        x, d = precise(x), precise(d)
    out, n_in = d.shape[2], x.shape[2]
    most = max(1, _tile(x) // n_in)
    step = -(-out // -(-out // most))  # blocks of one size: a small last one would cost as many calls
    product = x.new_empty(step, n_in)
    wide = precise(product)
    inputs = x.unbind()
    for start in range(0, out, step):
        rows = slice(start, start + step)
        for x_n, d_n in zip(inputs, d[..., rows].mT.unbind(), strict=True):
            block = torch.mm(d_n, x_n, out=product[: len(d_n)])
            yield rows, block if wide is product else wide[: len(d_n)].copy_(block)


def _groups(x: Tensor, d: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups of examples that are small enough to multiply in one batched product, with its (T, T) or (T, in)."""
    places = x.shape[1] * max(x.shape[1:] + d.shape[2:])
    size = max(1, 8 * _tile(x) // max(1, places))
    return zip(x.split(size), d.split(size), strict=True)


def _has_few_places(x: Tensor, d: Tensor) -> bool:
    """Whether products of places (T, T) cost less than gradients (out, in)."""
    return x.shape[1] * (x.shape[2] + d.shape[2]) <= x.shape[2] * d.shape[2]


def _tile(x: Tensor) -> int:
    return CPU_TILE if x.device.type == "cpu" else TILE
