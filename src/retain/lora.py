"""The adapter as every method sees it: y = W x + B_past A_past x + s B A x. The only file that imports peft.

The past is part of the LoRA layer itself, not a second active adapter: Trainer's resume, ``modules_to_save`` and TRL's
reference adapter each drop or forbid a second one. It is on under any active adapter, off when adapters are disabled,
and baked into whatever merging, unloading or saving leaves behind.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.import_utils import is_bnb_available
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from retain.linalg import truncate
from retain.nearest import did_you_mean
from retain.past import OnConv2d, OnLinear, OnQuantized, Past
from retain.stock import PREFIX, baked_config, baked_state

# They leave the base weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ...) change what "frozen" means.
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Site:
    """One adapted linear map of a model, under the name that it has in the base model.

    Factors are A (r, in) and B (out, r); ``scale`` s is alpha/r (alpha/sqrt(r) for rsLoRA). The past is kept in the
    same units, so that folding is pure concatenation. A convolution is a linear map of patches: in is its channels x
    height x width, and A and B are flat views of the factors that stock LoRA has.
    """

    name: str
    layer: Any
    adapter: str

    @property
    def A(self) -> Tensor:
        """Trainable factor (r, in)."""
        return _flat(self.layer.lora_A[self.adapter].weight)

    @property
    def B(self) -> Tensor:
        """Trainable factor (out, r)."""
        return _flat(self.layer.lora_B[self.adapter].weight)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer moves: the parameters behind B, then those behind A."""
        return [p for x in (self.layer.lora_B, self.layer.lora_A) for p in x[self.adapter].parameters()]

    @property
    def scale(self) -> float:
        """The factor s in front of B A."""
        return self.layer.scaling[self.adapter]

    @property
    def past(self) -> tuple[Tensor, Tensor]:
        """Frozen factors B_past (out, R), A_past (R, in); R = 0 before the first fold. Their product counts s times."""
        B, A, owner = self.layer.past_B, self.layer.past_A, self.layer.past_adapter
        return (B, A) if owner == self.adapter else (B * (self.layer.scaling[owner] / self.scale), A)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Past and present as one pair (out, R + r), (R + r, in), detached: [B, B_past], [A; A_past]."""
        past_B, past_A = self.past
        return torch.cat([self.B.detach(), past_B], 1), torch.cat([self.A.detach(), past_A], 0)

    def delta(self) -> Tensor:
        """The whole weight change s (B A + B_past A_past) (out, in), dense, detached."""
        B, A = self.factors()
        return self.scale * (B @ A)

    def set_past(self, B: Tensor, A: Tensor) -> None:
        """Replace the past by B (out, R), A (R, in)."""
        if (B.shape[0], A.shape[1], B.shape[1]) != (self.B.shape[0], self.A.shape[1], A.shape[0]):
            raise ValueError(f"{self.name}: past factors {tuple(B.shape)}, {tuple(A.shape)} do not fit this layer")
        if not (B.isfinite().all() and A.isfinite().all()):
            raise ValueError(f"{self.name}: the factors are not finite, so there is nothing to keep")
        if self.layer.merged or self.layer.past_merged:
            raise ValueError(f"{self.name}: the adapter is merged into the base; call unmerge_adapter() first")
        self.layer.past_adapter = self.adapter
        self.layer.past_B, self.layer.past_A = B.detach().to(self.B).clone(), A.detach().to(self.A).clone()

    @torch.no_grad()
    def set_factors(self, B: Tensor, A: Tensor) -> None:
        """Copy B (out, r), A (r, in) into the trainable factors, through the inverse of any parametrisation."""
        for module, value in ((self.layer.lora_B[self.adapter], B), (self.layer.lora_A[self.adapter], A)):
            value = value.reshape(module.weight.shape)
            if is_parametrized(module, "weight"):
                module.weight = value
            else:
                module.weight.copy_(value)

    def reset(self, generator: torch.Generator) -> None:
        """A fresh adapter: A uniform in +-1/sqrt(in) (stock LoRA's Kaiming initialisation), B zero."""
        bound = 1 / math.sqrt(self.A.shape[1])
        A = torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator)
        self.set_factors(torch.zeros_like(self.B), A.to(self.A))

    def fold(self, generator: torch.Generator, rank: int | None = None) -> float:
        """Move the present adapter into the past and start a fresh one; the function stays the same.

        Concatenation, hence exact: (B1 + B2)(A1 + A2) is not B1 A1 + B2 A2. With ``rank`` the past is then cut to
        its best factors of that rank (by SVD of the factors); the relative Frobenius error of the whole weight change
        is returned.
        """
        B, A = self.factors()
        error = 0.0
        if rank is not None and B.shape[1] > rank:
            B, A, error = truncate(B, A, rank)
        self.set_past(B, A)
        self.reset(generator)
        return error


