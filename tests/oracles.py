"""The slow, obvious twins: float64, plain autograd, one example at a time, dense matrices, explicit sums over tasks.

Nothing here calls the code under test but ``Draws``, so that labels and signs are the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retain.lora import sites
from retain.task import CrossEntropy, Draws, SquaredError, Task

Squares = dict[str, Tensor]
Labelled = Iterator[tuple[Any, Tensor]]
Outputs = Callable[[Any, Any], tuple[Tensor, Tensor]]  # of one row; ``outputs_of``, if not said


def fisher_by_loop(
    model: nn.Module,
    names: Iterable[str],
    task: Task,
    labels: str = "mixture",
    seed: int = 0,
    temperature: float = 1.0,
    outputs: Outputs | None = None,
) -> Squares:
    """(1/N) sum_n E_y[(d log p(y | x_n) / d w)^2] of the parameters ``names``, one autograd call per label."""
    model = copy.deepcopy(model).double().eval()
    weights = {name: model.get_parameter(name) for name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is w for w in weights.values()))
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    rows = list(single_rows(task))
    for number, row in enumerate(rows):
        for weight, log_likelihood in log_likelihoods(
            model, row, task, labels, Draws(torch.tensor([number]), seed), temperature, outputs
        ):
            scores = torch.autograd.grad(log_likelihood, list(weights.values()), retain_graph=True, allow_unused=True)
            for name, score in zip(total, scores, strict=True):
                total[name] += 0 if score is None else weight * score**2
    return {name: square / len(rows) for name, square in total.items()}


def lora_fisher_by_loop(
    model: PeftModel, task: Task, labels: str = "mixture", seed: int = 0, outputs: Outputs | None = None
) -> Squares:
    """The Fisher (out, in) of every adapted weight of the merged model, in which no LoRA is left."""
    names = [f"{name}.weight" for name in sites(model)]
    merged = copy.deepcopy(model).double().merge_and_unload()
    fisher = fisher_by_loop(merged, names, task, labels, seed, outputs=outputs)
    turned = {n for n, m in merged.named_modules() if isinstance(m, Conv1D)}
    return {
        name: square.T if name in turned else square.flatten(1)
        for name, square in ((n.removesuffix(".weight"), s) for n, s in fisher.items())
    }


def single_rows(task: Task) -> Iterator[Any]:
    """The rows of a task made of batches, each as a batch of one in float64."""
    for batch in task.train:
        for i in range(len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])):
            if isinstance(batch, Mapping):
                yield {key: _row(v, i) for key, v in batch.items()}
            else:
                yield tuple(_row(v, i) for v in batch)


def log_likelihoods(
    model: nn.Module,
    row: Any,
    task: Task,
    labels: str,
    draws: Draws,
    temperature: float = 1.0,
    outputs: Outputs | None = None,
) -> Labelled:
    """(weight, log p(y | x)) for every labelling y of one row that ``labels`` asks for.

    For "mixture" it is one combination of the log-likelihoods of all labels.
    """
    found, targets = (outputs or outputs_of)(model, row)
    if isinstance(task.loss, SquaredError):
        own = found[0] if task.loss.groups is None else found[0][task.loss.groups == task.loss.group][0]
        yield from _gaussian(own, targets[0], labels, draws)
    else:
        yield from _categorical(found[0], targets[0], labels, draws, task, temperature)


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


def outputs_of(model: nn.Module, row: Any) -> tuple[Tensor, Tensor]:
    """Outputs (1, ...) and targets (1, ...) of one row; those of token sequences shifted against each other."""
    if not isinstance(row, Mapping):
        return model(row[0]), row[1]
    logits = model(**{key: v for key, v in row.items() if key != "labels"}).logits
    targets = row["labels"]
    return (logits, targets) if targets.dim() == 1 else (logits[:, :-1], targets[:, 1:])


def _categorical(
    logits: Tensor, targets: Tensor, labels: str, draws: Draws, task: Task, temperature: float
) -> Labelled:
    logits, targets = (t if targets.dim() else t[None] for t in (logits, targets))
    groups, used = task.loss.groups if isinstance(task.loss, CrossEntropy) else None, targets[None] != -100
    targets = [int(t) for t in targets if t != -100]
    logits = [_local(z, t, groups) for z, t in zip(logits[used[0]], targets, strict=True)]
    # t log softmax(z / t) has the tempered residual for gradient, undivided.
    p, log_p = ([f(z / temperature, -1) for z in logits] for f in (torch.softmax, torch.log_softmax))
    log_p = [temperature * q for q in log_p]
    if labels == "exact":
        yield from ((float(p[0][c].detach()), q) for c, q in enumerate(log_p[0]) if q > -torch.inf)
    elif labels == "mixture":
        yield 1.0, sum(_mixed(q, of, e) for q, of, e in zip(log_p, p, draws.signs(used, len(p[0])), strict=True))
    else:
        chosen = {
            "data": lambda: targets,
            "predicted": lambda: [int(of.argmax()) for of in p],
            "sample": lambda: [_inverse(of, float(u)) for of, u in zip(p, draws.uniform(used), strict=True)],
        }[labels]()
        yield 1.0, sum(q[y] for q, y in zip(log_p, chosen, strict=True))


def _mixed(log_p: Tensor, p: Tensor, signs: Tensor) -> Tensor:
    """sum_c h_c sqrt(p_c) log p_c, h = H ``signs``, H the reflection of sqrt(p) to minus the axis of the top class."""
    possible = p > 0
    p, log_p, signs = p[possible].detach(), log_p[possible], signs[possible].double()
    axis = torch.nn.functional.one_hot(p.argmax(), len(p)).double()
    v = p.sqrt() + axis
    H = torch.eye(len(p), dtype=torch.float64) - 2 * torch.outer(v, v) / v.dot(v)
    torch.testing.assert_close(H @ p.sqrt(), -axis)
    return (H @ signs * p.sqrt() * log_p).sum()


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


def _gaussian(mean: Tensor, target: Tensor, labels: str, draws: Draws) -> Labelled:
    if labels == "exact":
        yield from ((1.0, f) for f in mean.flatten())
    elif labels == "mixture":
        yield 1.0, (draws.signs(torch.tensor([True]), mean.numel()).reshape(mean.shape) * mean).sum()
    else:
        uniform = draws.uniform(torch.ones_like(mean, dtype=torch.bool)[None]).reshape(mean.shape)
        normal = torch.distributions.Normal(0.0, 1.0).icdf(uniform.double())
        wanted = target.double() if labels == "data" else mean.detach() + normal
        yield 1.0, -0.5 * ((mean - wanted) ** 2).sum()


def example_gradients(x: Tensor, d: Tensor) -> Tensor:
    """G_n = sum_t d_nt x_nt' (N, out, in) of every example, for inputs (N, T, in) and output gradients (N, T, out)."""
    gradients = torch.zeros(len(x), d.shape[2], x.shape[2], dtype=torch.float64)
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            gradients[n] += torch.outer(d[n, t].double(), x[n, t].double())
    return gradients


