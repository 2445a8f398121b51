"""What is on disk: JSON, tensors, finished stages, and the stock adapter that leaves. Safetensors and JSON only."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers import GenerationMixin

from retain.files import StoreError, replace_folder, write
from retain.intake import hash_of, inside, read_json, read_section, read_tensors, shapes
from retain.pipelines import SUBFOLDER
from retain.task import evaluating
from retain.vllm import judge

__all__ = ["StoreError", "hash_of", "read_json", "read_tensors", "shapes"]

DONE = "done"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically, with the keys in the order given."""
    write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a flat dict of tensors as safetensors, atomically."""
    write(path, safetensors.torch.save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}))


def close(folder: Path, without: str = "") -> None:
    """Declare a stage finished: ``done``, written last, names the hashes of its files, but of those in ``without``."""
    names = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {path: name.as_posix() for path, name in names.items() if name.parts[0] not in (without, DONE)}
    write_json(folder / DONE, {name: hash_of(path) for path, name in kept.items()})


def stage_folders(folder: Path) -> list[Path]:
    """Where the stages of the run in ``folder`` are, finished or not: the untouched model's, then the tasks' in order.

    Raises:
        StoreError: one of them is a link that leads elsewhere.
    """
    every = [folder / "base", *sorted(folder.glob("tasks/*"))]
    return [inside(folder, path.relative_to(folder).as_posix()) for path in every]


def is_closed(folder: Path) -> bool:
    """Whether a stage was finished."""
    return (folder / DONE).exists()


def verify(folder: Path, *names: str) -> None:
    """Check files and folders of a finished stage against their hashes.

    Raises:
        StoreError: a file that is missing, not what the stage wrote, or not the stage's.
    """
    hashes = _hashes(folder)
    for name in names:
        for file in [n for n in hashes if n.startswith(f"{name}/")] or [name]:
            path = inside(folder, file)
            if not path.exists():
                raise StoreError(f"{path}: missing, though its stage is finished")
            if hashes.get(file) != hash_of(path):
                raise StoreError(f"{path}: damaged, its hash is not the one in {folder / DONE}")


def verify_all(folder: Path) -> set[str]:
    """Check all files that a finished stage has named against their hashes; returns the names.

    Raises:
        StoreError: as of ``verify``.
    """
    names = set(_hashes(folder))
    verify(folder, *sorted(names))
    return names


def _hashes(folder: Path) -> dict[str, str]:
    hashes = read_section(folder / DONE)
    if not all(isinstance(value, str) for value in hashes.values()):
        raise StoreError(f"{folder / DONE}: damaged: names no hashes")
    return hashes


def size(path: Path) -> int:
    """Bytes of the file ``path``, or of all files under it."""
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def by_kind(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of ``Method.state_dict`` by what they are: the first part of an entry's name."""
    kinds: dict[str, int] = {}
    for key, tensor in state.items():
        kind = key.partition("/")[0]
        kinds[kind] = kinds.get(kind, 0) + tensor.nbytes
    return kinds


def export(model: Any, folder: str | Path, batch: Mapping[str, Tensor] | None = None) -> float | None:
    """Write the adapter of ``model`` as a stock PEFT LoRA, the past baked in: ``PeftModel.from_pretrained`` loads it.

    Of a model that generates, a warning names every rule of vLLM's loader that the adapter breaks (``retain.vllm``).

    Args:
        model: a peft model with the coefficients to export in place.
        folder: replaced as a whole.
        batch: inputs on which to compare the model with the file, loaded in a clean process (see ``check_adapter``).

    Returns:
        The largest logit difference on ``batch``, if one was given.
    """
    write_adapter(Path(folder), model, {})
    if isinstance(model.get_base_model(), GenerationMixin):
        for obstacle in judge(folder).obstacles:
            warnings.warn(f"{folder}: vLLM would not load this adapter. {obstacle}", stacklevel=2)
    return None if batch is None else check_adapter(Path(folder), model, [batch])


def write_adapter(folder: Path, model: Any, labels: Mapping[str, Any]) -> None:
    """Write the adapter of ``model`` as a stock PEFT LoRA, with ``labels`` saying what its outputs mean."""
    base = model.get_base_model()
    (library, name), kind = _origin(base), type(base).__name__
    told = {key: f"torch.{value}" if key == "torch_dtype" else repr(value) for key, value in _loading(base).items()}
    options = "".join(f", {key}={value}" for key, value in told.items())
    how = f'from {library} import {kind}\n\nbase = {kind}.from_pretrained("{name}"{options})'
    readme = _README.format(
        base=name,
        what=name or kind,
        how=how if name else f"base = ...  # the {kind} that it was trained on",
        more=_more(base, labels),
    )

    def fill(fresh: Path) -> None:
        model.save_pretrained(str(fresh))
        write(fresh / "README.md", readme)
        if labels:
            write_json(fresh / "labels.json", labels)

    replace_folder(folder, fill)


