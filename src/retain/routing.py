"""Which task a row belongs to, where nobody says: the one with the class mean nearest to it, in pretrained features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from retain.lora import Site
from retain.task import Task, evaluating, precise


@contextmanager
def pretrained(sites: Mapping[str, Site]) -> Iterator[None]:
    """The block sees the weights below the adapter."""
    kept = {name: (site.B.detach().clone(), site.A.detach().clone(), *site.past) for name, site in sites.items()}
    try:
        for site in sites.values():
            site.set_factors(torch.zeros_like(site.B), site.A.detach().clone())
            site.set_past(site.B[:, :0], site.A[:0])
        yield
    finally:
        for name, (B, A, *past) in kept.items():
            sites[name].set_factors(B, A)
            sites[name].set_past(*past)


@torch.no_grad()
def features(model: Any, sites: Mapping[str, Site], inputs: Mapping[str, Tensor]) -> Tensor:
    """The last hidden states of the pretrained backbone (N, d), means over the tokens or places of a row.

    Whatever was trained since has no part in them, so that what was measured after one task holds after the next.

    Args:
        model: an adapted Hugging Face model.
        sites: its adapter.
        inputs: of the model, without labels; padding is left out where there is an ``attention_mask``.
    """
    with evaluating(model), pretrained(sites):
        hidden = precise(model.get_base_model().base_model(**inputs).last_hidden_state)
    if hidden.dim() == 4 and "past_values" in inputs:  # patches of channels
        hidden = hidden.flatten(1, 2)
    if hidden.dim() == 4:  # maps of a convolution
        return hidden.flatten(2).mean(2)
    mask = inputs.get("attention_mask")
    used = torch.ones_like(hidden[..., 0]) if mask is None else mask.to(hidden)
    return (hidden * used.unsqueeze(-1)).sum(1) / used.sum(1, keepdim=True).clamp(min=1)


def class_means(model: Any, sites: Mapping[str, Site], task: Task, batch_size: int = 64) -> Tensor:
    """The mean features (classes, d) of the training rows of each label of ``task``; of numbers (1, d), of all rows."""
    device = next(model.parameters()).device
    found, labels = [], []
    for _, batch in task.take(task.order(), batch_size):
        if not isinstance(batch, Mapping):
            raise ValueError("class means need batches with names, labels among them, as Hugging Face models take them")
        inputs = {name: x.to(device) for name, x in batch.items()}
        targets = inputs.pop("labels")
        labels.append(targets.new_zeros(len(targets)) if targets.is_floating_point() else targets)
        found.append(features(model, sites, inputs))
    rows, names = torch.cat(found), torch.cat(labels)
    return torch.stack([rows[names == name].mean(0) for name in names.unique()])


def nearest(rows: Tensor, means: Mapping[str, Tensor]) -> list[str]:
    """For each of ``rows`` (N, d) the task with the nearest (Euclid) of its class ``means`` (classes, d).

    Raises:
        ValueError: no means.
    """
    if not means:
        raise ValueError("no task has class means: adapters that came without data cannot be told apart by their rows")
    distances = torch.stack([torch.cdist(rows, mean.to(rows)).amin(1) for mean in means.values()])
    names = list(means)
    return [names[i] for i in distances.argmin(0).tolist()]
