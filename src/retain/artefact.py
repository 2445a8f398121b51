"""What a method remembers, as an artefact of its own: two files of tensors, and a manifest that says whose they are.

    model.safetensors    what trains, as it was when the last task ended
    method.safetensors   ``Method.state_dict``
    manifest.json        base model, targets, method and tasks, with fingerprints, and the hashes of both files

Format 1 had no manifest: such a state belongs to the run that it lies in, and gets that run's with its next task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from retain.files import StoreError
from retain.intake import hash_of, inside, read_section
from retain.lora import Site, adapter_parameters
from retain.store import write_json

FORMAT = 2
MANIFEST, MODEL, METHOD = "manifest.json", "model.safetensors", "method.safetensors"
ORIGIN = "origin.json"  # in a run that has begun with a state: the manifest of that
SAMPLED = 1024  # numbers of each tensor of the base model
PACKAGES = ("retain", "torch", "transformers", "peft")
SHOWN = 12  # digits of a fingerprint


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Base(_Part):
    """The model under the adapter; ``fingerprint`` is of its frozen weights, ``name`` is for people."""

    name: str
    kind: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.fingerprint[:SHOWN]})"


class Targets(_Part):
    """The adapted layers: their names, sizes, ranks and scales have the ``fingerprint``."""

    layers: int
    ranks: list[int]
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.layers} layers of rank {', '.join(map(str, self.ranks))} ({self.fingerprint[:SHOWN]})"


class Learned(_Part):
    """A finished task: how many rows trained it, SHA-256 of their content if it is known, what its classes are."""

    name: str
    number: int
    labels: list[str] = []
    rows: int | None = None
    fingerprint: str | None = None


class Part(_Part):
    """One of the states that a merged one is of: its weight, rows by task, and the hashes of its files."""

    weight: float
    rows: dict[str, int | None]
    files: dict[str, str]


class Identity(_Part):
    """Whom a state belongs to; ``keywords`` of the method are complete, ``free`` are those that may change."""

    base: Base
    targets: Targets
    method: str
    keywords: dict[str, Any]
    free: list[str] = []
    scenario: str


class Manifest(Identity):
    """What ``manifest.json`` holds; of a merged state also the ``Part``s, and whether they add up exactly."""

    format: int
    tasks: list[Learned]
    made: dict[str, str] = {}
    files: dict[str, str] = Field(default={})
    merged: list[Part] | None = None
    exact: bool = True

    @property
    def blocks(self) -> list[Learned]:
        """The tasks that were trained, in order: what ``learn_base`` measured has no number of its own."""
        return sorted((task for task in self.tasks if task.number >= 0), key=lambda task: task.number)


def base_of(model: Any, name: str) -> Base:
    """The model under the adapter of ``model``, loaded from ``name``: of a folder only its last part is told.

    The fingerprint is SHA-256 of name, dtype, shape and up to ``SAMPLED`` evenly spaced numbers of every frozen tensor:
    another checkpoint has another one, and a large model takes no time. It is no protection against forgery.
    """
    digest, adapter = hashlib.sha256(), adapter_parameters(model).keys()
    for key, p in sorted(model.named_parameters()):
        if key not in adapter and ".original_module." not in key and ".lora_" not in key:
            _digest(digest, key.replace(".base_layer.", "."), p)
    told = Path(name).resolve().name if Path(name).exists() else name
    return Base(name=told, kind=type(model.get_base_model()).__name__, fingerprint=digest.hexdigest())


def targets_of(sites: Mapping[str, Site]) -> Targets:
    """The layers that an adapter has."""
    digest = hashlib.sha256()
    for name, site in sorted(sites.items()):
        digest.update(f"{name} {len(site.B)} {site.A.shape[1]} {len(site.A)} {site.scale}\n".encode())
    ranks = sorted({len(site.A) for site in sites.values()})
    return Targets(layers=len(sites), ranks=ranks, fingerprint=digest.hexdigest())


def write_manifest(folder: Path, identity: Identity, tasks: Sequence[Learned], **more: Any) -> Manifest:
    """Say of the two files of tensors in ``folder`` whose they are; written last."""
    made = {name: version(name) for name in PACKAGES}
    files = {name: hash_of(folder / name) for name in (MODEL, METHOD)}
    told: dict[str, Any] = identity.model_dump() | {"format": FORMAT, "tasks": [t.model_dump() for t in tasks]}
    manifest = Manifest.model_validate(told | {"made": made, "files": files} | more)
    write_json(folder / MANIFEST, manifest.model_dump(exclude_none=True))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Whose state lies in ``folder``; its files are checked against their hashes.

    Raises:
        StoreError: no state, a newer format, or a file that is damaged, missing or elsewhere.
    """
    manifest, path = parse_manifest(folder / MANIFEST), folder / MANIFEST
    if missing := {MODEL, METHOD} - manifest.files.keys():
        raise StoreError(f"{path}: damaged: names no {min(missing)}")
    for name, digest in manifest.files.items():
        if not (file := inside(folder, name)).exists():
            raise StoreError(f"{file}: missing, though {path} names it")
        if hash_of(file) != digest:
            raise StoreError(f"{file}: damaged, its hash is not the one in {path}")
    return manifest


