"""What lies beside the checkpoints of a transformers Trainer: a training that was stopped goes on to the bit."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from retain.lora import adapter_parameters
from retain.method import Method

# Beside a checkpoint of Trainer: what parametrised factors are made of, and what the method has measured on the way.
ORIGINALS, PROGRESS = "originals.safetensors", "progress.safetensors"


def originals(method: Method) -> dict[str, nn.Parameter]:
    """The parameters of parametrised factors, by their names in the model."""
    if not method.sites:
        return {}
    return {name: p for name, p in adapter_parameters(method.model).items() if ".parametrizations." in name}


@torch.no_grad()
def restore_originals(method: Method, checkpoint: Path) -> None:
    """Put the parameters of parametrised factors back to the bit, as they were when ``checkpoint`` was written.

    Its stock factors have been loaded. Where the file is missing, or belongs to other factors (Trainer may continue
    from a folder that is not its own), they stay as they are and a warning says so.
    """
    parameters, path = originals(method), checkpoint / ORIGINALS
    if not parameters:
        return
    loaded = {name: site.B.detach().clone() for name, site in method.sites.items()}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    kept = load_file(path) if path.exists() else {}
    if kept.keys() == parameters.keys():
        for name, p in parameters.items():
            p.copy_(kept[name])
        if all(torch.allclose(site.B, loaded[name], rtol=1e-4, atol=1e-7) for name, site in method.sites.items()):
            return
        for name, p in parameters.items():
            p.copy_(before[name])
    warnings.warn(
        f"{path} is missing or of another training: it continues, but not to the bit, with factors made of stock ones",
        stacklevel=2,
    )


def restore_progress(method: Method, checkpoint: Path) -> None:
    """Give back what ``method`` had measured when ``checkpoint`` was written; warn if that is lost."""
    if not method.progress():
        return
    if (path := checkpoint / PROGRESS).exists():
        method.load_progress(load_file(path))
    else:
        warnings.warn(f"{path} is missing: what the method measured before is lost, and it measures on", stacklevel=2)


def checkpoint_folder(arguments: Any, state: Any) -> Path:
    """Where Trainer writes what it has at this step."""
    return Path(arguments.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: Trainer's own state is the last of its files."""
    for unfinished in folder.glob("checkpoint-*"):
        if not (unfinished / TRAINER_STATE_NAME).exists():
            shutil.rmtree(unfinished)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
