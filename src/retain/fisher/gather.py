"""What a sweep's backward passes are gathered into: sums at linear maps, or of the squares of any parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from retain import ranks
from retain.fisher.capture import capture, only_these_require_grad
from retain.fisher.contract import add_squares, along, energies
from retain.task import precise

TINY = 16 * torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps  # below, it has a digit left
LOST = 0.01  # share of the sum of squares there that is worth a warning

Factors = tuple[Tensor, Tensor]
Worth = Callable[[str, Tensor, Tensor], Tensor]


class Sums(Protocol):
    """Running sums over the examples of one linear map."""

    def add(self, x: Tensor, d: Tensor) -> None:
        """Add examples with inputs ``x`` (N, T, in) and output gradients ``d`` (N, T, out)."""

    def sums(self) -> list[Tensor]:
        """The sums themselves, to be added up over processes in place."""


S = TypeVar("S", bound=Sums)
New = Callable[[str, int, int, torch.device, torch.dtype], S]


class Sites(Generic[S]):
    """Linear maps by name, each with sums that ``new(name, out, in, device, dtype)`` makes when it is first met.

    ``worth(name, x, d)`` (N,) is what each example's gradient there adds to the value that the error is measured of.
    """

    def __init__(self, modules: Mapping[str, nn.Module], new: New[S], worth: Worth) -> None:
        self.modules, self.new, self.worth = modules, new, worth
        self.sums: dict[str, S] = {}
        self.shapes: dict[str, tuple[int, int, torch.dtype]] = {}
        self.values = torch.zeros(0)
        self.half = False
        self.lost: dict[str, Tensor] = {}  # sums of squares: of gradients next to zero, and of all

    @contextmanager
    def over(self, model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
        with capture(model, self.modules, self._receive, dtype) as self.tape:
            yield

    def start(self, n: int) -> None:
        self.tape.start(n)
        self.values = torch.zeros(n)

    def backward(self, outputs: Tensor, scores: list[Tensor]) -> Tensor:
        self.half = outputs.dtype is torch.float16
        for i, score in enumerate(scores):
            outputs.backward(score, retain_graph=i + 1 < len(scores))
            self.tape.finish()
        return self.values

    def collected(self, device: torch.device) -> dict[str, S]:
        """The sums by name, over all processes; on ``device`` those of maps that only other processes met.

        A warning tells where float16 was too narrow for the gradients.
        """
        narrow = [name for name, (small, every) in self.lost.items() if small > LOST * every]
        if narrow:
            more = f" and at {len(narrow) - 1} others" if len(narrow) > 1 else ""
            warnings.warn(
                f"at {narrow[0]}{more} gradients are smaller than float16 can tell apart: their importance is not "
                "measured. Load the model in bfloat16 or float32",
                stacklevel=2,
            )
        for name, (out, in_, dtype) in ranks.union(self.shapes).items():
            if name not in self.sums:
                self.sums[name] = self.new(name, out, in_, device, dtype)
            for total in self.sums[name].sums():
                ranks.add_up(total)
        return self.sums

    def _receive(self, name: str, x: Tensor, d: Tensor) -> None:
        if name not in self.sums:
            shape = (d.shape[-1], x.shape[-1], torch.promote_types(x.dtype, torch.float32))
            self.shapes[name] = shape
            self.sums[name] = self.new(name, *shape[:2], x.device, shape[2])
        self.sums[name].add(x, d)
        if self.half:
            square = d.float().square()
            found = torch.stack([square[d.abs() < TINY].sum(), square.sum()])
            self.lost[name] = found + self.lost.get(name, 0)
        self.values = self.values.to(x.device) + self.worth(name, x, d)


class Unkept:
    """No sums: for passes of which only the values are wanted."""

    def __init__(self, *_: object) -> None:
        pass

    def add(self, x: Tensor, d: Tensor) -> None:
        pass

    def sums(self) -> list[Tensor]:
        return []


class OneByOne:
    """Parameters of any kind by name, summed squares of one example's gradients at a time."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.totals = {name: torch.zeros_like(precise(p)) for name, p in parameters.items()}

    @contextmanager
    def over(self, model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
        with only_these_require_grad(model, self.parameters.values()):
            yield

    def start(self, n: int) -> None:
        if n != 1:
            raise ValueError(f"one example at a time, got {n}")

    def backward(self, outputs: Tensor, scores: list[Tensor]) -> Tensor:
        value = torch.zeros(1, device=outputs.device)
        for i, score in enumerate(scores):
            gradients = torch.autograd.grad(
                outputs, [*self.parameters.values()], score, retain_graph=i + 1 < len(scores), allow_unused=True
            )
            for total, gradient in zip(self.totals.values(), gradients, strict=True):
                if gradient is not None:
                    square = precise(gradient).square()
                    total += square
                    value += square.sum()
        return value


class WeightAndBias:
    """Summed squares of a linear map's gradients, for those of its weight and bias that are wanted."""

    def __init__(self, wanted: Mapping[str, nn.Parameter], owner: str, *_: object) -> None:
        self.weight, self.bias = (f"{owner}.{kind}".lstrip(".") for kind in ("weight", "bias"))
        names = [name for name in (self.weight, self.bias) if name in wanted]
        self.totals = {name: torch.zeros_like(precise(wanted[name])) for name in names}

    def add(self, x: Tensor, d: Tensor) -> None:
        if self.weight in self.totals:
            add_squares(self.totals[self.weight], x, d)
        if self.bias in self.totals:
            self.totals[self.bias] += precise(d).sum(1).square().sum(0)

    def sums(self) -> list[Tensor]:
        return list(self.totals.values())


def unmeasured(name: str, x: Tensor, d: Tensor) -> Tensor:
    """The worth of gradients when nobody asks for an error: none."""
    return torch.zeros((), device=x.device)


def trace(name: str, x: Tensor, d: Tensor) -> Tensor:
    """||G_n||^2 (N,): the trace of the Fisher information."""
    return energies(x, d)


def squared_slope(directions: Mapping[str, Factors]) -> Worth:
    """<G_n, B A>^2 (N,) along the (B, A) of each map in ``directions``, nothing at the others."""

    def worth(name: str, x: Tensor, d: Tensor) -> Tensor:
        if name not in directions:
            return unmeasured(name, x, d)
        return along(x, d, *(factor.detach() for factor in directions[name])).square()

    return worth
