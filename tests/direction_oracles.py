"""The slow, obvious twins of methods that choose directions: float64, singular vectors of all rows, dense weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from oracles import single_rows
from retain.lora import sites
from retain.task import Task


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
