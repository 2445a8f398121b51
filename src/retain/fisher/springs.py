"""Diagonal springs on an adapter, number by number on its factors or on the update dW, behind one interface."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.fisher.estimate import unchecked_parameters, unchecked_weights
from retain.fisher.penalty import difference, quadratic, separable
from retain.fisher.sampling import Tally
from retain.linalg import squared_norm
from retain.lora import Site
from retain.task import Task, precise

Protect = Literal["factors", "update"]
Values = Mapping[str, Tensor]


class Springs:
    """What is protected of an adapted model, and what a change of it costs.

    Tensors of importance have names: those of parameters (the factors A and B, linear layers beside the adapter), or of
    sites, whose importance (out, in) is that of the weight change dW = s B A. Values of weights are kept by the names
    of parameters in both cases.

    Attributes:
        parameters: what is held number by number, by name.
        updates: the sites whose dW is held, by name.
        anchored: all parameters that have a part in what is held.
        tally: of the last pass.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], beside: Values, protect: Protect) -> None:
        self.model = model
        names = {id(p): name for name, p in model.named_parameters()}
        self.factors = {name: [names[id(p)] for p in site.parameters] for name, site in sites.items()}  # B, A
        held = {name for pair in self.factors.values() for name in pair} | beside.keys()
        self.anchored = {name: p for name, p in model.named_parameters() if name in held}
        self.updates = dict(sites) if protect == "update" else {}
        self.parameters = (
            self.anchored if protect == "factors" else {n: p for n, p in self.anchored.items() if n in beside}
        )
        self.tally = Tally(0)
        self._columns = {B for B, _ in self.factors.values()}

    @property
    def names(self) -> list[str]:
        """Of the tensors of importance, in one order."""
        return [*self.updates, *self.parameters]

    @property
    def value_bytes(self) -> int:
        """Bytes of ``here``."""
        return sum(p.numel() * _itemsize(p) for p in self.anchored.values())

    @property
    def importance_bytes(self) -> int:
        """Bytes of all tensors of importance."""
        updates = sum(len(s.B) * s.A.shape[1] * _itemsize(s.B) for s in self.updates.values())
        return updates + sum(p.numel() * _itemsize(p) for p in self.parameters.values())

    @property
    def rows(self) -> dict[str, tuple[int, int]]:
        """How many rows each tensor has, and along which dimension: rank indices of A and of B, outputs of the rest."""
        sizes = {name: (len(site.B), 0) for name, site in self.updates.items()}
        return sizes | {name: (p.shape[self._axis(name)], self._axis(name)) for name, p in self.parameters.items()}

    def importance(self, task: Task, at_once: int | None, **options: Any) -> Iterator[tuple[str, Tensor]]:
        """The diagonal Fisher of every tensor on ``task``'s rows, ``at_once`` tensors a pass, in the order of names.

        Zero where a tensor has no part in the outputs. ``options`` as for ``weight_fisher``.

        Raises:
            RuntimeError: no tensor of a pass has a part in the outputs.
        """
        layers = {name: site.layer for name, site in self.updates.items()}
        passes: list[tuple[Callable[..., Any], dict[str, Any]]]
        passes = [(unchecked_weights, part) for part in _parts(layers, at_once)]
        passes += [(unchecked_parameters, part) for part in _parts(self.parameters, at_once)]
        for measure, part in passes:
            found, self.tally = measure(self.model, part, task, **options)
            for name in part:
                yield name, found.pop(name) if name in found else self._none(name)

    def rises(self, fisher: Values, anchor: Values, factors: Values) -> list[Tensor]:
        """1/2 sum c F (change since ``anchor``)^2 of every tensor: scalars, in the order of names.

        Args:
            fisher: F by name.
            anchor: earlier values of parameters, by their names.
            factors: c (rows,) by name of the tensor; 1 where there is none.
        """
        return [
            self._update(name, fisher[name], anchor, factors.get(name))
            if name in self.updates
            else self._parameter(name, fisher[name], anchor[name], factors.get(name))
            for name in self.names
        ]

    def here(self) -> dict[str, Tensor]:
        """The values of all parameters that are anchored: copies, in float32 at least."""
        return {name: precise(p.detach()).clone() for name, p in self.anchored.items()}

    @contextmanager
    def at(self, values: Values) -> Iterator[None]:
        """The block sees the model at earlier ``values`` of its parameters."""
        now = {name: p.detach().clone() for name, p in self.anchored.items()}
        try:
            self._set(values)
            yield
        finally:
            self._set(now)

    @torch.no_grad()
    def moved(self, start: Values) -> dict[str, float]:
        """||change||^2 since ``start`` of each tensor."""
        squares = {}
        for name, site in self.updates.items():
            squares[name] = site.scale**2 * float(squared_norm(*difference(site.B, site.A, self._pair(name, start))))
        for name, p in self.parameters.items():
            squares[name] = float((precise(p) - start[name]).square().sum())
        return squares

    def pull(self, points: Mapping[str, Values], weights: Mapping[str, float]) -> Callable[[], Tensor]:
        """A function of the present values: by how much 1/2 sum_i w_i ||theta - theta_i||^2 exceeds what it is now.

        Whatever the number of points this is one parabola, w/2 ||theta - m||^2 and a constant, with w = sum w_i and the
        mean m = sum w_i theta_i / w. The mean of dW is kept as factors, those of all points side by side.

        Args:
            points: theta_i, values of parameters, by task.
            weights: w_i by task.
        """
        total = sum(weights.values())
        shares = {task: weight / total for task, weight in weights.items()}
        means = {n: torch.stack([w * points[i][n] for i, w in shares.items()]).sum(0) for n in self.parameters}
        pairs = {}
        for name in self.updates:
            B, A = zip(*(self._pair(name, points[task]) for task in shares), strict=True)
            pairs[name] = torch.cat([w * b for w, b in zip(shares.values(), B, strict=True)], 1), torch.cat(A)

        def value() -> Tensor:
            parts = [
                site.scale**2 * separable(site.B, site.A, _itself, _itself, pairs[name])
                for name, site in self.updates.items()
            ]
            parts += [0.5 * (precise(p) - means[name]).square().sum() for name, p in self.parameters.items()]
            return total * torch.stack(parts).sum()

        with torch.no_grad():
            now = value()
        return lambda: value() - now

    def _parameter(self, name: str, fisher: Tensor, anchor: Tensor, factors: Tensor | None) -> Tensor:
        energy = fisher * (precise(self.parameters[name]) - anchor).square()
        if factors is None:
            return 0.5 * energy.sum()
        return 0.5 * (energy.movedim(self._axis(name), 0).reshape(len(factors), -1).sum(1) * factors).sum()

    def _update(self, name: str, fisher: Tensor, anchor: Values, factors: Tensor | None) -> Tensor:
        site, rows = self.updates[name], fisher if factors is None else _Scaled(fisher, factors)
        return site.scale**2 * quadratic(site.B, site.A, rows, 1.0, self._pair(name, anchor))

    def _axis(self, name: str) -> int:
        return int(name in self._columns)

    @torch.no_grad()
    def _set(self, values: Values) -> None:
        for name, p in self.anchored.items():
            p.copy_(values[name])

    def _none(self, name: str) -> Tensor:
        if name in self.updates:
            site = self.updates[name]
            return precise(site.B.detach()).new_zeros(len(site.B), site.A.shape[1])
        return torch.zeros_like(precise(self.parameters[name].detach()))

    def _pair(self, name: str, values: Values) -> tuple[Tensor, Tensor]:
        B, A = (values[factor].flatten(1) for factor in self.factors[name])
        return B, A


