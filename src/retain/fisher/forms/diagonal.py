"""The diagonal form: one number for each weight (Kirkpatrick et al. 2017, arXiv 1612.00796)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from retain.fisher.contract import add_squares
from retain.fisher.forms.form import Collector, Form, alike, check_factor, check_state
from retain.fisher.penalty import Anchor, Rows, blocks, quadratic
from retain.nearest import did_you_mean
from retain.task import precise

Storage = Literal["float32", "bfloat16", "uint8"]
Squared = Literal["example", "batch"]


class Diagonal(Form):
    """F = diag(f) with f = E[G o G] (out, in). Products of two weights' scores are left out.

    Stored as

    - ``float32`` (float64 for float64 models): 4 bytes an entry;
    - ``bfloat16``: 2 bytes; an entry is off by at most 0.4 %;
    - ``uint8``: 1 byte, of sqrt(f) in steps of 1/255 of the row's largest; sqrt(f) is off by at most half a step.

    ``squares: batch`` is what reference codes measure: (1/N) sum_b n_b g_b o g_b of the mean gradients g_b of batches
    of n_b, about f/n_b near an optimum. For comparison only, of all rows, with labels "data" and the ``batch_size`` of
    the code that is compared.

    It is read back tile by tile, never as a whole. Summing over tasks loses nothing in float32; below that, each
    boundary rounds once more, and what a task adds below the rounding is lost.
    """

    def __init__(self, values: Tensor, scale: Tensor | None = None) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, matrix: Rows, shape: tuple[int, int], storage: Storage, like: Tensor) -> Diagonal:
        """Store ``matrix`` (out, in), tile by tile, on the device and at most in the precision of ``like``."""
        scale = None
        if storage == "uint8":
            values = torch.empty(shape, dtype=torch.uint8, device=like.device)
            scale = torch.empty(shape[0], dtype=like.dtype, device=like.device)
        else:
            values = torch.empty(
                shape, dtype=like.dtype if storage == "float32" else torch.bfloat16, device=like.device
            )
        form = cls(values, scale)
        form._fill(matrix)
        return form

    @classmethod
    def collector(
        cls,
        out: int,
        in_: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        storage: Storage = "float32",
        squares: Squared = "example",
    ) -> Collector:
        check_options(storage, squares)

        def form(mean: Tensor) -> Diagonal:
            return cls(mean) if storage == "float32" else cls.of(mean, (out, in_), storage, mean)

        total = torch.zeros(out, in_, device=device, dtype=dtype)
        return Squares(total, form) if squares == "example" else BatchSquares(total, form)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], *, storage: Storage = "float32", squares: Squared = "example"
    ) -> Diagonal:
        check_options(storage, squares)
        check_state(cls, state, {"fisher", "scale"} if storage == "uint8" else {"fisher"})
        values = state["fisher"]
        allowed = {"float32": (torch.float32, torch.float64)}.get(storage, (getattr(torch, storage),))
        if values.dtype not in allowed:
            raise ValueError(f"not the state of a Diagonal with storage={storage!r}: it is stored as {values.dtype}")
        return cls(values.clone(), state["scale"].clone() if storage == "uint8" else None)

    def __getitem__(self, rows: slice) -> Tensor:
        """The entries of a block of rows, in float32 or better."""
        if self.scale is None:
            return self.values[rows].to(torch.promote_types(self.values.dtype, torch.float32))
        return self.values[rows].to(self.scale.dtype).mul_(self.scale[rows, None]).square_()

    def quadratic(self, B: Tensor, A: Tensor, anchor: Anchor = None) -> Tensor:
        return quadratic(B, A, self, 1.0, anchor)

    def accumulate(self, other: Form, decay: float = 1.0) -> None:
        self._fill(Sum(self, alike(self, other, decay), decay))

    def rescale(self, factor: float) -> None:
        check_factor("factor", factor)
        if self.scale is None:
            self.values *= factor
        else:
            self.scale *= factor**0.5

    def state_dict(self) -> dict[str, Tensor]:
        return {"fisher": self.values} | ({} if self.scale is None else {"scale": self.scale})

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def trace(self) -> float:
        return sum(float(self[rows].sum(dtype=torch.float64)) for rows in blocks(self.shape, self.values.device))

    def _fill(self, matrix: Rows) -> None:
        """Take over ``matrix`` (out, in), which may read from this one."""
        for rows in blocks(self.shape, self.values.device):
            tile = matrix[rows]
            if self.scale is None:
                self.values[rows] = tile
                continue
            root = tile.sqrt()
            step = root.amax(1) / 255
            self.scale[rows] = step
            # A row of zeros has steps of zero.
            self.values[rows] = (root / step.clamp(min=torch.finfo(step.dtype).tiny)[:, None]).round_().clamp_(max=255)


class Sum:
    """decay ``old`` + ``new``, a block of rows at a time."""

    def __init__(self, old: Rows, new: Rows, decay: float) -> None:
        self.old, self.new, self.decay = old, new, decay

    def __getitem__(self, rows: slice) -> Tensor:
        return self.decay * self.old[rows] + self.new[rows]


class Squares(Collector):
    """The sum of G o G (out, in), whose mean ``form`` makes a form of."""

    def __init__(self, total: Tensor, form: Callable[[Tensor], Form]) -> None:
        self.total, self.form = total, form

    def add(self, x: Tensor, d: Tensor) -> None:
        add_squares(self.total, x, d, 1 / self.expected)

    def sums(self) -> list[Tensor]:
        return [self.total]

    def done(self, count: float) -> Form:
        left = count / self.expected
        return self.form(self.total if left == 1 else self.total.div_(left))


class BatchSquares(Squares):
    """The sum of n_b g_b o g_b (out, in), g_b the mean of the G of a batch of n_b."""

    def add(self, x: Tensor, d: Tensor) -> None:
        G = precise(d).flatten(0, 1).T @ precise(x).flatten(0, 1)
        self.total.addcmul_(G, G, value=1 / (len(x) * self.expected))


def check_options(storage: str, squares: str) -> None:
    for key, value, allowed in (("storage", storage, Storage), ("squares", squares, Squared)):
        if value not in (known := get_args(allowed)):
            raise ValueError(f"unknown {key} {value!r}; known: {', '.join(known)}{did_you_mean(value, known)}")