def is_adapted(model: nn.Module) -> bool:
    """Whether ``model`` came out of peft."""
    return isinstance(model, PeftModel)


def sites(model: nn.Module) -> dict[str, Site]:
    """Every adapted linear map of ``model`` by name, in the order of its modules.

    Raises:
        ValueError: no LoRA, several active adapters, or, by its name, a module without plain LoRA on a linear map.
    """
    if not isinstance(model, PeftModel):
        got = f"this method needs a model with a LoRA adapter (peft.get_peft_model), got a {type(model).__name__}"
        compiled = isinstance(getattr(model, "_orig_mod", None), PeftModel)
        raise ValueError(f"{got}: hand it the model that torch.compile was given" if compiled else got)
    active = model.active_adapters
    if len(active) != 1:
        raise ValueError(f"exactly one adapter must be active, got {active}")
    _check_config(model.peft_config[active[0]])
    found = _sites(model, active[0])
    if not found:
        raise ValueError("nothing is adapted: the model has no LoRA layer under its active adapter")
    model.save_pretrained = partial(_save_plain, model)
    return found


def add_lora(model: nn.Module, **config: Any) -> PeftModel:
    """``peft.get_peft_model`` with ``config`` = the keywords of LoraConfig; a model that is refused stays as it was.

    Raises:
        ValueError: what ``sites`` refuses, or target modules that match nothing, with the nearest that would.
    """
    lora = LoraConfig(**config)
    _check_config(lora)
    _check_targets(model, lora.target_modules)
    adapted = get_peft_model(model, lora)
    try:
        sites(adapted)
    except ValueError:
        adapted.unload()
        raise
    return adapted


def load_adapter(base: nn.Module, path: str | Path) -> PeftModel:
    """``PeftModel.from_pretrained``: a stock adapter on its base model."""
    return PeftModel.from_pretrained(base, str(path))


def lora_config_fields() -> frozenset[str]:
    """The keywords of ``peft.LoraConfig``."""
    return frozenset(f.name for f in fields(LoraConfig))


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """All parameters that the active adapter owns, LoRA factors and ``modules_to_save``, frozen for now or not."""
    active = model.active_adapters[0]
    return {n: p for n, p in model.named_parameters() if f".{active}." in n}


def _check_config(config: Any) -> None:
    if config.peft_type != PeftType.LORA:
        raise ValueError(f"this method needs a LoRA adapter, got {config.peft_type.value}")
    if config.bias != "none":
        raise ValueError(f"bias={config.bias!r} trains biases of the base, which no adapter keeps; use bias='none'")
    if config.init_lora_weights not in INITIALISATIONS:
        got = f"init_lora_weights={config.init_lora_weights!r}"
        raise ValueError(f"{got} changes the base weights, which must stay; known: {INITIALISATIONS}")


def _check_targets(model: nn.Module, wanted: Any) -> None:
    names = [name for name, _ in model.named_modules()]
    if isinstance(wanted, str):
        missing = [] if wanted == "all-linear" or any(re.fullmatch(wanted, n) for n in names) else [wanted]
    else:
        missing = [t for t in sorted(wanted or ()) if not any(f".{n}".endswith(f".{t}") for n in names)]
    if missing:
        kinds = nn.Linear | nn.Conv2d | Conv1D
        known = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, kinds)})
        hint = f"{', '.join(known)}{did_you_mean(missing[0], known)}"
        raise ValueError(f"target_modules {missing} match nothing; layers here: {hint}")


