"""A LoRA whose past is baked in, in the terms of stock peft: the tensors and the configuration that describe it."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What peft puts before the name that a module has in the base model.
PREFIX = "base_model.model."


def baked_state(state: Mapping[str, Tensor], sites: Mapping[str, Any]) -> dict[str, Tensor]:
    """``state``, by peft's keys, with one plain pair of factors [B, B_past], [A; A_past] for each of ``sites``.

    The present comes from ``state`` where it is plain there (a caller may save other weights than the model's own);
    a parametrised one is replaced.
    """
    plain = {}
    for site in sites.values():
        B_past, A_past = site.past
        for x, axis, factors, past in (("B", 1, site.layer.lora_B, B_past), ("A", 0, site.layer.lora_A, A_past)):
            key = f"{PREFIX}{site.name}.lora_{x}.{site.adapter}.weight"
            present = state.get(key, factors[site.adapter].weight.detach())
            shape = [*present.shape]
            shape[axis] = past.shape[axis]
            plain[key] = torch.cat([present, past.to(present).view(shape)], axis)
    stems = tuple(key.removesuffix("weight") for key in plain)
    return {k: v for k, v in state.items() if not k.startswith(stems)} | plain


def baked_config(config: Any, sites: Mapping[str, Any]) -> Any:
    """A copy of the LoraConfig ``config`` with the full rank of each of ``sites``, and the alpha that keeps its scale.

    Stock initialisation: the file overwrites it, and "orthogonal" would refuse odd ranks. Patterns are anchored: peft's
    would also match every module whose name ends alike.
    """
    ranks = {name: site.A.shape[0] + site.past[1].shape[0] for name, site in sites.items()}
    alphas = {n: _whole(sites[n].scale * (math.sqrt(r) if config.use_rslora else r)) for n, r in ranks.items()}
    plain = copy.copy(config)
    plain.init_lora_weights = True
    plain.r, plain.lora_alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    plain.rank_pattern = {f"^{re.escape(n)}": r for n, r in ranks.items() if r != plain.r}
    plain.alpha_pattern = {f"^{re.escape(n)}": a for n, a in alphas.items() if a != plain.lora_alpha}
    return plain


def _whole(alpha: float) -> float:
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
