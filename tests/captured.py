"""Per-example gradients of linear maps from one ordinary backward: what the tests of the capture share."""

from collections import defaultdict

import torch

from retain.fisher.capture import capture


class Collected(defaultdict):
    """Everything that a capture handed on: name -> list of (inputs, gradients)."""

    def __init__(self):
        super().__init__(list)

    def __call__(self, name, inputs, gradients):
        self[name].append((inputs, gradients))

    def per_example(self, name):
        """Gradients (N, out, in) of the weight."""
        return sum(torch.einsum("nto,nti->noi", g, x) for x, g in self[name])


def caught(model, modules, inputs, loss):
    received = Collected()
    with capture(model, modules, received) as tape:
        tape.start(len(inputs))
        loss(model(inputs)).backward()
        tape.finish()
    return received


def one_by_one(model, weight, inputs, loss):
    return torch.stack([torch.autograd.grad(loss(model(x[None])), weight)[0] for x in inputs])


def state_of(model):
    modes, wanted = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return modes, wanted, [len(m._forward_hooks) for m in model.modules()], [p.grad for p in model.parameters()]
