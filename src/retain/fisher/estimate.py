"""The diagonal Fisher information, exactly: one example's squared score at a time, averaged over examples.

F = (1/N) sum_n E_y[ (d log p(y | x_n) / d w)^2 ], y from the model (Kirkpatrick et al. 2017, arXiv 1612.00796). Not
the squared gradient of a batch mean, which is about 1/batch of it. An example is a row: for sequences its
log-likelihood is summed over tokens.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain.fisher.capture import capture, only_these_require_grad
from retain.task import Labels, Loss, Task, check_pass, draw, evaluating, forward, on_device, precise

Squares = dict[str, Tensor]


def weight_fisher(model: nn.Module, modules: Mapping[str, nn.Module], task: Task, **options: Any) -> Squares:
    """Diagonal Fisher (out, in) of each linear module's weight, mean over examples, fp32 (fp64 for fp64 models).

    For a LoRA layer this is the Fisher of its whole update dW = s B A, since d/dW = d/d(dW). Costs one forward and
    backward without parameter gradients plus 2 T out in flops an example; memory is the result and one (out, in)
    buffer.

    Args:
        model: put into eval mode for the pass, and back.
        modules: what to measure, by name: linear maps from the first argument's last dimension.
        task: its ``train`` rows are read in their own order, and its ``loss`` says what p(y | x) is.
        **options: ``labels`` "sample" (y from the model, one a target: unbiased), "exact" (all classes), "data"
            (the empirical Fisher), "predicted" (arg max); ``samples`` rows, a seeded subset (None: all);
            ``batch_size``, on which nothing depends but speed and memory; ``seed`` of subset and labels.

    Raises:
        RuntimeError: the Fisher is zero everywhere, so a penalty on it would protect nothing.
    """
    totals: Squares = {}

    def receive(name: str, inputs: Tensor, gradients: Tensor) -> None:
        if name not in totals:
            totals[name] = inputs.new_zeros(gradients.shape[-1], inputs.shape[-1])
        _add_squares(totals[name], inputs, gradients)

    count = _measure(model, modules, task, receive, **options)
    return _checked({name: totals[name].div_(count) for name in modules if name in totals}, modules)


def parameter_fisher(model: nn.Module, parameters: Mapping[str, nn.Parameter], task: Task, **options: Any) -> Squares:
    """Diagonal Fisher of any parameters by name, each of its parameter's shape; mean over examples.

    Weights and biases of ``nn.Linear`` are measured by hooks as in ``weight_fisher``; if anything else is among them,
    or a weight that two modules share, all are measured by one backward an example. Options and errors as for
    ``weight_fisher``.
    """
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in parameters}
    homes = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    alone = all(homes[id(p)] == 1 for p in parameters.values())
    if not alone or not all(type(owner) is nn.Linear for owner in owners.values()):
        return _checked(_one_by_one(model, parameters, task, **options), parameters)
    totals: Squares = {}

    def receive(module: str, inputs: Tensor, gradients: Tensor) -> None:
        weight, bias = f"{module}.weight".lstrip("."), f"{module}.bias".lstrip(".")
        if weight in parameters:
            totals.setdefault(weight, inputs.new_zeros(parameters[weight].shape))
            _add_squares(totals[weight], inputs, gradients)
        if bias in parameters:
            totals[bias] = totals.get(bias, 0) + gradients.sum(1).square().sum(0)

    modules = {name.rpartition(".")[0]: owner for name, owner in owners.items()}
    count = _measure(model, modules, task, receive, **options)
    return _checked({name: totals[name].div_(count) for name in parameters if name in totals}, parameters)


def _add_squares(total: Tensor, inputs: Tensor, gradients: Tensor) -> None:
    """total (out, in) += sum_n (gradients[n].T @ inputs[n])^2, for inputs (N, T, in), gradients (N, T, out)."""
    if inputs.shape[1] == 1:
        total.addmm_(gradients[:, 0].square().T, inputs[:, 0].square())
        return
    one = torch.empty_like(total)
    for x, g in zip(inputs, gradients, strict=True):
        torch.mm(g.T, x, out=one)
        total.addcmul_(one, one)


def _measure(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    task: Task,
    receive: Callable[[str, Tensor, Tensor], None],
    **options: Any,
) -> int:
    """Run the backward passes, handing inputs and output gradients to ``receive``; returns the number of examples."""
    count = 0
    with evaluating(model), torch.enable_grad(), capture(model, modules, receive) as tape:
        for batch, numbers, seed, labels in _batches(model, task, **options):
            tape.start(len(numbers))
            outputs, targets = forward(model, batch)
            for loss, last in _losses(task.loss, labels, outputs, targets, draw(targets, outputs, numbers, seed)):
                loss.backward(retain_graph=not last)
                tape.finish()
            count += len(numbers)
    return count


def _losses(
    loss: Loss, labels: Labels, outputs: Tensor, targets: Tensor, uniform: Tensor
) -> Iterator[tuple[Tensor, bool]]:
    """Losses whose squared gradients per example add up to the Fisher information, and whether it is the last one."""
    if not outputs.requires_grad:
        raise RuntimeError("the model's outputs do not depend on anything whose importance was asked for")
    pairs = list(loss.targets(labels, outputs, targets, uniform))
    for i, (weights, labelled) in enumerate(pairs):
        yield (loss.nll(outputs, labelled) * weights.sqrt()).sum(), i + 1 == len(pairs)


def _one_by_one(model: nn.Module, parameters: Mapping[str, nn.Parameter], task: Task, **options: Any) -> Squares:
    """For parameters of any kind: a backward of its own for every example and label."""
    totals, count = {name: torch.zeros_like(precise(p)) for name, p in parameters.items()}, 0
    with evaluating(model), torch.enable_grad(), only_these_require_grad(model, parameters.values()):
        for batch, numbers, seed, labels in _batches(model, task, **options | {"batch_size": 1}):
            outputs, targets = forward(model, batch)
            losses = _losses(task.loss, labels, outputs, targets, draw(targets, outputs, numbers, seed))
            for loss, last in losses:
                scores = torch.autograd.grad(loss, [*parameters.values()], retain_graph=not last, allow_unused=True)
                for total, score in zip(totals.values(), scores, strict=True):
                    if score is not None:
                        total += precise(score).square()
            count += 1
    return {name: total / count for name, total in totals.items()}


def _batches(
    model: nn.Module,
    task: Task,
    *,
    labels: Labels = "sample",
    samples: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[tuple[Any, Tensor, int, Labels]]:
    check_pass(labels, samples, batch_size)
    device = next(model.parameters()).device
    for numbers, batch in task.batches(batch_size, samples, seed):
        yield on_device(batch, device), numbers, seed, labels


def _checked(fisher: Squares, wanted: Mapping[str, Any]) -> Squares:
    silent = [name for name in wanted if name not in fisher or not fisher[name].any()]
    if len(silent) == len(wanted):
        raise RuntimeError(
            "the Fisher information is zero everywhere: a penalty on it would protect nothing. Does the model's output "
            "depend on the adapted layers, and is the loss not already exactly zero?"
        )
    if bad := [name for name in fisher if not fisher[name].isfinite().all()]:
        raise RuntimeError(f"the Fisher information of {bad[0]} is not finite: the model or its loss overflowed")
    if silent:
        warnings.warn(f"zero Fisher information: nothing protects {', '.join(silent)}", stacklevel=3)
    return {name: fisher[name] for name in wanted if name in fisher}
