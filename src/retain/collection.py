"""A folder of adapters of one base model on shared bases: stock LoRAs go in and come out, no model and no data needed.

`bases.safetensors` has U, V and the cores of every layer, in units of dW; `rest/NAME.safetensors` what an adapter holds
beside its factors, such as a head; `share.json` the base model and the configuration that adapters leave with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from retain import store
from retain.adapterfile import read_adapter_config
from retain.bases import Bases, Change, add, compressed, residuals, union, within
from retain.intake import read_section
from retain.mistakes import check_task_name
from retain.nearest import did_you_mean
from retain.stock import PREFIX

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MANIFEST, BASES, REST = "share.json", "bases.safetensors", "rest"
HELD = 8  # adapters in memory at a time
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """A stock LoRA: its configuration, dW = B A of every layer, and what else it holds, by peft's keys."""

    config: dict[str, Any]
    changes: dict[str, tuple[Tensor, Tensor]]
    rest: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """Adapters on shared bases: bases and cores by layer, what else an adapter holds by task."""

    config: dict[str, Any]
    bases: dict[str, Bases] = field(default_factory=dict)
    rest: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Names, in the order that they came."""
        return list(next(iter(self.bases.values())).cores) if self.bases else []

    @property
    def residuals(self) -> dict[str, float]:
        """The relative error of every task's weight change over all layers (see ``Core``)."""
        return residuals(self.bases.values())

    def bytes(self) -> dict[str, int]:
        """What is kept, by kind."""
        cores = [core for bases in self.bases.values() for core in bases.cores.values()]
        return {
            "bases": sum(bases.U.nbytes + bases.V.nbytes for bases in self.bases.values()),
            "cores": sum(core.left.nbytes + core.right.nbytes for core in cores),
            "rest": sum(t.nbytes for rest in self.rest.values() for t in rest.values()),
        }


