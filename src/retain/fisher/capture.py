"""Per-example gradients of linear maps from one ordinary backward: inputs and output gradients, caught by hooks."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

Receive = Callable[[str, Tensor, Tensor], None]


@contextmanager
def capture(
    model: nn.Module, modules: Mapping[str, nn.Module], receive: Receive, dtype: torch.dtype | None = None
) -> Iterator[Capture]:
    """Hand ``receive(name, inputs (N, T, in), gradients (N, T, out))`` each module's part of every backward.

    T counts the places where one example meets the module (its tokens; the positions of a convolution's kernel; its
    calls, if a forward calls it again), so that with a loss *summed* over examples the gradient of example n for the
    weight (out, in) is gradients[n].T @ inputs[n]; a Conv2d's weight counts as (out, C * kh * kw). Two modules that
    share a weight are two maps, each with its own part of that gradient.

    All parameters of ``model`` are frozen within the block: no parameter's gradient is computed, and nothing below the
    first module joins the graph. What is compiled runs as it is written, since code compiled without hooks calls none.
    Layers of transformers whose gradient checkpointing is on are checkpointed here in
    eval mode too, and every call is handed on once.

    Args:
        model: left in the mode that it is in.
        modules: linear maps of their first argument, by name: Linear, Conv1D, Conv2d, or LoRA layers on one of them.
        receive: what it is given is its own; nothing else keeps it.
        dtype: the type of what is handed on; None: that of the tensors, float32 at least.

    Raises:
        ValueError: by its name, a module that is none of these or has two names.
    """
    _check(modules)
    tape = Capture(receive, dtype)
    # Ahead of the user's own hooks: what the module gave, before they change it.
    handles = [
        module.register_forward_hook(tape.hook(name, _base(module)), prepend=True, with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        with only_these_require_grad(model, ()), _checkpointing(model), torch.compiler.set_stance("force_eager"):
            yield tape
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def only_these_require_grad(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block ``parameters`` require gradients, and no other parameter of ``model`` does."""
    before, wanted = {p: p.requires_grad for p in model.parameters()}, set(parameters)
    for p in before:
        p.requires_grad_(p in wanted)
    try:
        yield
    finally:
        for p, required in before.items():
            p.requires_grad_(required)


