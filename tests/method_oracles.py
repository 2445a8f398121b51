"""Slow, obvious twins of what methods compute beyond a Fisher and its penalty, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from oracles import Squares, log_likelihoods, outputs_of, single_rows
from retain.lora import sites
from retain.task import Draws, Task


def grouped_penalty(changes: Squares, fisher: Squares, factors: Mapping[str, Tensor], axes: Mapping[str, int]) -> float:
    """1/2 sum_j c_j F_j change_j^2, number by number; each row, along ``axes``, of a tensor has a c of its own."""
    total = 0.0
    for name, change in changes.items():
        for at, moved in enumerate(change.unbind(axes[name])):
            weights = fisher[name].select(axes[name], at).flatten().tolist()
            squares = [d**2 for d in moved.flatten().tolist()]
            total += factors[name][at].item() * sum(f * d for f, d in zip(weights, squares, strict=True))
    return 0.5 * total


def group_strengths(totals: list[float], counts: list[float], ids: list[int], exponent: float) -> list[float]:
    """A factor for each unit: (its group's mean / the mean)^exponent within [1/10, 10], scaled to keep sum c F."""
    raw, units = [], range(len(ids))
    for group in ids:
        mean = sum(totals[u] for u in units if ids[u] == group) / sum(counts[u] for u in units if ids[u] == group)
        raw.append(min(10.0, max(0.1, (mean / (sum(totals) / sum(counts))) ** exponent)))
    return [c * sum(totals) / sum(raw[u] * totals[u] for u in units) for c in raw]


def faded_mean(values: list[Tensor], decay: float) -> Tensor:
    """sum_k decay^age_k value_k / sum_k decay^age_k; the last has age 0."""
    weights = [decay**age for age in reversed(range(len(values)))]
    return sum(w * v.double() for w, v in zip(weights, values, strict=True)) / sum(weights)


def tangent_by_constraints(X: Tensor, Z: Tensor, F: Tensor) -> Tensor:
    """The nearest T to ``Z`` (m, r) with X'T + T'X = 0 and F'T = 0, by the pseudo-inverse of these constraints."""
    X, Z, F = X.double(), Z.double(), F.double()
    units = torch.eye(X.numel(), dtype=torch.float64).reshape(-1, *X.shape)
    rows = [torch.cat([(X.T @ T + T.T @ X).flatten(), (F.T @ T).flatten()]) for T in units]
    constraints = torch.stack(rows, 1)
    return Z - (torch.linalg.pinv(constraints) @ (constraints @ Z.flatten())).reshape(Z.shape)


def riemannian_descent(X: Tensor, gradient: Tensor, F: Tensor, rate: float) -> Tensor:
    """One step of Riemannian gradient descent on {X'X = I, F'X = 0} with the polar retraction, in float64."""
    moved = X.double() - rate * tangent_by_constraints(X, gradient, F)
    U, _, Vh = torch.linalg.svd(moved, full_matrices=False)
    return U @ Vh


def overlap_penalty(earlier: Tensor, A: Tensor, power: int) -> Tensor:
    """sum |<a, b>|^power over all rows a of ``earlier`` (R, in) and b of ``A`` (r, in)."""
    return sum(
        ((a.double() * b.double()).sum().abs() ** power for a in earlier for b in A),
        torch.zeros((), dtype=torch.float64),
    )


def nearest_core(change: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """argmin_C ||change - U C V'||, by least squares on the Kronecker system with all its (out in) equations."""
    system = torch.kron(U.double(), V.double())
    found = torch.linalg.lstsq(system, change.double().flatten()[:, None]).solution
    return found.view(U.shape[1], V.shape[1])


def rows_in_turn(keys: list[float], cells: list[int], count: int) -> list[int]:
    """The rows that are kept when, round after round, every cell gives its row of the lowest key, lowest first."""
    given: list[int] = []
    left = list(range(len(keys)))
    while left:
        front = [min((i for i in left if cells[i] == c), key=keys.__getitem__) for c in {cells[i] for i in left}]
        given += sorted(front, key=keys.__getitem__)
        left = [i for i in left if i not in front]
    return sorted(given[:count])


def replayed(model: nn.Module, kept: Iterable[tuple[Any, Task]], names: Iterable[str]) -> tuple[Tensor, list[Tensor]]:
    """The mean of -log p over the targets of ``kept`` rows under their tasks' losses, and its gradients."""
    model = copy.deepcopy(model).double()
    losses, targets = [], 0
    for row, task in kept:
        outputs, wanted = outputs_of(model, row)
        wanted = wanted[wanted != -100] if wanted.dtype == torch.long else wanted
        targets += 1 if wanted.is_floating_point() else wanted.numel()
        losses.append(-sum(log_p for _, log_p in log_likelihoods(model, row, task, "data", Draws(torch.tensor([0])))))
    loss = torch.stack(losses).sum() / targets
    return loss.detach(), list(torch.autograd.grad(loss, [model.get_parameter(name) for name in names]))


def distilled(
    before: nn.Module, now: nn.Module, rows: Iterable[Any], heads: list[list[int]], temperature: float
) -> Tensor:
    """The mean over targets of KL(p* || p), summed over ``heads`` (outputs of each), p = softmax(z / temperature)."""
    losses = []
    for row in rows:
        (old, targets), (new, _) = outputs_of(before, row), outputs_of(now, row)
        for y, a, b in zip(targets.flatten(), old.flatten(0, -2), new.flatten(0, -2), strict=True):
            if y != -100:
                pairs = [[torch.softmax(z[head] / temperature, -1) for z in (a, b)] for head in heads]
                losses.append(sum((p * (p / q).log()).sum() for p, q in pairs))
    return torch.stack(losses).mean()


def paired_interval_by_loop(
    ours: list, theirs: list, score: Any, replicates: int = 1000, level: float = 0.95, seed: int = 1
) -> tuple[float, float]:
    """Draw seeds, draw rows of every task once for all seeds and both methods, average the differences; sort."""
    rng, means = np.random.default_rng(seed), []
    for _ in range(replicates):
        rows = [rng.integers(task.shape[1], size=task.shape[1]) for task in ours[0]]
        gains = []
        for s in rng.integers(len(ours), size=len(ours)):
            one, other = (
                np.stack([task[:, drawn].mean(1) for task, drawn in zip(runs[s], rows, strict=True)], axis=1)
                for runs in (ours, theirs)
            )
            gains.append(score(one) - score(other))
        means.append(sum(gains) / len(gains))
    means.sort()
    outside = int(replicates * (1 - level) / 2)
    return means[outside], means[-1 - outside]


def inputs_by_loop(model: PeftModel, name: str, task: Task) -> Tensor:
    """All rows (M, in) that the layer of site ``name`` meets on pairs of inputs and targets, one example at a time."""
    model, rows = copy.deepcopy(model).double().eval(), []
    layer = sites(model)[name].layer
    layer.register_forward_hook(lambda module, args, output: rows.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for inputs, _ in single_rows(task):
            model(inputs)
    return torch.cat(rows)


def leading_inputs(X: Tensor, F: Tensor, count: int, power: int = 1) -> Tensor:
    """The ``count`` leading directions (in, count) of rows ``X`` (M, in) less their part in the span of ``F`` (in, p).

    With ``power`` 2 as InfLoRA's code has them: left singular vectors of X'X less its part in F.
    """
    X, F = X.double(), F.double()
    outside = torch.eye(len(F), dtype=torch.float64) - F @ torch.linalg.pinv(F)
    U, _, _ = torch.linalg.svd(outside @ (X.T if power == 1 else X.T @ X))
    return U[:, :count]


def fewest_inputs(X: Tensor, F: Tensor, energy: float) -> Tensor:
    """An orthonormal basis of F and the fewest leading directions with which it holds ``energy`` of ||X||^2."""
    for count in range(X.shape[1] + 1):
        basis = torch.linalg.qr(torch.cat([F.double(), leading_inputs(X, F, count)], 1)).Q
        if (X.double() @ basis).square().sum() >= energy * X.double().square().sum():
            return basis
    raise AssertionError("all directions together hold everything")


def magnitude_gradient(
    base: nn.Module, directions: Mapping[str, list[Tensor]], magnitudes: list[float], batch: Any
) -> Tensor:
    """d loss / d s of ``base`` with weights W + sum_j s_j D_j, D_j the ``directions`` (out, in) of each layer."""
    base, s = copy.deepcopy(base).double(), torch.tensor(magnitudes, dtype=torch.float64, requires_grad=True)
    weights = {}
    for name, changes in directions.items():
        weights[f"{name}.weight"] = base.get_parameter(f"{name}.weight").detach()
        for magnitude, D in zip(s, changes, strict=True):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + magnitude * D.double()
    inputs, targets = batch
    outputs = torch.func.functional_call(base, weights, (inputs.double(),))
    return torch.autograd.grad(nn.functional.cross_entropy(outputs, targets), s)[0]