def read_adapter(folder: Path) -> Adapter:
    """A stock PEFT LoRA.

    Raises:
        StoreError: no adapter, a damaged one, or one that is no plain LoRA.
    """
    config = read_adapter_config(folder / CONFIG)
    for key, plain in (("peft_type", "LORA"), ("bias", "none"), ("use_dora", False), ("lora_bias", False)):
        if (value := config.get(key, plain)) != plain:
            raise store.StoreError(f"{folder / CONFIG}: {key} is {value!r}; only plain LoRA ({plain!r}) can be shared")
    tensors = store.read_tensors(folder / WEIGHTS)
    pairs: dict[str, dict[str, Tensor]] = {}
    for match in [match for key in tensors if (match := FACTOR.fullmatch(key))]:
        name, side = match.groups()
        pairs.setdefault(name, {})[side] = tensors.pop(match[0])
    if not pairs or any(pair.keys() != {"A", "B"} for pair in pairs.values()):
        raise store.StoreError(f"{folder / WEIGHTS}: holds no pairs lora_A, lora_B")
    if odd := next((n for n, pair in pairs.items() if pair["A"].dim() != 2), None):
        raise store.StoreError(f"{folder / WEIGHTS}: {odd} is no linear layer; convolutions cannot be shared")
    changes = {n: (_scale(config, n, len(p["A"])) * p["B"].float(), p["A"].float()) for n, p in pairs.items()}
    return Adapter(config, changes, tensors)


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write a stock PEFT LoRA, of the rank that each layer has, at scale 1; the folder is replaced."""
    ranks = {name: len(A) for name, (_, A) in adapter.changes.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    own = {"r": common, "lora_alpha": common, "rank_pattern": pattern, "alpha_pattern": pattern}
    config = adapter.config | own | {"use_rslora": False, "init_lora_weights": True, "inference_mode": True}
    tensors = dict(adapter.rest)
    for name, factors in adapter.changes.items():
        tensors |= {f"{PREFIX}{name}.lora_{side}.weight": x for side, x in zip("BA", factors, strict=True)}

    def fill(fresh: Path) -> None:
        store.write_json(fresh / CONFIG, config)
        store.write_tensors(fresh / WEIGHTS, tensors)

    store.replace_folder(folder, fill)


def extended(
    collection: Collection | None,
    adapters: Iterable[tuple[str, Adapter]],
    components: int,
    max_residual: float | None = None,
) -> Collection:
    """``collection`` (None: a new one) with ``adapters``, by name, a few at a time; cut to ``components`` columns.

    Raises:
        ValueError: a name that is taken, another base model, or other layers.
    """
    coming = iter(adapters)
    while group := list(islice(coming, HELD)):
        if collection is None:
            first = group[0][1]
            empty = {site: Bases.empty(*factors) for site, factors in first.changes.items()}
            collection = Collection(first.config, empty)
        rest = dict(collection.rest)
        for name, adapter in group:
            _check(replace(collection, rest=rest), name, adapter)
            rest[name] = adapter.rest
        bases = {}
        for site, old in collection.bases.items():
            wider = add(old, {name: Change(*adapter.changes[site]) for name, adapter in group})
            bases[site] = within(wider, components, 1.0, "relative", max_residual)
        collection = replace(collection, bases=bases, rest=rest)
    if collection is None:
        raise ValueError("no adapters were given")
    return collection


def merged(one: Collection, other: Collection, components: int) -> Collection:
    """The tasks of both, such as those of two sites that have learned apart, on the union of their bases.

    Raises:
        ValueError: a task of the same name, another base model, or other layers.
    """
    _check_alike(one, other.config, other.bases, "the other collection")
    bases = {site: compressed(union(b, other.bases[site]), components) for site, b in one.bases.items()}
    return Collection(one.config, bases, {**one.rest, **other.rest})


def adapter_of(collection: Collection, task: str) -> Adapter:
    """One task's adapter.

    Raises:
        ValueError: there is none of that name; with the nearest.
    """
    if task not in (known := collection.tasks):
        raise ValueError(f"no task {task!r} here; known: {', '.join(known)}{did_you_mean(task, known)}")
    changes = {site: bases.factors(task) for site, bases in collection.bases.items()}
    return Adapter(collection.config, changes, collection.rest.get(task, {}))


def write(folder: Path, collection: Collection) -> None:
    """Write a collection; the bases come last, and what they name is there."""
    for task, rest in collection.rest.items():
        path = folder / REST / f"{task}.safetensors"
        if rest:
            store.write_tensors(path, rest)
        else:
            path.unlink(missing_ok=True)
    store.write_json(folder / MANIFEST, {"format": "retain share, 2", "config": collection.config})
    store.write_tensors(folder / BASES, dict(flat(collection.bases)))


def read(folder: Path) -> Collection:
    """Read a collection.

    Raises:
        StoreError: missing, damaged or foreign.
    """
    manifest = read_section(folder / MANIFEST)
    if manifest.get("format") != "retain share, 2":
        raise store.StoreError(f"{folder / MANIFEST}: written by something else: format {manifest.get('format')!r}")
    bases = nested(store.read_tensors(folder / BASES))
    files = {path.stem: path for path in sorted((folder / REST).glob("*.safetensors"))}
    tasks = next(iter(bases.values())).cores if bases else ()
    return Collection(manifest["config"], bases, {t: store.read_tensors(files[t]) if t in files else {} for t in tasks})


def flat(bases: Mapping[str, Bases]) -> Iterable[tuple[str, Tensor]]:
    """All tensors of ``bases``, with keys LAYER/U, LAYER/V and LAYER/TASK/left, right, sizes."""
    for site, one in bases.items():
        state = one.state()
        yield f"{site}/U", one.U
        yield f"{site}/V", one.V
        for task, core in state["cores"].items():
            yield from ((f"{site}/{task}/{part}", tensor) for part, tensor in core.items())


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Bases]:
    """What ``flat`` was given."""
    states: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        site, *task, part = key.split("/")
        state = states.setdefault(site, {"cores": {}})
        (state["cores"].setdefault(task[0], {}) if task else state)[part] = tensor
    return {site: Bases.from_state(state) for site, state in states.items()}


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha/r of a layer, alpha/sqrt(r) for rsLoRA, by peft's rules for patterns."""
    patterns = config.get("alpha_pattern") or {}
    alphas = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    alpha = next(alphas, config.get("lora_alpha", 8))
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _check(collection: Collection, name: str, adapter: Adapter) -> None:
    if name in collection.rest:
        raise ValueError(f"there is a task {name!r} already; choose another name")
    check_task_name(name)
    _check_alike(collection, adapter.config, adapter.changes, name)


def _check_alike(one: Collection, config: Mapping[str, Any], layers: Mapping[str, Any], name: str) -> None:
    here, there = (c.get("base_model_name_or_path") for c in (one.config, config))
    if here != there:
        raise ValueError(f"{name} belongs to the base model {there!r}, the tasks here to {here!r}")
    if differing := sorted(one.bases.keys() ^ layers.keys()):
        raise ValueError(f"{name} adapts other layers than the tasks here: {', '.join(differing[:3])} in one only")
