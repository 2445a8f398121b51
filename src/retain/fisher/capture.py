"""Per-example gradients of linear maps from one ordinary backward: inputs and output gradients, caught by hooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retain.task import precise

Receive = Callable[[str, Tensor, Tensor], None]


@contextmanager
def capture(model: nn.Module, modules: Mapping[str, nn.Module], receive: Receive) -> Iterator[Capture]:
    """Hand ``receive(name, inputs (N, T, in), gradients (N, T, out))`` each module's part of every backward.

    T counts the places where one example meets the module (its tokens; its calls, if a forward calls it again), so
    that with a loss *summed* over examples the gradient of example n for the weight (out, in) is gradients[n].T @
    inputs[n]. All parameters of ``model`` are frozen within the block: no parameter's gradient is computed, and
    nothing below the first module joins the graph.
    """
    tape = Capture(receive)
    # Ahead of the user's own hooks: what the module gave, before they change it.
    handles = [m.register_forward_hook(tape.hook(name), prepend=True) for name, m in modules.items()]
    try:
        with only_these_require_grad(model, ()):
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

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.n = 0
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        self.gradients: dict[str, dict[int, Tensor]] = defaultdict(dict)

    def start(self, n: int) -> None:
        """Forget the last forward; the next one is a batch of ``n`` examples."""
        self.n = n
        self.inputs.clear()

    def hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """A forward hook that keeps the input of module ``name`` and waits for the gradient of its output."""

        def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            call = len(self.inputs[name])
            self.inputs[name].append(args[0].detach())
            if not output.requires_grad:
                output = output + torch.zeros((), device=output.device, dtype=output.dtype, requires_grad=True)
            output.register_hook(lambda gradient: self._keep_gradient(name, call, gradient))
            return output

        return keep

    def finish(self) -> None:
        """Hand on what a backward left waiting: modules some of whose calls had no part in the loss."""
        for name in list(self.gradients):
            self._hand_on(name)

    def _keep_gradient(self, name: str, call: int, gradient: Tensor) -> None:
        self.gradients[name][call] = gradient.detach()
        if len(self.gradients[name]) == len(self.inputs[name]):
            self._hand_on(name)

    def _hand_on(self, name: str) -> None:
        pairs = [
            (self._by_example(name, self.inputs[name][c]), self._by_example(name, g))
            for c, g in self.gradients.pop(name).items()
        ]
        inputs, gradients = pairs[0] if len(pairs) == 1 else (torch.cat(side, 1) for side in zip(*pairs, strict=True))
        self.receive(name, inputs, gradients)

    def _by_example(self, name: str, tensor: Tensor) -> Tensor:
        if self.n != 1 and len(tensor) != self.n:
            raise ValueError(
                f"{name}: its leading dimension is {len(tensor)} in a batch of {self.n} examples, so examples "
                "cannot be told apart; measure this model's Fisher with batch_size=1"
            )
        return precise(tensor.reshape(self.n, -1, tensor.shape[-1]))
