"""Likelihoods: how outputs become p(y | outputs), -log p, and its gradients with respect to the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Labels = Literal["mixture", "sample", "exact", "data", "predicted"]
IGNORED = -100


@dataclass(frozen=True)
class Draws:
    """Random numbers for the targets of the rows with these numbers (N,).

    A row draws its own, one target after the other: they depend on ``seed`` and the row's number, and on nothing of
    the batch, the padding or the device on which it stands.
    """

    rows: Tensor
    seed: int = 0

    def uniform(self, used: Tensor) -> Tensor:
        """(U,) numbers in [0, 1), one for each of the U targets that ``used`` (N, ...) marks."""
        return (self._words(used, 1)[:, 0] & 0xFFFFFF) / float(1 << 24)

    def normal(self, used: Tensor, like: Tensor) -> Tensor:
        """(U,) standard normal numbers of the type of ``like``, one for each target that ``used`` (N, ...) marks."""
        return torch.erfinv(1 - 2 * self.uniform(used).to(like).clamp(1e-6, 1 - 1e-6)) * 2**0.5

    def signs(self, used: Tensor, classes: int) -> Tensor:
        """(U, classes) of +1 and -1 in int8, a row of them for each target that ``used`` (N, ...) marks."""
        eights = self._words(used, -(-classes // 64)).view(torch.uint8).unsqueeze(-1)
        bits = (eights >> torch.arange(8, dtype=torch.uint8, device=used.device)).bitwise_and_(1)
        return bits.flatten(1)[:, :classes].to(torch.int8).mul_(-2).add_(1)

    def _words(self, used: Tensor, count: int) -> Tensor:
        """(U, count) words of 64 random bits, hashed from the seed, the row, the target's place in it, and the word's.

        A hash, since a generator would have to be set anew for every row, which takes longer than a small model.
        """
        marks = used.reshape(len(used), -1)
        rows = self.rows.to(used.device).unsqueeze(1) + _scrambled(torch.tensor(self.seed % (1 << 63)))
        targets = _scrambled(_scrambled(rows) + marks.cumsum(1))[marks]
        return _scrambled(targets.unsqueeze(1) + torch.arange(count, device=used.device))


def _scrambled(x: Tensor) -> Tensor:
    """Whole numbers of 64 bits to others that look random: SplitMix64 (Steele, Lea and Flood 2014), modulo 2^64."""
    x = (x + 1) * -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


class Loss(Protocol):
    """A predictive distribution p(y | outputs)."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log p(targets | outputs) of each example (N,), summed over the example's targets (tokens)."""

    def scores(
        self, labels: Labels, outputs: Tensor, targets: Tensor, draws: Draws, temperature: float = 1.0
    ) -> Iterator[Tensor]:
        """Gradients of -log p with respect to the outputs, each of their shape, in float32 or better.

        Propagated back one by one, the squares of what they give an example add up to its Fisher information, in
        expectation over ``draws`` where ``labels`` draws at all. Targets that are left out get exactly zero.
        """


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Categorical likelihood over the last dimension of the outputs (N, C) or (N, T, C); targets of -100 are left out.

    ``groups`` (C,) names the task that owns each class: only the classes of a label's own task compete with it (the
    local cross-entropy of class-incremental learning), everything else about that label is as if the other heads
    did not exist.
    """

    groups: Tensor | None = None

    def restrict(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs with the classes of other tasks than the target's at -inf."""
        if self.groups is None:
            return outputs
        groups = self.groups.to(outputs.device)
        return outputs.masked_fill(groups != groups[targets.clamp(min=0)].unsqueeze(-1), float("-inf"))

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            raise ValueError("targets are real numbers, not classes: a regression task has loss=SquaredError()")
        logits = precise(self.restrict(outputs, targets).movedim(-1, 1))
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return losses.reshape(len(losses), -1).sum(1)

    def scores(
        self, labels: Labels, outputs: Tensor, targets: Tensor, draws: Draws, temperature: float = 1.0
    ) -> Iterator[Tensor]:
        """p - onehot(y) of each target, with p = softmax(outputs / temperature), also where y is drawn from p.

        It is not divided by the temperature: 1 gives the Fisher information, and ever larger ones the curvature of
        the outputs themselves, (I - 11'/C) / C, unless the labels are given ("data") or fixed ("predicted").
        """
        used = targets != IGNORED
        p = (precise(self.restrict(outputs.detach()[used], targets[used])) / temperature).softmax(-1)
        if labels == "exact" and outputs.dim() > 2:
            raise ValueError("labels='exact' enumerates classes and cannot enumerate sequences; use labels='mixture'")
        found: Iterator[Tensor]
        if labels == "exact":
            found = (_residual(p, c) * p[:, c].sqrt().unsqueeze(-1) for c in (p != 0).any(0).nonzero()[:, 0])
        elif labels == "mixture":
            found = iter([_mixture(p, draws.signs(used, p.shape[-1]))])
        elif labels == "sample":
            found = iter([_residual(p, _sample(p, draws.uniform(used)))])
        else:
            found = iter([_residual(p, targets[used] if labels == "data" else p.argmax(-1))])
        for score in found:
            yield p.new_zeros(outputs.shape).masked_scatter_(used.unsqueeze(-1), score)


