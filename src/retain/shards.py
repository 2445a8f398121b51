"""Parameters of which every process holds a part (FSDP2): read whole, and written part by part."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

try:
    from torch.distributed.fsdp import FSDPModule
except ImportError:  # torch is built without distributed

    class FSDPModule:  # type: ignore[no-redef]
        """Nothing is one."""


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` has been called on ``model`` or a part of it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` with all its parts, on every process, which must all ask for it; itself where it is whole.

    Gradients go back to where the parts are: each process computes the gradient of the whole and keeps its part of it.
    They are not added up over processes, so that what all compute alike counts once.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(tensor: Tensor, value: Tensor) -> None:
    """Copy ``value``, which every process has whole, into ``tensor``, of which each keeps its own part."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def scatter(model: nn.Module) -> None:
    """Let every process keep its parts alone.

    A forward without a backward leaves layers gathered: what is then written to a parameter is lost, and so is a
    change of ``requires_grad``.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
