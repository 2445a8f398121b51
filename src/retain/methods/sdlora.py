"""SD-LoRA: directions of earlier tasks stay frozen, their magnitudes train on (arXiv 2501.13198, ICLR 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from retain.linalg import squared_norm
from retain.lora import Site
from retain.method import Method
from retain.nearest import did_you_mean
from retain.task import Task, precise

Quirk = Literal["reset magnitudes"]
Magnitudes = list[nn.Parameter]

# The authors' first value of a magnitude.
START = 0.8


class SDLoRA(Method):
    """dW = c (s B A + sum_i s_i D_i) per layer: the new task's adapter, and the frozen directions of the earlier ones.

    The magnitudes s and s_i train in every task, one number each for all layers.

    - ``begin_task``: P_i (out, in), task i's part of a layer's past, is s_i D_i, with s_i the root of the mean of
      ||P_i||^2 over layers, so that the function stays what it is; s = 0.8 beside a fresh adapter, B = 0. What the
      adapter held before is folded.
    - ``end_task``: the past is sum_i s_i D_i as it has become, and s B A joins it.

    It holds directions, not the function: what a new task makes of a magnitude holds for the earlier ones too, and
    nothing keeps its adapter off their inputs. Heads and whatever else trains beside the adapter are not protected.
    Magnitudes have no weight decay, which would fade what was learned.

    Args:
        model: a model from ``peft.get_peft_model``.
        reference: what to do as the reference code does, to reproduce it: "reset magnitudes" (as a task begins all s_i
            are 0.8 and D_i is P_i/(||B_i|| ||A_i||), layer by layer, so that the function jumps).
        seed: of fresh adapters.
    """

    STATE = ("trained",)

    def __init__(self, model: nn.Module, *, reference: Sequence[Quirk] = (), seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.check(reference=reference)
        self.reference = frozenset(reference)
        self._shared: Magnitudes = [nn.Parameter(precise(next(iter(self.sites.values())).A).new_full((1,), START))]
        for site in self.sites.values():
            _magnify(site, self._shared)
        self._set([START])

    @classmethod
    def check(cls, **keywords: Any) -> None:
        for quirk in keywords["reference"]:
            if quirk not in (known := get_args(Quirk)):
                raise ValueError(f"unknown reference {quirk!r}; known: {', '.join(known)}{did_you_mean(quirk, known)}")

    @property
    def growth(self) -> int:
        return self.adapter_bytes

    @property
    def magnitudes(self) -> Tensor:
        """s, and while a task trains every s_i, that of the latest task first: (1 + earlier tasks,)."""
        return self._shared[0].detach().clone()

    def begin_task(self, task: Task) -> None:
        self.warn_unprotected()
        if any(site.B.any() for site in self.sites.values()):
            self.fold(None)
        parts = {name: _parts(site) for name, site in self.sites.items()}
        reset = "reset magnitudes" in self.reference
        sizes = []
        for age in range(max(map(len, parts.values()))):
            squares = [float(squared_norm(*part[age])) for part in parts.values() if age < len(part)]
            sizes.append((sum(squares) / len(squares)) ** 0.5 or 1.0)
        for name, site in self.sites.items():
            norms = [float(B.norm() * A.norm()) or 1.0 for B, A in parts[name]] if reset else sizes[: len(parts[name])]
            site.layer.parametrizations.past_B[0].hold(site.layer.past_B, norms, len(site.A))
        self._set([START, *([START] * len(sizes) if reset else sizes)])

    def param_groups(self) -> list[dict[str, Any]]:
        """As for every method, the magnitudes in a group of their own, without weight decay."""
        shared = self._shared[0]
        groups = [g | {"params": [p for p in g["params"] if p is not shared]} for g in super().param_groups()]
        return [groups[0], {"params": [shared], "weight_decay": 0.0}, *groups[1:]]

    def end_task(self, task: Task) -> None:
        changes = (self.magnitudes / self._began)[1:]
        self.boundary = {"least": float(changes.min()), "most": float(changes.max())} if len(changes) else {}
        self.fold(None)
        self._set([START])
        super().end_task(task)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for site in self.sites.values():
            site.layer.parametrizations.past_B[0].held = None
        self._set([START])
        super().load_state_dict(state)

    def _set(self, values: Sequence[float]) -> None:
        """New magnitudes, for all layers."""
        before = self._shared[0]
        self._shared[0] = nn.Parameter(before.detach().new_tensor(values), requires_grad=before.requires_grad)
        self._began = self.magnitudes
        for site in self.sites.values():
            site.layer.lora_B[site.adapter].parametrizations.weight.original1 = self._shared[0]


class Present(nn.Module):
    """The weight of B (out, r, ...) as s times another, s the first of the ``shared`` magnitudes."""

    def __init__(self, shared: Magnitudes) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, B: Tensor, magnitudes: Tensor) -> Tensor:
        return B * magnitudes[0].to(B)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        magnitudes = self.shared[0].detach()
        return weight / magnitudes[0].to(weight), magnitudes.clone()


class Earlier(nn.Module):
    """``past_B`` (out, R): what it is or, while it is held, each task's columns times the change of its magnitude."""

    held: Tensor | None
    norms: Tensor

    def __init__(self, shared: Magnitudes) -> None:
        super().__init__()
        self.shared, self.width = shared, 1
        self.register_buffer("held", None, persistent=False)
        self.register_buffer("norms", None, persistent=False)

    def hold(self, past_B: Tensor, norms: Sequence[float], width: int) -> None:
        """Magnitudes multiply ``past_B`` from now on, each by ``width`` columns; it is what it is at ``norms``."""
        self.held, self.norms, self.width = past_B, precise(past_B).new_tensor(norms), width

    def forward(self, past_B: Tensor) -> Tensor:
        if self.held is None:
            return past_B
        changes = self.shared[0][1 : 1 + len(self.norms)].to(self.norms) / self.norms
        return past_B * changes.repeat_interleave(self.width)[: past_B.shape[1]].to(past_B)

    def right_inverse(self, past_B: Tensor) -> Tensor:
        """``past_B``, which ends the holding if its rank is another. Else what is held, with the nearest magnitudes."""
        if self.held is None or past_B.shape != self.held.shape:
            self.held = None
            return past_B
        along, whole = ((x * self.held).sum(0).split(self.width) for x in (past_B, self.held))
        for i, (part, all_) in enumerate(zip(along, whole, strict=True)):
            if all_.any():
                self.shared[0][1 + i] = self.norms[i] * part.sum() / all_.sum()
        return self.held


def _magnify(site: Site, shared: Magnitudes) -> None:
    """Let ``shared`` magnitudes multiply what ``site`` trains, and its past once that is held."""
    steps = [(site.layer.lora_B[site.adapter], "weight", Present(shared)), (site.layer, "past_B", Earlier(shared))]
    for module, tensor, step in steps:
        if is_parametrized(module, tensor):
            raise ValueError(f"{site.name}: {tensor} has another parametrisation already")
        register_parametrization(module, tensor, step)
    past = site.layer.parametrizations.past_B
    past.register_buffer("original", past.original, persistent=False)  # else peft would save it beside the factors


def _parts(site: Site) -> list[tuple[Tensor, Tensor]]:
    """The factors (out, r), (r, in) that each task has in the past of ``site``, the latest first."""
    B, A = site.past
    return list(zip(B.split(len(site.A), 1), A.split(len(site.A)), strict=True)) if len(A) else []