def parse_manifest(path: Path) -> Manifest:
    """The manifest at ``path``.

    Raises:
        StoreError: missing, damaged, or of a newer format.
    """
    found = read_section(path)
    if isinstance(number := found.get("format"), int) and number > FORMAT:
        raise StoreError(
            f"{path}: a state of format {number}, and retain {version('retain')} knows {FORMAT} at most: update retain"
        )
    if number != FORMAT:
        raise StoreError(f"{path}: no state of retain: format {number!r}, expected {FORMAT}")
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: damaged: {where}: {first['msg']}") from None


def origin(state: str | None, output: Path) -> Manifest | None:
    """The manifest of the ``state`` that a run begins with, if it does; a run that has begun has a copy of its own.

    Raises:
        StoreError: no state, or a damaged one.
    """
    if state is None:
        return None
    return parse_manifest(output / ORIGIN) if (output / ORIGIN).exists() else read_manifest(Path(state))


def keep_origin(state: str | None, output: Path) -> None:
    """Let a run that begins with ``state`` have a copy of its manifest."""
    if (manifest := origin(state, output)) is not None and not (output / ORIGIN).exists():
        write_json(output / ORIGIN, manifest.model_dump(exclude_none=True))


def check_alike(there: Identity, here: Identity, where: Path | str) -> None:
    """Refuse a state that belongs to another base model, method or adapter than ``here``, with both named.

    Keywords of the method must be the same, but for those that are ``free``.

    Raises:
        StoreError: the first thing that differs.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("the base model", there.base, here.base),
        ("the method", repr(there.method), repr(here.method)),
        ("the scenario", repr(there.scenario), repr(here.scenario)),
        ("the targets", there.targets, here.targets),
    ]
    for what, theirs, ours in pairs:
        same = theirs.fingerprint == ours.fingerprint if isinstance(theirs, Base | Targets) else theirs == ours
        if not same:
            raise StoreError(f"{where}: a state of {what} {theirs}, and here is {ours}")
    for key in sorted(there.keywords.keys() | here.keywords.keys()):
        if key in here.free or there.keywords.get(key) == here.keywords.get(key):
            continue
        raise StoreError(
            f"{where}: a state of method.{key}={there.keywords.get(key)!r}, and here it is "
            f"{here.keywords.get(key)!r}; what was measured one way does not go on another way"
        )


def _digest(digest: Any, name: str, tensor: Tensor) -> None:
    flat = tensor.detach().flatten()
    taken = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(taken.view(torch.uint8).numpy().tobytes())