def fisher_matrix(gradients: Tensor) -> Tensor:
    """The Fisher matrix mean_n vec(G_n) vec(G_n)' (out in, out in) of ``gradients`` (N, out, in), vec by rows."""
    flat = gradients.double().flatten(1)
    return sum(torch.outer(g, g) for g in flat) / len(flat)


def form_matrix(state: Mapping[str, Tensor]) -> Tensor:
    """The matrix (out in, out in), in float64, that the ``state_dict`` of a form of importance stands for."""
    state = {name: tensor.double() for name, tensor in state.items()}
    if "left" in state:
        left, right = (_side(state, name) for name in ("left", "right"))
        return torch.kron(left, right) / left.trace() if left.trace() else torch.kron(left, right)
    if "rows" in state:
        entries = sum(torch.outer(g, h) for g, h in zip(state["rows"], state["columns"], strict=True))
    elif "scale" in state:
        entries = (state["scale"][:, None] * state["fisher"]) ** 2
    else:
        entries = state["fisher"]
    return torch.diag(entries.flatten())


def matrix_penalty(B: Tensor, A: Tensor, matrix: Tensor, anchor: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """1/2 vec(D)' ``matrix`` vec(D) with D = B A - B* A* written out, in float64."""
    D = B.double() @ A.double()
    if anchor is not None:
        D = D - anchor[0].double() @ anchor[1].double()
    return 0.5 * D.flatten() @ matrix @ D.flatten()


def _side(state: Mapping[str, Tensor], name: str) -> Tensor:
    if f"{name}.rest" not in state:
        return state[name]
    return state[name] @ state[name].T + torch.diag(state[f"{name}.rest"])
