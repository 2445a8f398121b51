"""``retain state merge``: two sites that have measured the same tasks on different rows, as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from retain import artefact, store
from retain.artefact import Learned, Manifest, Part
from retain.files import StoreError, replace_folder
from retain.fisher.choice import Choice, choose
from retain.merging import merged
from retain.methods import METHODS

MERGE = ("ewc", "ewc-lora")  # what they remember is a mean over rows, and weights


def merge(folders: Sequence[Path], to: Path, weights: Sequence[float] | None, console: Console) -> None:
    """Write the state ``to`` that one site with the rows of all would have.

    Args:
        folders: the states.
        to: replaced as a whole.
        weights: of each site's importance; None: its share of the rows.
        console: to say what was done.

    Raises:
        StoreError: states of different models, methods, settings, weights or tasks; of a method that does not add up;
            or of the same rows.
    """
    manifests = [artefact.read_manifest(folder) for folder in folders]
    first = manifests[0]
    if len(folders) < 2:
        raise StoreError(f"{folders[0]}: one state alone; at least two are merged")
    if first.method not in MERGE:
        raise StoreError(f"{folders[0]}: what {first.method} remembers is no sum over rows; known: {', '.join(MERGE)}")
    for folder, other in zip(folders[1:], manifests[1:], strict=True):
        artefact.check_alike(other, first, folder)
        _check_weights(folders[0], folder)
    tasks, shares = _together(folders, manifests)
    shares = list(weights) if weights else shares
    if len(shares) != len(folders) or min(shares) <= 0:
        raise StoreError(f"weights {shares}: expected one above zero for each of {len(folders)} states")
    states = [store.read_tensors(folder / artefact.METHOD) for folder in folders]
    found, exact, left = merged(states, shares, _choice(first))
    parts = [
        Part(weight=w, rows={task.name: task.rows for task in m.tasks}, files=m.files)
        for w, m in zip(shares, manifests, strict=True)
    ]

    def fill(fresh: Path) -> None:
        store.write(fresh / artefact.MODEL, (folders[0] / artefact.MODEL).read_bytes())
        store.write_tensors(fresh / artefact.METHOD, found)
        artefact.write_manifest(fresh, first, tasks, merged=[part.model_dump() for part in parts], exact=exact)

    replace_folder(to, fill)
    said = ", ".join(f"{folder} x {weight:.4g}" for folder, weight in zip(folders, shares, strict=True))
    console.print(f"{to}: {said}", highlight=False, soft_wrap=True)
    sure = "the sum is exact" if exact else "[yellow]not exact[/]: the form keeps a part of each sum (docs/state.md)"
    console.print(sure, highlight=False, soft_wrap=True)
    if left:
        console.print(f"left out, the sites differ: {', '.join(left)}", highlight=False, soft_wrap=True)


def _check_weights(one: Path, other: Path) -> None:
    """See that both were measured around the same weights, to the bit."""
    here, there = (store.read_tensors(folder / artefact.MODEL) for folder in (one, other))
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there or not torch.equal(here[name], there[name]):
            raise StoreError(
                f"{other}: {name} is not that of {one}: importance adds up around the same weights only; measure both "
                "from one state, with training.learning_rate=0"
            )


def _together(folders: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[list[Learned], list[float]]:
    """The tasks of all rows, and each site's share of those that differ."""
    tasks, shares = list[Learned](), list[tuple[float, ...]]()
    for same in zip(*(sorted(m.tasks, key=lambda t: (t.number, t.name)) for m in manifests), strict=False):
        first = same[0]
        if any((t.name, t.number, t.labels) != (first.name, first.number, first.labels) for t in same):
            raise StoreError(f"{folders[0]} has learned {first.name!r} where the others have {same[-1].name!r}")
        prints = [task.fingerprint for task in same]
        if None not in prints and len(set(prints)) == 1:
            tasks.append(first)
            continue
        if len(set(prints)) < len(prints):
            raise StoreError(f"task {first.name!r}: two states are of the same rows, or it is not known of which")
        rows = [task.rows or 0 for task in same]
        shares.append(tuple(count / sum(rows) for count in rows))
        digest = hashlib.sha256("".join(map(str, prints)).encode()).hexdigest()
        tasks.append(first.model_copy(update={"rows": sum(rows), "fingerprint": digest}))
    if len({len(m.tasks) for m in manifests}) > 1:
        raise StoreError("the states have not learned the same tasks")
    if not shares:
        raise StoreError("the states are of the same rows: there is nothing to add")
    if len(set(shares)) > 1:
        raise StoreError(
            "the sites have other shares of the rows of each task: merge after every task, or give --weights"
        )
    return tasks, list(shares[0])


def _choice(manifest: Manifest) -> Choice:
    maker: Any = METHODS[manifest.method]
    own = {key: int | None for key in maker.FISHER if key == "sketches"}
    return choose(manifest.keywords.get("fisher"), maker.FISHER, own)
