"""Which earlier tasks a new one is like: edges of a graph, from importance or from features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from retain.task import Batch, Forward, evaluating, forward, on_device, precise

LEAST = 0.1  # an edge that is lighter is left out


def fisher_overlaps(one: Iterable[tuple[str, Tensor]], others: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """sum_j sqrt(F_j G_j) / sqrt(sum F sum G) in [0, 1] of the importance ``one`` with each of ``others``, by task.

    Bhattacharyya's coefficient: 1 if F and G are proportional, 0 if no weight matters to both. ``one`` is read once, a
    tensor F at a time, with its name; each of ``others`` has a tensor G of that name.
    """
    mine, shared = 0.0, dict.fromkeys(others, 0.0)
    for name, F in one:
        mine += float(F.sum(dtype=torch.float64))
        for task, G in others.items():
            shared[task] += float((F.double() * G[name].double()).sqrt().sum())
    theirs = {task: sum(float(G.sum(dtype=torch.float64)) for G in found.values()) for task, found in others.items()}
    return {
        task: found / (mine * theirs[task]) ** 0.5 if mine * theirs[task] else 0.0 for task, found in shared.items()
    }


def linear_cka(X: Tensor, Y: Tensor) -> float:
    """Linear centred kernel alignment in [0, 1] of the features ``X`` (n, d) and ``Y`` (n, e) of the same n rows.

    ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred columns (Kornblith et al. 2019, arXiv 1905.00414), from the (n, n) products
    of rows; 0 where one of them is constant. It is biased upwards where n is not large beside d and e.
    """
    K, L = (rows @ rows.T for rows in (X.double() - X.double().mean(0), Y.double() - Y.double().mean(0)))
    norms = float(K.norm() * L.norm())
    return float((K * L).sum()) / norms if norms else 0.0


@torch.no_grad()
def layer_features(model: nn.Module, layer: nn.Module, batches: Iterable[Batch], run: Forward = forward) -> Tensor:
    """(N, d) the outputs of ``layer`` as ``run`` shows the model ``batches`` in eval mode, means over a row's places.

    Places that an ``attention_mask`` (N, T) leaves out do not count; those of a convolution (N, d, height, width) do.
    """
    device, found = next(model.parameters()).device, []
    caught: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: caught.append(precise(output.detach())))
    try:
        with evaluating(model):
            for batch in batches:
                batch = on_device(batch, device)
                run(model, batch)
                found.append(_by_row(caught[-1], batch))
                caught.clear()
    finally:
        handle.remove()
    return torch.cat(found)


def edges(likeness: Mapping[str, float]) -> dict[str, float]:
    """The weight of the edge to each earlier task: its share of the sum of ``likeness``, where that is 0.1 or more."""
    total = sum(likeness.values())
    return {task: value / total for task, value in likeness.items() if total and value / total >= LEAST}


def _by_row(output: Tensor, batch: Batch) -> Tensor:
    if output.dim() == 4:
        return output.flatten(2).mean(2)
    if output.dim() == 2:
        return output
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    used = torch.ones_like(output[..., 0]) if mask is None else mask.to(output)
    return (output * used.unsqueeze(-1)).sum(1) / used.sum(1, keepdim=True).clamp(min=1)
