"""Going on from a state: that of a stage of the same run, or an artefact that another run has left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain import artefact, store
from retain import config as configuration
from retain.artefact import Identity, Learned, Manifest
from retain.heads import heads_of
from retain.lora import adapter_parameters
from retain.workshop import LOSSES, STATE, Workshop


def restore(shop: Workshop, folder: Path) -> None:
    """Put model and method back to the end of the finished stage in ``folder``.

    Raises:
        StoreError: a file of the state is missing, damaged, or of another model.
    """
    store.verify(folder, STATE, LOSSES)
    _take(shop, folder / STATE)


def begin_with(shop: Workshop, state: Path) -> None:
    """Put model and method to where another run has left ``state``.

    Raises:
        StoreError: of another base model, method or adapter, or damaged.
    """
    if shop.method.cumulative:
        raise store.StoreError(f"{state}: {shop.config.method['name']} trains on the rows of all tasks at once")
    _take(shop, state)


def write_state(shop: Workshop, folder: Path, earlier: Manifest | None, reads: Iterable[Mapping[str, Any]]) -> None:
    """Write what the next task goes on from.

    Args:
        shop: after a boundary.
        folder: of the artefact.
        earlier: the manifest of the state before.
        reads: what the ledger tells of the rows that the stage was given.
    """
    store.write_tensors(folder / artefact.MODEL, _trained(shop, shop.method.number))
    store.write_tensors(folder / artefact.METHOD, shop.method.state_dict())
    told = {task.name: task for task in earlier.tasks} if earlier else {}
    given = {read["task"]: read for read in reads if read["split"] == "train"}
    tasks = []
    for task in _learned(shop, {name: int(number) for name, number in shop.method.learned.items()}):
        rows = {key: given[task.name][key] for key in ("rows", "fingerprint")} if task.name in given else {}
        tasks.append(told.get(task.name, task.model_copy(update=rows)))
    artefact.write_manifest(folder, identity_of(shop), tasks)


def manifest_of(shop: Workshop, state: Path) -> Manifest:
    """Whose ``state`` it is. One of format 1, which lies in a run, becomes that run's, of whose rows nothing is known.

    Raises:
        StoreError: no state, a newer format, or a damaged file.
    """
    if (state / artefact.MANIFEST).exists() or not (state / artefact.METHOD).exists():
        return artefact.read_manifest(state)
    prefix, kept = "learned/", store.read_tensors(state / artefact.METHOD)
    learned = {key.removeprefix(prefix): int(kept[key]) for key in kept if key.startswith(prefix)}
    told: dict[str, Any] = identity_of(shop).model_dump() | {"format": artefact.FORMAT, "made": {}}
    return Manifest.model_validate(told | {"tasks": [task.model_dump() for task in _learned(shop, learned)]})


def identity_of(shop: Workshop) -> Identity:
    """Whom a state that this run leaves belongs to."""
    return Identity(
        base=shop.base,
        targets=artefact.targets_of(shop.method.sites),
        method=shop.config.method["name"],
        keywords=json.loads(json.dumps(configuration.method_keywords(shop.config))),  # as they are when read
        free=[shop.method.knob[0]] if shop.method.knob else [],
        scenario=shop.config.scenario,
    )


def _take(shop: Workshop, state: Path) -> None:
    manifest = manifest_of(shop, state)
    artefact.check_alike(manifest, identity_of(shop), state)
    path, every, trained = state / artefact.MODEL, adapter_parameters(shop.model), _trained(shop, len(manifest.blocks))
    if store.shapes(path).keys() == every.keys():  # of format 1, and of methods that train all at once
        trained = every
    tensors = store.read_tensors(path, {name: tuple(p.shape) for name, p in trained.items()})
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    try:
        shop.method.load_state_dict(store.read_tensors(state / artefact.METHOD))
    except ValueError as error:
        raise store.StoreError(f"{state / artefact.METHOD}: {error}") from error


def _trained(shop: Workshop, tasks: int) -> dict[str, nn.Parameter]:
    """What so many ``tasks`` have trained: all but the head rows of those to come, which are as they were drawn."""
    heads, parameters = heads_of(shop.model), adapter_parameters(shop.model)
    if heads is None or shop.method.cumulative:
        return parameters
    fresh = {id(p) for blocks in (heads.weights, heads.biases) for p in list(blocks)[tasks:]}
    return {name: p for name, p in parameters.items() if id(p) not in fresh}


def _learned(shop: Workshop, numbers: Mapping[str, int]) -> list[Learned]:
    """The tasks that have ``numbers``, by name, with their classes."""
    labels = [*shop.stream.before, *shop.stream.labels]
    known = dict(enumerate(labels))
    ordered = sorted(numbers.items(), key=lambda item: item[1])
    return [Learned(name=name, number=number, labels=known.get(number, [])) for name, number in ordered]
