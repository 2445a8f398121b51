"""What the ledger of a run says of it: under which versions it ran, and what every stage was given to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain import ledger, store
from retain.ledger import LEDGER
from retain.provenance import settle


@dataclass(frozen=True)
class Stage:
    """A stage that has ended: when, after how many seconds of work, and the rows that it was given."""

    name: str
    ended: str
    seconds: float
    trained: str
    scored: int


@dataclass(frozen=True)
class Told:
    """A ledger in short; ``problem`` is why it is not to be trusted, or empty."""

    lines: int = 0
    stages: list[Stage] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def told(folder: Path, stages: Sequence[Path]) -> Told:
    """The ledger of the run in ``folder``, held against its finished ``stages``."""
    if not (folder / LEDGER).exists():
        return Told(problem="this run has no ledger: nothing says which rows were read when")
    try:
        entries = ledger.read(folder / LEDGER)
        settle(folder, [stage for stage in stages if store.is_closed(stage)], entries)
    except store.StoreError as error:
        return Told(problem=str(error))
    reads = {e["number"]: e["reads"] for e in entries if e["event"] == "begin"}
    ends = {e["number"]: e for e in entries if e["event"] == "end"}
    versions = [e["versions"] for e in entries if e["event"] == "run"]
    return Told(
        len(entries),
        [_stage(end, reads.get(number, [])) for number, end in ends.items()],
        versions[-1] if versions else {},
    )


def _stage(end: dict[str, Any], reads: Sequence[dict[str, Any]]) -> Stage:
    trained = [f"{read['task']} {read['rows']}" for read in reads if read["split"] == "train"]
    scored = sum(read["rows"] for read in reads if read["split"] == "test")
    seconds = sum(end.get("seconds", {}).values())
    return Stage(end["name"], end["time"].replace("T", " ")[:16], seconds, ", ".join(trained), scored)