class _Scaled:
    """A matrix (out, in) whose rows are multiplied by ``factors`` (out,), a block at a time."""

    def __init__(self, matrix: Tensor, factors: Tensor) -> None:
        self.matrix, self.factors = matrix, factors

    def __getitem__(self, rows: slice) -> Tensor:
        return self.matrix[rows] * self.factors[rows, None]


def seeing(sites: Mapping[str, Site], parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """``parameters`` without factors A beside B = 0, whose gradient is zero whatever the rows; warn of these."""
    still = {id(p) for s in sites.values() if not s.B.any() for p in s.layer.lora_A[s.adapter].parameters()}
    seen = {name: p for name, p in parameters.items() if id(p) not in still}
    if blind := len(parameters) - len(seen):
        warnings.warn(
            f"half blind: where B is zero the gradient of A is too, so that {blind} of {len(parameters)} protected "
            "tensors have no importance here, and what moves them is not held. ewc-lora, and dwd with protect: update, "
            "measure the weight change itself, which has one",
            stacklevel=4,
        )
    return seen


def _parts(things: Mapping[str, Any], size: int | None) -> list[dict[str, Any]]:
    """``things`` in their order, ``size`` of them at a time, or all."""
    names, step = list(things), size or max(1, len(things))
    return [{name: things[name] for name in names[i : i + step]} for i in range(0, len(names), step)]


def _itemsize(tensor: Tensor) -> int:
    return torch.promote_types(tensor.dtype, torch.float32).itemsize


def _itself(X: Tensor) -> Tensor:
    return X[:, None]
