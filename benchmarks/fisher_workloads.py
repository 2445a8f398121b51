"""Models, rows and labels on which the Fisher is timed, each in full size and tiny, and the float64 oracle for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Squares = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """A seeded model, its rows, and the linear maps whose weights are measured.

    An example is a row of ``inputs`` (N, ...) with one label, or one a token, in ``labels`` (N,) or (N, T).
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    targets: list[str]

    @property
    def modules(self) -> dict[str, nn.Linear]:
        return {name: self.model.get_submodule(name) for name in self.targets}

    @property
    def places(self) -> int:
        """Tokens of an example."""
        return 1 if self.inputs.dim() == 2 and self.inputs.is_floating_point() else self.inputs.shape[1]

    @property
    def flops(self) -> int:
        """Of the outer products: every place of every example at every site."""
        return 2 * len(self.inputs) * self.places * sum(m.weight.numel() for m in self.modules.values())

    def copied(self, trainable: str = "weight") -> tuple[nn.Module, dict[str, nn.Parameter]]:
        """A copy of the model whose targets' weights alone, or biases, require gradients; and these by module."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        chosen = {name: model.get_submodule(name).get_parameter(trainable) for name in self.targets}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return model, chosen


def nll(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log p(labels | outputs) of each example (N,), summed over its tokens."""
    losses = F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none")
    return losses.reshape(len(losses), -1).sum(1)


def oracle(workload: Workload) -> Squares:
    """(1/N) sum_n (d log p(y_n | x_n) / d W)^2 of every target, one example at a time in float64."""
    model, weights = workload.copied()
    model.double()
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in zip(workload.inputs, workload.labels, strict=True):
        x = x.double() if x.is_floating_point() else x
        scores = torch.autograd.grad(nll(model(x[None]), y[None]).sum(), list(weights.values()))
        for square, score in zip(total.values(), scores, strict=True):
            square.addcmul_(score, score)
    return {name: square / len(workload.inputs) for name, square in total.items()}


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        q, k, v = (m(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.o(a.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Tokens or patches in; logits of the row, or of every token if causal."""

    def __init__(
        self, embed: nn.Module, length: int, layers: int, width: int, heads: int, classes: int, causal: bool = False
    ) -> None:
        super().__init__()
        self.embed, self.position, self.causal = embed, nn.Parameter(0.02 * torch.randn(length, width)), causal
        self.blocks = nn.Sequential(*[Block(width, heads, causal) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x) + self.position))
        return self.head(x if self.causal else x.mean(1))


def mlp(tiny: bool) -> Workload:
    """Four layers of width 1024; vectors."""
    n, width = (12, 8) if tiny else (256, 1024)
    hidden = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(width, 10))
    return Workload(model, torch.randn(n, width), torch.randint(10, (n,)), ["0", "2", "4", "6"])


def minilm(tiny: bool, n: int, length: int) -> Workload:
    """The shape of MiniLM-L6, queries and values of its six layers; tokens, one label a row."""
    n, length, layers, width, heads = (6, 5, 2, 16, 2) if tiny else (n, length, 6, 384, 12)
    model = Transformer(nn.Embedding(1000, width), length, layers, width, heads, 10)
    return Workload(model, torch.randint(1000, (n, length)), torch.randint(10, (n,)), _targets(layers, "qv"))


def vit(tiny: bool, maps: tuple[str, ...] | str) -> Workload:
    """Two layers of the shape of ViT-B/16; patches of 16 by 16 pixels in three colours, one label a row."""
    n, length, patch, layers, width, heads = (6, 9, 12, 2, 16, 2) if tiny else (32, 197, 768, 2, 768, 12)
    model = Transformer(nn.Linear(patch, width), length, layers, width, heads, 100)
    return Workload(model, torch.randn(n, length, patch), torch.randint(100, (n,)), _targets(layers, maps))


def gpt2(tiny: bool) -> Workload:
    """Two layers of the shape of GPT-2, every linear map; tokens, and a label for each."""
    n, length, vocabulary, layers, width, heads = (5, 7, 30, 2, 16, 2) if tiny else (8, 256, 8192, 2, 768, 12)
    model = Transformer(nn.Embedding(vocabulary, width), length, layers, width, heads, vocabulary, causal=True)
    rows, labels = torch.randint(vocabulary, (2, n, length))
    return Workload(model, rows, labels, _targets(layers, ALL))


def _targets(layers: int, maps: tuple[str, ...] | str) -> list[str]:
    return [f"blocks.{i}.{name}" for i in range(layers) for name in maps]


ALL = ("q", "k", "v", "o", "up", "down")
BUILD: dict[str, Callable[[bool], Workload]] = {
    "MLP, T=1, N=256": mlp,
    "MiniLM q v, T=16, N=64": lambda tiny: minilm(tiny, 64, 16),
    "MiniLM q v, T=128, N=32": lambda tiny: minilm(tiny, 32, 128),
    "ViT q v, T=197, N=32": lambda tiny: vit(tiny, "qv"),
    "ViT all linear, T=197, N=32": lambda tiny: vit(tiny, ALL),
    "GPT-2 all linear, T=256, N=8": gpt2,
}


def build(name: str, tiny: bool = False) -> Workload:
    """A workload by name, the same whenever it is built; ``tiny`` has its form but no size to speak of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        workload = BUILD[name](tiny)
    workload.model.eval()
    return workload
