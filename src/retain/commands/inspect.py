"""``retain inspect``: what a folder or file of a run holds, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retain import artefact, collection, store
from retain.commands.state import inspect as inspect_state
from retain.commands.table import print_scores
from retain.intake import read_yaml
from retain.linalg import effective_rank, squared_norm, thin_svd
from retain.summaries import read_results
from retain.units import human

LAYERS = 12  # of an adapter that are shown one by one


def inspect(path: Path, console: Console) -> None:
    """Print what is in ``path``: a run, a stock adapter, a collection, a state, or a file of tensors.

    Raises:
        StoreError: nothing of these, or a damaged one.
    """
    if (path / "config.yaml").exists():
        _run(path, console)
    elif (path / collection.CONFIG).exists():
        _adapter(path, console)
    elif (path / collection.MANIFEST).exists():
        _collection(path, console)
    elif (path / artefact.MANIFEST).exists():
        inspect_state(path, console)
    elif path.suffix == ".safetensors":
        _tensors(path, console)
    else:
        missing = "" if path.exists() else ", which does not exist"
        raise store.StoreError(
            f"{path}{missing}: expected a run, a PEFT adapter, a collection, a state, or a .safetensors file"
        )


def _run(folder: Path, console: Console) -> None:
    config = read_yaml(folder / "config.yaml")
    console.print(f"[bold]{folder}[/]: {config['method']['name']} on {config['model']['path']}", highlight=False)
    table = Table("stage", "finished", "adapter", "state")
    for stage in store.stage_folders(folder):
        closed = store.is_closed(stage)
        sizes = store.read_json(stage / "scores.json").get("bytes", {}) if closed else {}
        shown = [human(sizes[kind]) if kind in sizes else "" for kind in ("adapter", "state")]
        table.add_row(stage.name, "yes" if closed else "no", *shown)
    console.print(table)
    if (folder / "results.json").exists():
        print_scores(console, read_results(folder / "results.json"))
    else:
        console.print("not finished: [cyan]retain run[/] again continues it", highlight=False)


def _adapter(folder: Path, console: Console) -> None:
    adapter = collection.read_adapter(folder)
    size = human(store.size(folder / collection.WEIGHTS))
    base = adapter.config.get("base_model_name_or_path")
    console.print(f"[bold]{folder}[/]: LoRA of {base}, {len(adapter.changes)} layers, {size}", highlight=False)
    if adapter.rest:
        console.print(f"beside them: {', '.join(sorted(adapter.rest)[:6])}", highlight=False)
    table = Table("layer", "rank", "norm of dW", "effective rank", title="the largest changes", title_justify="left")
    norms = {name: float(squared_norm(B, A).clamp(min=0).sqrt()) for name, (B, A) in adapter.changes.items()}
    for name in sorted(norms, key=lambda name: -norms[name])[:LAYERS]:
        B, A = adapter.changes[name]
        table.add_row(name, str(len(A)), f"{norms[name]:.3g}", f"{effective_rank(thin_svd(B, A)[1]):.1f}")
    console.print(table)


def _collection(folder: Path, console: Console) -> None:
    found = collection.read(folder)
    kinds = ", ".join(f"{kind} {human(size)}" for kind, size in found.bytes().items())
    base = found.config.get("base_model_name_or_path")
    console.print(f"[bold]{folder}[/]: {len(found.tasks)} adapters of {base}; {kinds}", highlight=False)
    table = Table("task", "lost of its weight change")
    for task, residual in found.residuals.items():
        table.add_row(task, f"{residual:.2%}")
    console.print(table)


def _tensors(path: Path, console: Console) -> None:
    tensors: dict[str, Any] = store.read_tensors(path)
    console.print(f"[bold]{path}[/]: {len(tensors)} tensors, {human(store.size(path))}", highlight=False)
    table = Table("kind", "tensors", "bytes")
    for kind, size in sorted(store.by_kind(tensors).items(), key=lambda item: -item[1]):
        table.add_row(kind, str(sum(key.partition("/")[0] == kind for key in tensors)), human(size))
    console.print(table)