def _more(base: Any, labels: Mapping[str, Any]) -> str:
    """What else there is to say of an adapter."""
    if labels:
        return "\n`labels.json` says which outputs belong to which task, and what they mean.\n"
    if part := _part(base):
        return f"\n`pipe.{part} = model` puts it in its pipeline, `pipe = DiffusionPipeline.from_pretrained(...)`.\n"
    return ""


def check_adapter(folder: Path, model: Any, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """The largest logit difference between ``model`` and the stock adapter in ``folder``, loaded in a clean process.

    That process knows transformers (or diffusers) and peft and nothing of retain: what it computes on ``batches``
    (without labels) is what any user of the adapter gets. Of several outputs the first counts.

    Raises:
        StoreError: the adapter does not load.
    """
    base, device = model.get_base_model(), next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        here = [model(**{k: v.to(device) for k, v in batch.items()})[0].float().cpu() for batch in batches]
    with tempfile.TemporaryDirectory() as temporary:
        inputs, outputs = Path(temporary, "in.safetensors"), Path(temporary, "out.safetensors")
        write_tensors(inputs, {f"{i}/{name}": t for i, batch in enumerate(batches) for name, t in batch.items()})
        told = [*_origin(base), type(base).__name__, json.dumps(_loading(base))]
        command = [sys.executable, "-c", _CLEAN, *told, str(folder), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise StoreError(f"{folder}: this adapter does not load with peft: {reason}")
        there = read_tensors(outputs)
    return float(torch.stack([(there[str(i)] - logits).abs().max() for i, logits in enumerate(here)]).max())


def _origin(base: Any) -> tuple[str, str]:
    """The library that ``base`` is of, and the name or folder that it was loaded from, empty if from none."""
    return type(base).__module__.partition(".")[0], getattr(getattr(base, "config", None), "_name_or_path", "")


def _loading(base: Any) -> dict[str, Any]:
    """The keywords of ``from_pretrained`` that give the model under the adapter."""
    dtype = str(next(base.parameters()).dtype).removeprefix("torch.")
    if _origin(base)[0] == "diffusers":
        wide = {} if dtype == "float32" else {"torch_dtype": dtype}
        return wide | ({"subfolder": part} if (part := _part(base)) else {})
    options: dict[str, Any] = {"dtype": dtype}
    if (few := getattr(getattr(base, "config", None), "quantization_config", None)) is not None:
        options["quantization_config"] = few.to_diff_dict()
    if "num_input_channels" in (told := base.config.to_dict() if hasattr(base, "config") else {}):
        options["num_input_channels"] = told["num_input_channels"]  # of one that forecasts: no weight depends on it
    if type(base).__name__.endswith("Classification"):
        options |= {"num_labels": base.config.num_labels, "ignore_mismatched_sizes": True}
        if (padding := base.config.to_dict().get("pad_token_id")) is not None:
            options["pad_token_id"] = padding
    return options


def _part(base: Any) -> str:
    """Where in a pipeline ``base`` lies, if it came from one."""
    return str(getattr(base, "config", {}).get(SUBFOLDER, "")) if _origin(base)[0] == "diffusers" else ""


_CLEAN = """
import importlib, sys, json, torch, peft
from safetensors.torch import load_file, save_file
library, base, kind, options, folder, inputs, outputs = sys.argv[1:]
options = {k: getattr(torch, v) if k == "torch_dtype" else v for k, v in json.loads(options).items()}
base = getattr(importlib.import_module(library), kind).from_pretrained(base, **options)
model = peft.PeftModel.from_pretrained(base, folder).eval()
batches = {}
for key, tensor in load_file(inputs).items():
    number, name = key.split("/")
    batches.setdefault(number, {})[name] = tensor
with torch.no_grad():
    save_file({n: model(**batch)[0].float().contiguous() for n, batch in batches.items()}, outputs)
"""

_README = """---
base_model: {base}
library_name: peft
---
A LoRA adapter of `{what}`, trained on a sequence of tasks with retain. It needs nothing but peft:

```python
from peft import PeftModel
{how}
model = PeftModel.from_pretrained(base, "this/folder")
```
{more}"""
