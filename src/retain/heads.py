"""Classifier heads of task- and class-incremental streams: a block of rows a task; only the current one trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


class Heads(nn.Module):
    """A linear classifier (C_total, d) whose rows belong to tasks.

    Logits are always those of all classes, (N, C_total). Each task's rows are parameters of their own, so that
    weight decay or momentum cannot move a frozen task's head; saved and loaded, they are one stock ``weight`` and
    ``bias``, unless they are ``apart``, or the frozen copy that peft keeps of a head in the parts of FSDP2: to join
    these takes all processes, and one alone saves.
    """

    apart = False

    def __init__(self, like: nn.Linear, sizes: Sequence[int], generator: torch.Generator, std: float = 0.02) -> None:
        super().__init__()
        kind: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
        rows = [torch.randn(size, like.in_features, generator=generator).mul_(std).to(**kind) for size in sizes]
        self.weights = nn.ParameterList([nn.Parameter(r) for r in rows])
        biased = [] if like.bias is None else sizes
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(size, **kind)) for size in biased])

    def forward(self, features: Tensor) -> Tensor:
        bias = torch.cat(list(self.biases)) if len(self.biases) else None
        return F.linear(features, torch.cat(list(self.weights)), bias)

    def train_only(self, tasks: Sequence[int]) -> None:
        """Freeze the rows of all tasks but ``tasks``."""
        for blocks in (self.weights, self.biases):
            for i, block in enumerate(blocks):
                block.requires_grad_(i in tasks)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """One stock ``weight`` and ``bias`` (if there is one), as ``nn.Linear`` would give."""
        if self.apart or isinstance(self.weights[0], DTensor):
            return super().state_dict(*args, **kwargs)
        destination, prefix = kwargs.get("destination"), kwargs.get("prefix", "")
        destination = {} if destination is None else destination
        for name, blocks in (("weight", self.weights), ("bias", self.biases)):
            if len(blocks):
                joined = torch.cat(list(blocks))
                destination[prefix + name] = joined if kwargs.get("keep_vars") else joined.detach()
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        sizes = [len(w) for w in self.weights]
        for name, blocks in (("weight", "weights"), ("bias", "biases")):
            if prefix + name in state_dict:
                for i, block in enumerate(state_dict.pop(prefix + name).split(sizes)):
                    state_dict[f"{prefix}{blocks}.{i}"] = block
        super()._load_from_state_dict(state_dict, prefix, *args)


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Within the block the rows of each task are saved by their own names, by which an optimizer's state knows them."""
    found = [module for module in model.modules() if isinstance(module, Heads)]
    for module in found:
        module.apart = True
    try:
        yield
    finally:
        for module in found:
            module.apart = False


def install_heads(model: Any, sizes: Sequence[int], seed: int) -> str:
    """Replace the final classifier of a Hugging Face classification model by ``Heads``; returns the module's name.

    ``model`` must have been loaded with ``num_labels = sum(sizes)``.

    Raises:
        ValueError: no final linear classifier.
    """
    name = final_classifier(model, sum(sizes))
    generator = torch.Generator().manual_seed(seed)
    std = getattr(model.config, "initializer_range", 0.02)
    model.set_submodule(name, Heads(model.get_submodule(name), sizes, generator, std))
    return name


def final_classifier(model: Any, outputs: int) -> str:
    """The name of the last linear layer with so many ``outputs`` behind the backbone of a Hugging Face model.

    Raises:
        ValueError: there is none.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and not name.startswith(f"{model.base_model_prefix}.")
    ]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear classifier with {outputs} outputs after its backbone")
    return names[-1]


def heads_of(model: nn.Module) -> Heads | None:
    """The trainable heads of an adapted model (peft keeps a frozen copy beside them)."""
    found = [m for n, m in model.named_modules() if isinstance(m, Heads) and "original_module" not in n]
    return found[-1] if found else None
