"""What a run tells its ledger: under which versions it ran, what each stage was given to read, and what it has kept."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from retain import config as configuration
from retain import store
from retain.files import StoreError
from retain.ledger import LEDGER, Ledger
from retain.task import Task
from retain.workshop import Stage, Workshop

PACKAGES = ("retain", "torch", "transformers", "peft", "datasets", "safetensors")
CHUNK = 1000  # rows that are hashed at a time


def opened(path: Path, shop: Workshop, finished: Sequence[Stage], left: Sequence[Stage]) -> Ledger:
    """The ledger of a run that stands where ``finished`` ends, and goes on with ``left``.

    Raises:
        StoreError: the ledger is damaged, or is not that of these stages.
    """
    fresh, ledger = not path.exists(), Ledger(path) if path.exists() or left else None
    if ledger is None:
        raise StoreError(
            f"{path}: missing, though the run is finished: either it finished under a version that kept no ledger, or "
            f"the ledger was removed. Nothing is left to do: {path.parent / 'results.json'} and the adapter are as "
            "they were, and nothing vouches for what was read"
        )
    if fresh and finished:
        ledger.append("adopted", stages=[stage.name for stage in finished])
    elif (unsaid := unsettled(ledger.entries, finished)) and unsaid == finished[-1:]:
        ended(ledger, finished[-1], after_a_crash=True)
    elif unsaid:
        raise StoreError(
            f"{path}: tells no end of the finished stage {unsaid[0].name!r}: lines are missing, or `done` is another"
        )
    if left:
        text = configuration.dump(shop.config)
        versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        config = hashlib.sha256(text.encode()).hexdigest()
        ledger.append("run", config=config, seed=shop.config.seed, versions=versions, stages=[s.name for s in left])
    return ledger


def unsettled(entries: Iterable[dict[str, Any]], finished: Sequence[Stage]) -> list[Stage]:
    """The ``finished`` stages whose ``done``, as it is, no line names; but for those that were adopted."""
    ends = {(e["number"], e["done"]) for e in entries if e["event"] == "end"}
    adopted = {name for e in entries if e["event"] == "adopted" for name in e["stages"]}
    return [
        s for s in finished if s.name not in adopted and (s.number, store.hash_of(s.folder / store.DONE)) not in ends
    ]


def settle(folder: Path, stages: Sequence[Path], entries: Sequence[dict[str, Any]]) -> None:
    """See that each of the finished ``stages`` is the one whose end ``entries`` tell, and the other way round.

    Raises:
        StoreError: a stage that no line tells of, one that is gone, or a file that is not what was written.
    """
    told = {e["done"]: e["name"] for e in entries if e["event"] == "end"}
    adopted = {name for e in entries if e["event"] == "adopted" for name in e["stages"]}
    for path in stages:
        done = store.hash_of(path / store.DONE)
        own = path.name.partition("-")[2] or "the untouched model"
        if done not in told and own not in adopted:
            raise StoreError(f"{folder / LEDGER}: tells no end of {path}: lines are missing, or its `done` is another")
        told.pop(done, None)
        kept = [n for n in ("scores.json", "adapter", "state") if (path / n).exists() or n == "scores.json"]
        store.verify(path, *kept)
    if told:
        raise StoreError(f"{folder}: the finished stage {next(iter(told.values()))!r} of the ledger is gone")


def begun(ledger: Ledger, shop: Workshop, stage: Stage) -> None:
    """Tell what ``stage`` is given: the training rows of its task (of all, if it is cumulative), and what it scores.

    The first is given the training rows of the guard, if the method measures anything on them.
    """
    tasks, scored = shop.stream.tasks, shop.scored()
    held = scored[len(tasks) :] if shop.method.guards else []
    trains = held if stage.task is None else tasks if shop.method.cumulative else [tasks[stage.number]]
    reads = [_read(task, "train") for task in trains] + [_read(task, "test") for task in scored]
    reads += [_read(task, "test") | {"split": "gauge"} for task in shop.gauging(stage)]
    ledger.append("begin", number=stage.number, name=stage.name, reads=reads)


def ended(ledger: Ledger, stage: Stage, **more: Any) -> None:
    """Tell that ``stage`` is finished, what it has kept, in bytes, and the hash of its ``done``."""
    found = store.read_json(stage.folder / "scores.json")
    told = {key: found[key] for key in ("steps", "seconds", "bytes", "calibration") if key in found}
    done = store.hash_of(stage.folder / store.DONE)
    ledger.append("end", number=stage.number, name=stage.name, done=done, **told, **more)


def _read(task: Task, split: str) -> dict[str, Any]:
    rows = getattr(task, split)
    return {"task": task.name, "split": split, "rows": len(rows), "fingerprint": fingerprint(rows)}


def fingerprint(rows: Any) -> str | None:
    """SHA-256 of the content of a data set's ``rows``, in their order; null if they are no data set's."""
    if not isinstance(rows, datasets.Dataset):
        return None
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(CHUNK):
        bare, sink = table.replace_schema_metadata(None).combine_chunks(), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, bare.schema) as stream:
            stream.write_table(bare)
        digest.update(sink.getvalue())
    return digest.hexdigest()
