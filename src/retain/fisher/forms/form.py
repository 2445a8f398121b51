"""What importance is kept as: one interface, whatever the matrix that stands behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeVar

import torch
from torch import Tensor

from retain.fisher.penalty import Anchor
from retain.nearest import did_you_mean

Same = TypeVar("Same", bound="Form")


class Collector(ABC):
    """Sums over the examples of one site, from which a form is made. Plain sums: those of several ranks add up.

    Attributes:
        expected: how many examples there will be. A collector whose sums are large may divide them as they grow, which
            is free there, and a pass over all of them at the end.
    """

    expected: float = 1.0

    @abstractmethod
    def add(self, x: Tensor, d: Tensor) -> None:
        """Add the examples of a batch: inputs ``x`` (N, T, in) and output gradients ``d`` (N, T, out)."""

    @abstractmethod
    def sums(self) -> list[Tensor]:
        """The running sums themselves, to be reduced over ranks in place."""

    @abstractmethod
    def done(self, count: float) -> Form:
        """The form of the sums divided by ``count``, the number of examples."""


class Form(ABC):
    """The Fisher information of one linear map's weight (out, in): a mean over examples, in nats.

    The exact one is F = E[vec(G) vec(G)'] (out in, out in), G (out, in) being the gradient of one example's
    log-likelihood. A form is a matrix near F that is small enough to keep. Its size never grows.
    """

    @classmethod
    @abstractmethod
    def collector(
        cls, out: int, in_: int, device: torch.device, dtype: torch.dtype, *_: Any, **options: Any
    ) -> Collector:
        """An empty collector. The keywords of a form's own signature are its options, as a configuration has them."""

    @classmethod
    @abstractmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], *_: Any, **options: Any) -> Form:
        """The form that gave ``state``, with the options that it had.

        Raises:
            ValueError: ``state`` is not one of this form with these options.
        """

    @abstractmethod
    def quadratic(self, B: Tensor, A: Tensor, anchor: Anchor = None) -> Tensor:
        """1/2 <D, F D> with D = B A - B* A*: the predicted rise of the loss in nats, differentiable in ``B`` and ``A``.

        Args:
            B: (out, r).
            A: (r, in).
            anchor: (B* (out, q), A* (q, in)), held constant; None: anchored at zero.
        """

    @abstractmethod
    def accumulate(self, other: Form, decay: float = 1.0) -> None:
        """F <- decay F + F_other, at constant size."""

    @abstractmethod
    def rescale(self, factor: float) -> None:
        """F <- factor F."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors: all that there is to keep."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""

    @property
    @abstractmethod
    def trace(self) -> float:
        """The mean over examples of ||G||^2, as this form has it."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())


def alike(form: Same, other: Form, decay: float) -> Same:
    """``other``, if it is what ``form`` can accumulate; refuses another form or shape, and a decay below 0."""
    check_factor("decay", decay)
    if not isinstance(other, type(form)) or other.shape != form.shape:
        raise ValueError(
            f"a {type(form).__name__} of {form.shape} accumulates its like, got a {type(other).__name__} "
            f"of {other.shape}"
        )
    return other


def check_factor(name: str, value: float) -> None:
    """Refuse what would make an importance negative or endless."""
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def check_count(name: str, value: Any) -> None:
    """Refuse what is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_state(form: type[Form], state: Mapping[str, Tensor], *allowed: set[str]) -> None:
    """Refuse a state whose keys are none of the sets ``allowed``."""
    if set(state) not in allowed:
        known = " or ".join(", ".join(sorted(keys)) for keys in allowed)
        foreign = next(iter(sorted(set(state) - set().union(*allowed))), "")
        raise ValueError(
            f"not the state of a {form.__name__}: it has {', '.join(sorted(state)) or 'nothing'}; expected {known}"
            f"{did_you_mean(foreign, set().union(*allowed)) if foreign else ''}"
        )
