"""A classifier that a checkpoint lacks: it starts from nothing, and learns little unless it is trained as a whole."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn


def check_head(model: Any) -> None:
    """Warn of a new classifier of a peft ``model`` that does not train as a whole.

    That it is new is told by the checkpoint's config, which names the kind of model that was saved. Where it names
    none, or this one, the classifier may have been trained before, and can be left as it is.
    """
    base = model.get_base_model()
    config: Any = getattr(base, "config", None)
    kind = type(base).__name__
    saved = getattr(config, "architectures", None) or [kind]
    if not kind.endswith("Classification") or kind in saved:
        return
    heads = [
        (name, module.weight.requires_grad)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == config.num_labels
        and not name.startswith(f"{base.base_model_prefix}.")
        and "original_module" not in name
        and ".lora_" not in name
    ]
    if not heads or heads[-1][1]:
        return
    name = heads[-1][0].partition(".")[0]
    state = "adapted on top of random weights" if heads[-1][0].endswith("base_layer") else "frozen"
    warnings.warn(
        f"{name!r} of this {kind} is new (its checkpoint is a {saved[0]}) and {state}: no exported adapter has it. Let "
        f"LoraConfig train it as a whole: modules_to_save=[{name!r}], exclude_modules=[{name!r}]; of texts, "
        "task_type='SEQ_CLS' does both",
        stacklevel=4,
    )
