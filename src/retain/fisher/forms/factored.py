"""The diagonal form in factors: a few non-negative row and column profiles instead of one number for each weight.

One component is the optimizer Adafactor's second moment (arXiv 1804.04235): row and column sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from retain.fisher.forms.diagonal import Diagonal, Squares, Sum
from retain.fisher.forms.factorise import Product, factorise
from retain.fisher.forms.form import Collector, Form, alike, check_count, check_factor, check_state
from retain.fisher.penalty import Anchor, Rows, quadratic, separable

PROBES = ((0.0, 0), (0.0, 1), (0.25, 2), (0.25, 3), (0.5, 4), (0.5, 5))  # exponent of the mass, seed
PROBE_RANK = 8


class Fit(NamedTuple):
    """How far the factors are from what they stand for: the worst of a few fixed directions of low rank."""

    error: float  # relative, of the penalty
    cosine: float  # of its gradients

    @property
    def holds(self) -> bool:
        return self.error <= 0.01 and self.cosine >= 0.999


class Factored(Form):
    """F = diag(f) with f (out, in) = sum_m g_m h_m', g and h non-negative, m = 1 ... ``components``.

    The factors are those of least Kullback-Leibler divergence from E[G o G] that a bounded number of sweeps finds;
    ``components=1`` is its row and column sums, exactly. ``fit`` measures them against it on directions as adapters
    take them, spread evenly and along heavy rows and columns. Where the penalty is off by more than 1 %, or the cosine
    of its gradients is below .999, the site keeps E[G o G] itself, a byte an entry (see ``Diagonal``); so does a site
    so small that this takes less than the factors.

    Several tasks: the factors of both are joined and factored anew, without a dense matrix; ``fit`` is then the last
    step's. Measuring a task does hold E[G o G] (out, in) for a moment.
    """

    def __init__(self, kept: Product | Diagonal, fit: Fit, components: int) -> None:
        self.kept, self.fit, self.components = kept, fit, components

    @classmethod
    def of(cls, matrix: Rows, shape: tuple[int, int], components: int, like: Tensor) -> Factored:
        """Factor ``matrix`` (out, in), in the precision and on the device of ``like``."""
        out, in_ = shape
        if components * (out + in_) * like.element_size() >= out * (in_ + like.element_size()):
            return cls(Diagonal.of(matrix, shape, "uint8", like), Fit(0.0, 1.0), components)
        product = factorise(matrix, shape, components, like)
        fit = _measure(product, matrix)
        return cls(product if fit.holds else Diagonal.of(matrix, shape, "uint8", like), fit, components)

    @classmethod
    def collector(
        cls, out: int, in_: int, device: torch.device, dtype: torch.dtype, *, components: int = 8
    ) -> Collector:
        check_count("components", components)
        total = torch.zeros(out, in_, device=device, dtype=dtype)
        return Squares(total, lambda mean: cls.of(mean, (out, in_), components, mean))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], *, components: int = 8) -> Factored:
        check_count("components", components)
        check_state(cls, state, {"rows", "columns", "fit"}, {"fisher", "scale", "fit"})
        fit = Fit(*state["fit"].tolist())
        if "fisher" in state:
            dense = {name: state[name] for name in ("fisher", "scale")}
            return cls(Diagonal.from_state_dict(dense, storage="uint8"), fit, components)
        rows, columns = state["rows"], state["columns"]
        if len(rows) != components or len(columns) != components:
            raise ValueError(f"not the state of a Factored with components={components}: it has {len(rows)}")
        return cls(Product(rows.clone(), columns.clone()), fit, components)

    def quadratic(self, B: Tensor, A: Tensor, anchor: Anchor = None) -> Tensor:
        if isinstance(self.kept, Diagonal):
            return self.kept.quadratic(B, A, anchor)
        return _product_quadratic(self.kept, B, A, anchor)

    def accumulate(self, other: Form, decay: float = 1.0) -> None:
        other = alike(self, other, decay)
        joined = self.of(Sum(self.kept, other.kept, decay), self.shape, self.components, self._like)
        self.kept, self.fit = joined.kept, joined.fit

    def rescale(self, factor: float) -> None:
        check_factor("factor", factor)
        if isinstance(self.kept, Diagonal):
            self.kept.rescale(factor)
        else:
            self.kept.rows *= factor

    def state_dict(self) -> dict[str, Tensor]:
        fit = {"fit": torch.tensor(self.fit, dtype=torch.float64)}
        if isinstance(self.kept, Diagonal):
            return self.kept.state_dict() | fit
        return {"rows": self.kept.rows, "columns": self.kept.columns} | fit

    @property
    def shape(self) -> tuple[int, int]:
        if isinstance(self.kept, Diagonal):
            return self.kept.shape
        return self.kept.rows.shape[1], self.kept.columns.shape[1]

    @property
    def trace(self) -> float:
        if isinstance(self.kept, Diagonal):
            return self.kept.trace
        return float(self.kept.rows.double().sum(1) @ self.kept.columns.double().sum(1))

    @property
    def _like(self) -> Tensor:
        return self.kept[slice(0, 1)]


def _product_quadratic(product: Product, B: Tensor, A: Tensor, anchor: Anchor = None) -> Tensor:
    """The penalty of F = sum_m diag(g_m) (x) diag(h_m): O(m (out + in) r^2), no (out, in) matrix."""

    def times(profiles: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda X: profiles.T.to(X)[:, :, None] * X[:, None]

    return separable(B, A, times(product.rows), times(product.columns), anchor)


@torch.no_grad()
def _measure(product: Product, matrix: Rows) -> Fit:
    """The worst relative error of the penalty and cosine of its gradients along the probes."""
    errors, cosines = [0.0], [1.0]
    for B, A in _probes(product):
        with torch.enable_grad():
            pair = B.requires_grad_(), A.requires_grad_()
            values = quadratic(*pair, matrix), _product_quadratic(product, *pair)
            ours, theirs = (torch.cat([g.flatten() for g in torch.autograd.grad(v, pair)]) for v in values)
        dense, near = (float(v.detach()) for v in values)
        if dense != near:
            errors.append(abs(near - dense) / dense if dense else float("inf"))
            cosines.append(float(torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), 0)))
    return Fit(max(errors), min(cosines))


def _probes(product: Product) -> list[tuple[Tensor, Tensor]]:
    """Factors (out, r), (r, in) of fixed random directions: even ones, and ones along heavy rows and columns."""
    mass, profile = product.rows.T @ product.columns.sum(1), product.columns.T @ product.rows.sum(1)
    mass, profile = (x / x.mean().clamp(min=torch.finfo(x.dtype).tiny) for x in (mass, profile))
    found = []
    for exponent, seed in PROBES:
        generator = torch.Generator().manual_seed(seed)
        B, A = (
            torch.randn(len(x), PROBE_RANK, generator=generator).to(x) * x[:, None] ** exponent for x in (mass, profile)
        )
        found.append((B, A.T.contiguous()))
    return found
