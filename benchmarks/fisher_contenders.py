"""Ways to the diagonal Fisher of a workload's weights: ours, what anyone would write first, and the floor.

A contender is given a workload, does what has to be done once, and returns what is timed: a function without arguments
that gives F (out, in) by module name, a mean over examples. All are given the same labels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks.fisher_workloads import Squares, Workload, nll
from retain.fisher import weight_fisher
from retain.task import Task

Run = Callable[[], Squares]
Contender = Callable[[Workload], Run]
CHUNK = 8  # examples that vmap takes at a time: all of them at once would hold a gradient of each
REFERENCE_BATCH = 128


def ours(workload: Workload, batch_size: int | None = None, **options: Any) -> Run:
    """``weight_fisher``, as a user calls it."""
    task = Task("rows", [(workload.inputs, workload.labels)])
    options = {"labels": "data", "batch_size": batch_size or len(workload.inputs)} | options
    return lambda: weight_fisher(workload.model, workload.modules, task, **options)


def plain(workload: Workload) -> Run:
    """One forward and one backward through everything above the first targets, without a gradient of any weight.

    What no contender can do without. It gives no F; biases of the first targets keep the graph alive.
    """
    model, biases = workload.copied("bias")
    first = []

    def look(bias: Tensor, _: Any, args: tuple[Tensor], __: Tensor) -> None:
        if not args[0].requires_grad:
            first.append(bias)

    handles = [model.get_submodule(n).register_forward_hook(partial(look, bias)) for n, bias in biases.items()]
    model(workload.inputs[:1])
    for handle in handles:
        handle.remove()
    for bias in biases.values():
        bias.requires_grad_(any(bias is other for other in first))

    def run() -> Squares:
        torch.autograd.grad(nll(model(workload.inputs), workload.labels).sum(), first)
        return {}

    return run


def loop(workload: Workload) -> Run:
    """One example at a time, gradients of the targets' weights alone."""
    model, weights = workload.copied()

    def run() -> Squares:
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for x, y in zip(workload.inputs, workload.labels, strict=True):
            scores = torch.autograd.grad(nll(model(x[None]), y[None]).sum(), list(weights.values()))
            for square, score in zip(total.values(), scores, strict=True):
                square.addcmul_(score, score)
        return _mean(total, workload)

    return run


def reference(workload: Workload) -> Run:
    """As EWC-LoRA's code has it: batch-mean gradients of dW = B A, which is built and applied as a matrix, squared.

    Biased: about 1/n_b of F for batches of n_b near an optimum.
    """
    model, weights = workload.copied()
    model.requires_grad_(False)
    factors = {
        name: (torch.zeros(len(w), 8, requires_grad=True), torch.randn(8, w.shape[1], requires_grad=True))
        for name, w in weights.items()
    }
    deltas: Squares = {}

    def add(name: str, _: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        deltas[name] = torch.mm(*factors[name])
        return output + F.linear(args[0], deltas[name])

    for name in weights:
        model.get_submodule(name).register_forward_hook(partial(add, name))

    def run() -> Squares:
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        batches = zip(workload.inputs.split(REFERENCE_BATCH), workload.labels.split(REFERENCE_BATCH), strict=True)
        for x, y in batches:
            loss = nll(model(x), y).mean()
            for name, gradient in zip(deltas, torch.autograd.grad(loss, list(deltas.values())), strict=True):
                total[name] += gradient**2 * len(x)
        return _mean(total, workload)

    return run


def vmapped(workload: Workload) -> Run:
    """torch.func: vmap of grad, in chunks."""
    model, weights = workload.copied()
    named = {f"{name}.weight": w.detach() for name, w in weights.items()}

    def loss(parameters: Squares, x: Tensor, y: Tensor) -> Tensor:
        return nll(functional_call(model, parameters, (x[None],)), y[None]).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> Squares:
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for x, y in zip(workload.inputs.split(CHUNK), workload.labels.split(CHUNK), strict=True):
            for name, scores in each(named, x, y).items():
                total[name.removesuffix(".weight")] += scores.square().sum(0)
        return _mean(total, workload)

    return run


def _mean(total: Squares, workload: Workload) -> Squares:
    return {name: square / len(workload.inputs) for name, square in total.items()}


OURS, PLAIN = "ours", "plain forward and backward"
CONTENDERS: dict[str, Contender] = {
    OURS: ours,
    "ours, micro-batches of 4": partial(ours, batch_size=4),
    "ours, bfloat16 autocast": partial(ours, dtype="bfloat16"),
    PLAIN: plain,
    "loop over examples": loop,
    "reference (squared batch mean)": reference,
    "torch.func vmap": vmapped,
}