def _sites(model: PeftModel, adapter: str) -> dict[str, Site]:
    found = {}
    for module_name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module_name.startswith(PREFIX):
            name = module_name.removeprefix(PREFIX)
            if not isinstance(module, Past) and type(module) not in KINDS:
                kinds = f"{type(module).__name__} on a {type(module.get_base_layer()).__name__}"
                known = "Linear on a Linear or Conv1D, also in 4 or 8 bits of bitsandbytes, Conv2d on a Conv2d"
                raise ValueError(f"{name}: LoRA of kind {kinds} is not supported; known: {known}")
            if adapter in module.lora_A:
                found[name] = Site(name, module, adapter)
                _give_past(found[name])
    return found


def _give_past(site: Site) -> None:
    """Turn the layer of ``site`` into one with a past, if it is none yet."""
    name, layer, (out, r), in_ = site.name, site.layer, site.B.shape, site.A.shape[1]
    if site.adapter in layer.lora_variant:
        kind = type(layer.lora_variant[site.adapter]).__name__
        raise ValueError(f"{name}: only plain LoRA is supported, not {kind} (DoRA and kin)")
    if layer.lora_bias[site.adapter]:
        raise ValueError(f"{name}: lora_bias=True is not supported: its bias is no part of B A")
    if isinstance(layer, LoraConv2d):
        _check_convolution(name, layer.get_base_layer())
    if r > min(out, in_):
        ways = "lower r, or leave it out with exclude_modules; task_type='SEQ_CLS' trains a classifier as a whole"
        raise ValueError(f"{name}: rank {r} is larger than the layer, ({out}, {in_}): {ways}")
    if not isinstance(layer, Past):
        layer.__class__ = KINDS[type(layer)]
        layer.register_buffer("past_A", site.A.new_empty(0, in_), persistent=False)
        layer.register_buffer("past_B", site.B.new_empty(out, 0), persistent=False)
        layer.past_merged = False
    if not len(layer.past_A):
        layer.past_adapter = site.adapter


def _check_convolution(name: str, base: nn.Conv2d) -> None:
    """Refuse a convolution whose stock LoRA is no change of its weight."""
    for key, plain in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        if (value := getattr(base, key)) != plain:
            raise ValueError(
                f"{name}: LoRA of a Conv2d with {key}={value!r} is not supported, since peft's is no change B A of its "
                f"weight; leave it out with exclude_modules"
            )


class PastLinear(OnLinear, LoraLinear):
    """A stock LoRA layer on a Linear or Conv1D, with a past."""


class PastConv2d(OnConv2d, LoraConv2d):
    """A stock LoRA layer on a Conv2d, with a past."""


KINDS: dict[type, type[Past]] = {LoraLinear: PastLinear, LoraConv2d: PastConv2d}
if is_bnb_available():
    from peft.tuners.lora import Linear4bit, Linear8bitLt

    class PastLinear4bit(OnQuantized, Linear4bit):
        """A stock LoRA layer on a linear map of bitsandbytes in 4 bits, with a past."""

    class PastLinear8bit(OnQuantized, Linear8bitLt):
        """A stock LoRA layer on a linear map of bitsandbytes in 8 bits, with a past."""

    KINDS |= {Linear4bit: PastLinear4bit, Linear8bitLt: PastLinear8bit}


def _save_plain(
    model: PeftModel, save_directory: str, *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
) -> None:
    """``save_pretrained`` that writes stock LoRA whatever the model holds: no past, no parametrised factors."""
    state, configs = model.state_dict() if state_dict is None else state_dict, dict(model.peft_config)
    try:
        for adapter, config in configs.items():
            here = _sites(model, adapter)
            state = baked_state(state, here)
            model.peft_config[adapter] = baked_config(config, here)
        PeftModel.save_pretrained(model, save_directory, *args, state_dict=state, **kwargs)
    finally:
        model.peft_config.update(configs)


def _flat(weight: Tensor) -> Tensor:
    """A factor as a matrix; the parameter itself where it is one."""
    return weight if weight.dim() == 2 else weight.flatten(1)
