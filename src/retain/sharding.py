"""Models whose base is in parts (FSDP2, ``torch.distributed.fsdp.fully_shard``): the adapter is whole in every process.

Methods read and write whole factors: they project, retract, fold and measure them. An adapter is about a hundredth of
its model, so that nothing is gained by cutting it up: FSDP2 is told to leave it alone, and its gradients are averaged
here. An extra term, whose gradient is the same in every process, then counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Shard

from retain import ranks
from retain.lora import adapter_parameters, is_adapted

Item = TypeVar("Item")

VERSION = "set fsdp_config's version (fsdp_version of accelerate) to 2"
INSTEAD = "use DistributedDataParallel, or FSDP2 with fully_shard(..., ignored_params=retain.whole(model))"


def whole(model: nn.Module) -> set[nn.Parameter]:
    """What of ``model`` every process must hold whole: ``fully_shard(module, ignored_params=whole(model))``.

    The LoRA factors and ``modules_to_save`` of a model from ``peft.get_peft_model``.
    """
    if not is_adapted(model):
        raise ValueError(f"whole(model) needs a model with a LoRA adapter, got a {type(model).__name__}")
    return set(adapter_parameters(model).values())


def keep_whole(accelerator: Any, model: Any) -> None:
    """Have ``accelerator`` leave the adapter of ``model`` whole if it is to shard it, which it has not done yet.

    Raises:
        ValueError: FSDP1, or an adapter that the first process alone has read.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or not is_adapted(model):
        return
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP1 flattens parameters, so that an adapter has none; {VERSION}")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "cpu_ram_efficient_loading leaves all processes but the first without an adapter to measure and project; "
            "set fsdp_config's cpu_ram_efficient_loading to false"
        )
    adapter = re.escape(model.active_adapters[0])
    plugin.ignored_modules = rf".*\.(lora_[AB]|modules_to_save)\.{adapter}(\..*)?"


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward of ``model`` needs all processes at once."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """Let go of parameters that a forward of ``model`` has left whole, those of its root.

    Saving does so, too: where one process is to save, all do it before, or their next forwards would not be alike.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_sharding(model: nn.Module, trains: Iterable[nn.Parameter], method: str) -> None:
    """Refuse a model in parts of which ``method`` could not read and write what it has to.

    Raises:
        ValueError: FSDP1, tensor parallelism, or a parameter that ``trains`` and is in parts; with what to do instead.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(f"{method} needs parameters by their names, and FSDP1 flattens them; {INSTEAD}")
    reshard(model)
    every = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
    apart = [p for p in every.values() if not is_sharded(model) or sum(map(_cuts, p.placements)) > 1]
    if apart:
        raise ValueError(
            f"{method} reads and writes whole parameters, and those of tensor parallelism are in parts in a way that "
            f"is not known here: what it protects would not be protected; {INSTEAD}"
        )
    wanted = {id(p) for p in trains}
    owned = {id(p) for p in adapter_parameters(model).values()} if is_adapted(model) else wanted
    cut = [name for name, p in every.items() if p.requires_grad or id(p) in wanted | owned]
    if cut:
        raise ValueError(
            f"{method} reads and writes whole parameters, and {cut[0]} is in parts: what it protects would not be "
            f"protected; {INSTEAD}"
        )


def in_step(model: nn.Module, mine: Iterable[Item], spare: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """The items of ``mine``, and whether they count; a ``model`` in parts runs as often in every process.

    A process that has no more while others have gets the first of ``spare``, which does not count.
    """
    if not is_sharded(model):
        yield from ((item, True) for item in mine)
        return
    device, items = next(model.parameters()).device, iter(mine)
    filling: Item | None = None
    while True:
        item = next(items, None)
        if not ranks.largest(int(item is not None), device):
            return
        if item is None:
            filling = next(iter(spare)) if filling is None else filling
            yield filling, False
        else:
            yield item, True


def average(parameters: Iterable[nn.Parameter]) -> list[Any]:
    """Give ``parameters`` the mean of their gradients over processes at the end of every backward; handles, to remove.

    A gradient that is the same everywhere stays what it is, so that accumulation and an extra term need nothing else.
    """
    mean = _Mean([p for p in parameters if p.requires_grad])
    return [p.register_post_accumulate_grad_hook(mean.expect) for p in mean.parameters]


class _Mean:
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.backward = parameters, -1

    def expect(self, _: Tensor) -> None:
        """Take the mean when the backward that is running ends; then all gradients that it has are there."""
        running = torch._C._current_graph_task_id()
        if running != self.backward:
            self.backward = running
            Variable._execution_engine.queue_callback(self.take)

    @torch.no_grad()
    def take(self) -> None:
        """One message for all: a parameter that had no part in one process may have had one in another."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        met = torch.tensor([float(p.grad is not None) for p in self.parameters])
        wide = torch.float64 if any(g.dtype == torch.float64 for g in found) else torch.float32
        device = found[0].device
        message = torch.cat([met.to(device, wide), *(g.flatten().to(device, wide) for g in found)])
        means = ranks.add_up(message) / ranks.count()
        split = means[len(met) :].split([g.numel() for g in found])
        for parameter, mean, seen in zip(self.parameters, split, means[: len(met)].tolist(), strict=True):
            if seen:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(mean.view_as(parameter))


def _cuts(placement: Any) -> bool:
    return isinstance(placement, Shard)
