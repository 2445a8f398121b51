"""The slow, obvious twins: float64, plain autograd, one example at a time, dense matrices, explicit sums over tasks.

Nothing here calls the code under test but ``draw``, so that sampled labels are the same labels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retain.lora import sites
from retain.task import CrossEntropy, SquaredError, Task, draw

Squares = dict[str, Tensor]
Labelled = Iterator[tuple[Any, Tensor]]


def fisher_by_loop(
    model: nn.Module, names: Iterable[str], task: Task, labels: str = "sample", seed: int = 0
) -> Squares:
    """(1/N) sum_n E_y[(d log p(y | x_n) / d w)^2] of the parameters ``names``, one autograd call per label."""
    model = copy.deepcopy(model).double().eval()
    weights = {name: model.get_parameter(name) for name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is w for w in weights.values()))
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    rows = list(single_rows(task))
    for number, row in enumerate(rows):
        for weight, log_likelihood in log_likelihoods(model, row, task, labels, number, seed):
            scores = torch.autograd.grad(log_likelihood, list(weights.values()), retain_graph=True, allow_unused=True)
            for name, score in zip(total, scores, strict=True):
                total[name] += 0 if score is None else weight * score**2
    return {name: square / len(rows) for name, square in total.items()}


def lora_fisher_by_loop(model: PeftModel, task: Task, labels: str = "sample", seed: int = 0) -> Squares:
    """The Fisher (out, in) of every adapted weight of the merged model, in which no LoRA is left."""
    names = [f"{name}.weight" for name in sites(model)]
    merged = copy.deepcopy(model).double().merge_and_unload()
    fisher = fisher_by_loop(merged, names, task, labels, seed)
    turned = {n for n, m in merged.named_modules() if isinstance(m, Conv1D)}
    return {
        name: square.T if name in turned else square
        for name, square in ((n.removesuffix(".weight"), s) for n, s in fisher.items())
    }


def single_rows(task: Task) -> Iterator[Any]:
    """The rows of a task made of batches, each as a batch of one in float64."""
    for batch in task.train:
        for i in range(len(batch["labels"] if isinstance(batch, Mapping) else batch[0])):
            if isinstance(batch, Mapping):
                yield {key: _row(v, i) for key, v in batch.items()}
            else:
                yield tuple(_row(v, i) for v in batch)


def log_likelihoods(model: nn.Module, row: Any, task: Task, labels: str, number: int, seed: int) -> Labelled:
    """(weight, log p(y | x)) for every labelling y of one row that ``labels`` asks for."""
    outputs, targets = _outputs(model, row)
    uniform = draw(targets, outputs, torch.tensor([number]), seed)[0]
    gaussian = isinstance(task.loss, SquaredError)
    yield from (_gaussian if gaussian else _categorical)(outputs[0], targets[0], labels, uniform, task)


def squared_batch_means(model: nn.Module, name: str, task: Task) -> Tensor:
    """What the code of EWC-LoRA calls the Fisher (defect E2): squared batch-mean gradients, times n_b / N."""
    weight, count = model.get_parameter(name), 0
    total = torch.zeros_like(weight)
    for inputs, targets in task.train:
        (gradient,) = torch.autograd.grad(task.loss.nll(model(inputs), targets).mean(), weight)
        total, count = total + len(targets) * gradient**2, count + len(targets)
    return total / count


def dense_penalty(B: Tensor, A: Tensor, fisher: Tensor, scale: float, anchor: tuple[Tensor, Tensor] | None) -> Tensor:
    """1/2 sum F D^2 with the matrix D = s B A - s B* A* written out, in float64."""
    D = scale * (B.double() @ A.double())
    if anchor is not None:
        D = D - scale * (anchor[0].double() @ anchor[1].double())
    return 0.5 * (fisher.double() * D**2).sum()


def explicit_ewc(parameters: Mapping[str, Tensor], tasks: Iterable[tuple[Squares, Squares]], strength: float) -> Tensor:
    """strength/2 sum_i sum_j F_ij (theta_j - theta*_ij)^2 over ``tasks`` = pairs (F_i, theta*_i) by parameter name."""
    terms = [(F[n] * (p - anchor[n]) ** 2).sum() for F, anchor in tasks for n, p in parameters.items()]
    return 0.5 * strength * torch.stack(terms).sum()


def relative_error(ours: Mapping[str, Tensor], oracle: Mapping[str, Tensor]) -> float:
    """The largest error of an entry, in units of the largest entry of its own tensor."""
    assert ours.keys() == oracle.keys() and all(ours[n].shape == oracle[n].shape for n in oracle)
    return max(float((ours[n] - oracle[n]).abs().max() / oracle[n].abs().max()) for n in oracle)


def _row(values: Tensor, i: int) -> Tensor:
    return values[i : i + 1].double() if values.is_floating_point() else values[i : i + 1]


def _outputs(model: nn.Module, row: Any) -> tuple[Tensor, Tensor]:
    """Outputs (1, ...) and targets (1, ...) of one row; those of token sequences shifted against each other."""
    if not isinstance(row, Mapping):
        return model(row[0]), row[1]
    logits = model(**{key: v for key, v in row.items() if key != "labels"}).logits
    targets = row["labels"]
    return (logits, targets) if targets.dim() == 1 else (logits[:, :-1], targets[:, 1:])


def _categorical(logits: Tensor, targets: Tensor, labels: str, uniform: Tensor, task: Task) -> Labelled:
    logits, targets, uniform = (t if targets.dim() else t[None] for t in (logits, targets, uniform))
    groups = task.loss.groups if isinstance(task.loss, CrossEntropy) else None
    kept = [t for t in range(len(targets)) if targets[t] != -100]
    log_p = torch.stack([_local(logits[t], targets[t], groups).log_softmax(-1) for t in kept])
    if labels == "exact":
        (log_p,) = log_p
        yield from ((float(q.detach().exp()), q) for q in log_p if q > -torch.inf)
        return
    chosen = {
        "data": lambda p, t: int(targets[t]),
        "predicted": lambda p, t: int(p.argmax()),
        "sample": lambda p, t: _inverse(p.exp(), float(uniform[t])),
    }[labels]
    yield 1.0, torch.stack([p[chosen(p, t)] for p, t in zip(log_p, kept, strict=True)]).sum()


def _local(logits: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
    """The logits (C,) with the classes of other tasks than the target's out of the race."""
    return logits if groups is None else torch.where(groups == groups[target], logits, -torch.inf)


def _inverse(p: Tensor, u: float) -> int:
    """The class in which ``u`` falls when the probabilities ``p`` (C,) are laid end to end."""
    reached = 0.0
    for c, q in enumerate(p.tolist()):
        reached += q
        if u < reached:
            return c
    return len(p) - 1


def _gaussian(mean: Tensor, target: Tensor, labels: str, uniform: Tensor, task: Task) -> Labelled:
    if labels == "exact":
        yield from ((1.0, f) for f in mean.flatten())
        return
    normal = torch.distributions.Normal(0.0, 1.0).icdf(uniform.double())
    wanted = target.double() if labels == "data" else mean.detach() + normal
    yield 1.0, -0.5 * ((mean - wanted) ** 2).sum()
