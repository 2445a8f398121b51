"""``retain state``: what a method remembers, looked at, taken out of a run, and begun with elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from retain import artefact, store, yamls
from retain import config as configuration
from retain.artefact import Manifest
from retain.commands.audit import KINDS
from retain.commands.reopened import reopened
from retain.continuing import begin_with, manifest_of
from retain.files import copy_folder, replace_folder
from retain.intake import read_text
from retain.methods import method_named
from retain.units import human
from retain.workshop import STATE, prepare


def inspect(folder: Path, console: Console) -> None:
    """Print whose state lies in ``folder``, and what it is; its files are checked.

    Raises:
        StoreError: no state, or a damaged one.
    """
    manifest = artefact.read_manifest(folder)
    keywords = ", ".join(f"{k}={json.dumps(v)}" for k, v in manifest.keywords.items() if v is not None)
    made = ", ".join(f"{name} {number}" for name, number in manifest.made.items())
    for line in (
        f"[bold]{folder}[/]: state of {manifest.method}, format {manifest.format}, {made}",
        f"base model {manifest.base}",
        f"targets {manifest.targets}",
        f"scenario {manifest.scenario}; {keywords}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    table = Table("task", "training rows", "fingerprint", "classes")
    for task in manifest.tasks:
        rows = "?" if task.rows is None else str(task.rows)
        table.add_row(task.name, rows, (task.fingerprint or "?")[: artefact.SHOWN], ", ".join(task.labels))
    console.print(table)
    if manifest.merged:
        parts = ", ".join(
            f"{part.weight:.4g} x {part.files[artefact.METHOD][: artefact.SHOWN]}" for part in manifest.merged
        )
        exactly = "exactly" if manifest.exact else "not exactly"
        console.print(f"merged {exactly} of {parts}", highlight=False, soft_wrap=True)
    _print_kept(folder, manifest, console)


def export(run: Path, to: Path | None, rows: bool, console: Console) -> None:
    """Write what the run in ``run`` goes on from as an artefact of its own, to ``to`` or RUN/state.

    Raises:
        StoreError: no run, nothing finished, a damaged file, or training rows in it and not ``rows``.
    """
    finished = [folder for folder in store.stage_folders(run) if store.is_closed(folder) and (folder / STATE).exists()]
    if not finished:
        raise store.StoreError(f"{run}: holds no state: no task is finished yet")
    source, target = finished[-1] / STATE, to or run / STATE
    store.verify(finished[-1], STATE)
    if (source / artefact.MANIFEST).exists():
        manifest = artefact.read_manifest(source)
        check_rows(manifest, rows)
        copy_folder(source, target)
    else:  # of format 1: the run itself says whose it is
        shop, _ = reopened(run)
        manifest = manifest_of(shop, source)
        check_rows(manifest, rows)

        def fill(fresh: Path) -> None:
            for name in (artefact.MODEL, artefact.METHOD):
                store.write(fresh / name, (source / name).read_bytes())
            artefact.write_manifest(fresh, manifest, manifest.tasks)

        replace_folder(target, fill)
    said = f"{target}: state of {manifest.method} after {', '.join(task.name for task in manifest.tasks)}"
    console.print(f"{said}, {human(store.size(target))}", highlight=False, soft_wrap=True)
    _print_kept(target, manifest, console)


def take_in(state: Path, config: Path, console: Console) -> None:
    """Let the run of the YAML file ``config`` begin with ``state``: checked against its model, then written down.

    Raises:
        ValueError: it does not belong there, or the file has a state, or the run has begun.
    """
    text = read_text(config)
    document = yamls.read(text)
    if isinstance(document, dict) and document.get("state") is not None:
        raise ValueError(f"{config}: begins with the state {document['state']!r} already")
    settings = configuration.load(config, [f"state={json.dumps(str(state.resolve()))}"])
    if (Path(settings.output) / "config.yaml").exists():
        raise ValueError(f"{settings.output} has begun without it; choose another `output`")
    begin_with(prepare(settings), state)
    store.write(config, f"{text.rstrip()}\nstate: {json.dumps(str(state.resolve()))}\n")
    manifest = artefact.read_manifest(state)
    tasks = ", ".join(task.name for task in manifest.tasks)
    console.print(f"{config}: begins with {state}, after {tasks}", highlight=False, soft_wrap=True)


def check_rows(manifest: Manifest, allowed: bool) -> None:
    """Refuse to hand on a state that holds training rows, unless that is said.

    Raises:
        StoreError: by the method.
    """
    if method_named(manifest.method).keeps_rows and not allowed:
        tasks = ", ".join(task.name for task in manifest.tasks)
        raise store.StoreError(
            f"the state of {manifest.method} holds TRAINING ROWS of {tasks}, as the model reads them; --with-rows "
            "hands them on"
        )


def _print_kept(folder: Path, manifest: Manifest, console: Console) -> None:
    table = Table("what it holds", "bytes", "what that is")
    table.add_row("model", f"{store.size(folder / artefact.MODEL):,}", "the adapter and heads, as they were trained")
    for kind, size in sorted(store.by_kind(store.read_tensors(folder / artefact.METHOD)).items()):
        table.add_row(kind, f"{size:,}", KINDS.get(kind, "see docs/methods.md"))
    console.print(table)
    console.print("What such a file can reveal about the rows: docs/state.md", highlight=False)