class Capture:
    """The state of one ``capture`` block: call ``start`` before each forward and ``finish`` after each backward."""

    def __init__(self, receive: Receive, dtype: torch.dtype | None = None) -> None:
        self.receive, self.dtype = receive, dtype
        self.n = 0
        self.calls: Counter[str] = Counter()  # in the forward; a checkpoint's second run of it is none
        self.unseen: set[str] = set()
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def start(self, n: int) -> None:
        """Forget the last forward; the next one is a batch of ``n`` examples."""
        self.n = n
        self.calls.clear()
        self.unseen.clear()
        self.parts.clear()

    def hook(self, name: str, base: nn.Module) -> Callable[..., Tensor | None]:
        """A forward hook of the module ``name``, which is or wraps ``base``."""

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise ValueError(f"{name}: a linear map gives a tensor, this one a {type(output).__name__}")
            if torch._C._current_graph_task_id() == -1:  # no backward is running, which would run the forward again
                self.calls[name] += 1
            if not torch.is_grad_enabled():
                self.unseen.add(name)
                return None
            inputs = args[0] if args else kwargs[next(iter(inspect.signature(module.forward).parameters))]
            anchor = None if output.requires_grad else torch.zeros((), device=output.device, requires_grad=True)
            return _Tap.apply(output, inputs.detach(), anchor, partial(self._keep, name, base))

        return keep

    def finish(self) -> None:
        """Hand on what a backward left waiting: modules some of whose calls had no part in the loss.

        Raises:
            RuntimeError: a module ran without gradients, and the backward did not come by.
        """
        for name in list(self.parts):
            self._hand_on(name)
        if self.unseen:
            raise RuntimeError(
                f"{min(self.unseen)} ran with gradients off, so its part of the backward is unknown. Gradient "
                "checkpointing with use_reentrant=True does that when no input of a block requires gradients: "
                "use_reentrant=False does not"
            )

    def _keep(self, name: str, base: nn.Module, inputs: Tensor, gradients: Tensor) -> None:
        self.unseen.discard(name)
        dtype = self.dtype or torch.promote_types(torch.promote_types(inputs.dtype, gradients.dtype), torch.float32)
        with torch.autocast(inputs.device.type, enabled=False):
            if isinstance(base, nn.Conv2d):
                inputs, gradients = _patches(base, inputs), gradients.flatten(-2).mT
            self.parts[name].append((self._by_example(name, inputs, dtype), self._by_example(name, gradients, dtype)))
            if len(self.parts[name]) == self.calls[name]:
                self._hand_on(name)

    def _hand_on(self, name: str) -> None:
        inputs, gradients = zip(*self.parts.pop(name), strict=True)
        if len(inputs) == 1:
            self.receive(name, inputs[0], gradients[0])
        else:
            self.receive(name, torch.cat(inputs, 1), torch.cat(gradients, 1))

    def _by_example(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if self.n != 1 and len(tensor) != self.n:
            raise ValueError(
                f"{name}: its leading dimension is {len(tensor)} in a batch of {self.n} examples, so examples "
                "cannot be told apart: Task(..., one_by_one=True)"
            )
        return tensor.reshape(self.n, -1, tensor.shape[-1]).to(dtype)


class _Tap(torch.autograd.Function):
    """The identity, whose backward hands on the input of the module together with the gradient of its output.

    A node of the graph, so that a checkpoint drops and brings back the input with all else that it saves, and a
    backward frees it. The result is an alias and no view of the output: what follows may overwrite it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor | None, keep: Callable[..., None]) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.keep = keep
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.keep(*ctx.saved_tensors, gradients[0])
        return gradients[0], None, None, None


@contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    """Layers of transformers for which the user turned checkpointing on have it in eval mode, without reentrance.

    They ask for training mode, which would bring dropout back, and a reentrant checkpoint needs an input that requires
    gradients: here every parameter is frozen.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    before = [(layer.training, layer._gradient_checkpointing_func) for layer in layers]

    def run(layer: nn.Module, training: bool, forward: Callable, *args: Any) -> Any:
        layer.training = training
        try:
            return forward(*args)
        finally:
            layer.training = True

    try:
        for layer, (training, _) in zip(layers, before, strict=True):
            layer.training = True
            layer._gradient_checkpointing_func = partial(_checkpointed, partial(run, layer, training))
        yield
    finally:
        for layer, (training, function) in zip(layers, before, strict=True):
            layer.training, layer._gradient_checkpointing_func = training, function


def _checkpointed(run: Callable, forward: Callable, *args: Any) -> Any:
    # A cache would be filled once more when the layer runs again.
    kept = (None if isinstance(arg, Cache) else arg for arg in args)
    return checkpoint(run, forward, *kept, use_reentrant=False)


def _patches(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """What a convolution multiplies with its weight (out, C kh kw) at each of L positions: (N, L, C kh kw)."""
    around = [p for pair in reversed(_padding(conv)) for p in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(images[None] if images.dim() == 3 else images, around, mode)
    return F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride).mT


def _padding(conv: nn.Conv2d) -> list[tuple[int, int]]:
    """Before and after, for height and width."""
    if conv.padding == "valid":
        return [(0, 0), (0, 0)]
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(int(p), int(p)) for p in conv.padding]


def _base(module: nn.Module) -> nn.Module:
    """The layer that an adapter, or several, are wrapped around."""
    children = dict(module.named_children())
    return _base(children["base_layer"]) if "base_layer" in children else module


def _check(modules: Mapping[str, nn.Module]) -> None:
    names: dict[nn.Module, str] = {}
    for name, module in modules.items():
        base = _base(module)
        if module in names:
            raise ValueError(f"{names[module]} and {name} are one module: give it one name")
        names[module] = name
        if isinstance(base, nn.Conv2d) and base.groups != 1:
            raise ValueError(f"{name}: a convolution in {base.groups} groups is not supported; known: groups=1")
        if type(base).__module__.startswith("torch.nn.modules") and not isinstance(base, nn.Linear | nn.Conv2d):
            raise ValueError(f"{name}: a {type(base).__name__} is not supported; known: Linear, Conv1D, Conv2d")
