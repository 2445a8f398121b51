"""The hint that an error about an unknown name ends with."""

import difflib
from collections.abc import Iterable

# What people call a thing -> what transformers and peft call it.
ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
}


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the known name nearest to ``name``, or nothing when none is near."""
    known = list(known)
    near = [n for n in known if n == ALIASES.get(str(name))] or difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
