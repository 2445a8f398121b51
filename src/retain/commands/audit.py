"""``retain audit``: what a run was given to read, what it has kept, and whether its record is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retain import config as configuration
from retain import ledger, store
from retain.files import StoreError
from retain.ledger import LEDGER, Entry
from retain.provenance import settle

# kind of state -> what it is, to somebody who is responsible for the rows
KINDS = {
    "adapters": "one adapter for each task: weights, no rows",
    "anchor": "weights as they were when a task ended",
    "bases": "directions of inputs or gradients that earlier tasks use; no row by itself",
    "calibration": "how far the loss was foreseen to rise at each boundary, and how far it rose",
    "constant": "what earlier tasks' penalties come to where they agree best: a number for each matrix of weights",
    "factors": "how firmly each group of weights is held",
    "fisher": "how much the loss reacts to weights, summed over a task's rows; no row by itself",
    "groups": "which outputs belong to which task",
    "inputs": "TRAINING ROWS, as the model reads them",
    "learned": "the order of the finished tasks",
    "level": "what the penalty was when the latest task had ended: a number for each matrix of weights",
    "means": "the mean of what the model computes on a task's rows",
    "members": "which weights are held as one group",
    "moved": "how far the first task moved the weights",
    "nodes": "of each task its weights, and how much its loss reacted to them; no row by itself",
    "numbers": "which training rows are kept, by number",
    "outputs": "the model's outputs on the kept training rows",
    "past": "weight changes of earlier tasks, as an adapter has them",
    "reached": "how strongly the earlier tasks were held at the last boundary: one number",
    "sketches": "a few sums of gradients over a task's rows, under random signs",
    "spaces": "bases that all tasks share, and a small core for each",
    "springs": "how firmly weight changes of earlier tasks are held",
    "trained": "the names of what trained beside the adapter",
}


def audit(folder: Path, console: Console) -> None:
    """Check the record of the run in ``folder`` and say what it shows.

    Raises:
        StoreError: no run, a ledger that was tampered with, or a finished stage that is not what it tells.
    """
    if not (folder / "config.yaml").exists():
        raise StoreError(f"{folder} holds no run: it has no config.yaml")
    entries = ledger.read(folder / LEDGER)
    names = {e["number"]: e["name"] for e in entries if e["event"] == "end"}
    folders = [path for path in store.stage_folders(folder) if store.is_closed(path)]
    settle(folder, folders, entries)
    console.print(
        f"{folder / LEDGER}: {len(entries)} lines, every hash follows from the line before; "
        f"the files of {len(folders)} finished stages are those that were written",
        soft_wrap=True,
        highlight=False,
    )
    for entry in entries:
        if entry["event"] in ("adopted", "mended", "branched"):
            console.print(f"[yellow]line {entry['n'] + 1}[/]: {_told(entry)}", soft_wrap=True, highlight=False)
    state = next((path / "state" for path in reversed(folders) if (path / "state").exists()), None)
    tensors = {} if state is None else store.read_tensors(state / "method.safetensors")
    _print_reads(console, entries, names, tensors)
    _print_kept(console, configuration.load(folder / "config.yaml").method["name"], tensors)


def _told(entry: Entry) -> str:
    if entry["event"] == "adopted":
        return f"finished before this ledger began, nothing is known of what they read: {', '.join(entry['stages'])}"
    if entry["event"] == "branched":
        return f"the lines before are those of {entry['trunk']}; this run branched off, with its own {entry['keyword']}"
    return f"a kill had torn the line before it; {entry['bytes']} bytes of it were cut off"


def _print_reads(console: Console, entries: list[Entry], names: dict[int, str], tensors: dict[str, Any]) -> None:
    table = Table("task", "training rows", "fingerprint", "of training rows")
    last: dict[str, tuple[int, dict[str, Any]]] = {}
    for entry in entries:
        for read in entry["reads"] if entry["event"] == "begin" else ():
            if read["split"] == "train":
                last[read["task"]] = (entry["number"], read)
    for task, (number, read) in last.items():
        latest = max(names, default=number)
        kept = tensors.get(f"numbers/{task}")
        said = f"none was given to anything after stage {number + 1}"
        if kept is not None:
            rows = ", ".join(str(int(i)) for i in kept)
            said = f"{len(kept)} are kept and read by every later stage, in the order of the data: {rows}"
        elif number >= latest:
            said += ", the latest"
        table.add_row(task, str(read["rows"]), (read["fingerprint"] or "?")[:12], said)
    console.print(table)
    console.print("Test rows of every task are scored at every stage, and nothing trains on them.", highlight=False)


def _print_kept(console: Console, method: str, tensors: dict[str, Any]) -> None:
    table = Table("kept for the next task", "bytes", "what it is", title=f"method {method}")
    for kind, size in sorted(store.by_kind(tensors).items()):
        table.add_row(kind, f"{size:,}", KINDS.get(kind, "see docs/methods.md"))
    console.print(table)