def _residual(p: Tensor, classes: Tensor) -> Tensor:
    """p - onehot(classes) for ``p`` (U, C), ``classes`` (U,) or one for all."""
    return p - torch.zeros_like(p).scatter_(-1, classes.expand(len(p)).unsqueeze(-1), 1)


def _sample(p: Tensor, uniform: Tensor) -> Tensor:
    """(U,) classes drawn from ``p`` (U, C): where ``uniform`` (U,) falls when they are laid end to end."""
    reached = p.cumsum(-1)
    end = reached[:, -1]
    # Rounding must not carry the product to the very end, past every class that can be drawn.
    at = torch.minimum(uniform.to(p) * end, torch.nextafter(end, torch.zeros_like(end)))
    return (reached <= at.unsqueeze(-1)).sum(-1)


def _mixture(p: Tensor, signs: Tensor) -> Tensor:
    """(U, C) one vector s for each target with E[s s'] = diag(p) - p p' over random ``signs`` (U, C).

    The vectors sqrt(p_c) (onehot_c - p) have that sum of squares, so s could be their sum with random signs. One of
    them can be spared: they depend on each other, sum_c sqrt(p_c) (...) = 0, and a reflection that takes sqrt(p) to
    the axis of the most likely class k leaves C - 1 vectors with the same sum of squares. That halves the noise and
    more; two classes have none left.
    """
    top, root = p.argmax(-1, keepdim=True), p.sqrt()
    mixed, at_top = (root * signs).scatter_(-1, top, 0), root.gather(-1, top)
    total = mixed.sum(-1, keepdim=True)
    return mixed.addcmul_(p, -total / (1 + at_top)).scatter_(-1, top, -at_top * total)


@dataclass(frozen=True, eq=False)
class SquaredError:
    """Gaussian likelihood of unit variance: -log p = 1/2 ||outputs - targets||^2 + const, summed within an example.

    ``groups`` (C,), as of ``CrossEntropy``, names the task that owns each of the outputs (N, C): those that ``group``
    owns are what targets (N,) or (N, k) are compared with, the others are as if they did not exist.
    """

    groups: Tensor | None = None
    group: int = 0

    def own(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What ``targets`` are compared with, of their shape.

        Raises:
            ValueError: the outputs have another one.
        """
        if self.groups is not None and outputs.dim() > 1:
            outputs = outputs[:, self._places]
            outputs = outputs if targets.dim() > 1 else outputs.squeeze(1)
        if outputs.shape != targets.shape:
            raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must have one shape")
        return outputs

    def restrict(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs with those of other tasks at -inf."""
        if self.groups is None or outputs.dim() == 1:
            return outputs
        return outputs.masked_fill(self.groups.to(outputs.device) != self.group, float("-inf"))

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (precise(self.own(outputs, targets)) - targets).square().reshape(len(outputs), -1).sum(1)

    def scores(
        self, labels: Labels, outputs: Tensor, targets: Tensor, draws: Draws, temperature: float = 1.0
    ) -> Iterator[Tensor]:
        """outputs - y. The curvature of the outputs is the identity at every temperature."""
        for score in self._scores(labels, precise(self.own(outputs.detach(), targets)), targets, draws):
            if score.shape == outputs.shape:
                yield score
                continue
            whole = score.new_zeros(outputs.shape)
            whole[:, self._places] = score.reshape(len(score), -1)
            yield whole

    def _scores(self, labels: Labels, mean: Tensor, targets: Tensor, draws: Draws) -> Iterator[Tensor]:
        each = torch.ones_like(mean, dtype=torch.bool)
        if labels == "data":
            yield mean - targets
        elif labels == "predicted":
            raise ValueError(
                "labels='predicted' gives a Gaussian no score at all: its Fisher would be zero; use labels='mixture'"
            )
        elif labels == "mixture":
            rows = each.reshape(len(mean), -1)[:, 0]
            yield draws.signs(rows, mean[0].numel()).to(mean).reshape(mean.shape)
        elif labels == "sample":
            yield draws.normal(each, mean).reshape(mean.shape)
        else:
            for direction in torch.eye(mean[0].numel(), device=mean.device, dtype=mean.dtype):
                yield direction.reshape(mean[0].shape).expand(mean.shape)

    @property
    def _places(self) -> list[int]:
        """The numbers of the outputs that ``group`` owns."""
        assert self.groups is not None
        return [i for i, owner in enumerate(self.groups.tolist()) if owner == self.group]


def precise(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or better if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
