"""``retain share``: adapters on shared bases, in a folder of their own or that of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from retain import collection as shared
from retain import store
from retain.bases import LOSSY, Bases
from retain.collection import Adapter, Collection
from retain.commands.reopened import reopened
from retain.methods import Share

OWN = "share"  # the folder of a run's collection


def add_adapters(
    folder: Path,
    adapters: Sequence[Path],
    *,
    name: str | None = None,
    components: int = 64,
    max_residual: float | None = None,
    console: Console | None = None,
) -> Collection:
    """Take stock LoRAs into the collection in ``folder``, one after the other; nothing is written if one is refused.

    Args:
        folder: of a collection, of a run of the method "share", or a new one.
        adapters: folders of stock LoRAs.
        name: of the task, for a single adapter; otherwise tasks are called like their folders.
        components: the most columns of a basis.
        max_residual: of any task's weight change in a layer; more columns are kept where it would be exceeded.
        console: where progress and the table of tasks are shown.

    Raises:
        StoreError: a file that is missing, damaged or foreign.
        ValueError: a name that is taken, another base model, or other layers.
    """
    console = console or Console()
    if name is not None and len(adapters) != 1:
        raise ValueError(f"--name names one adapter, and here are {len(adapters)}")
    target = home(folder)

    def read() -> Iterator[tuple[str, Adapter]]:
        for path in track(adapters, "adapters", console=console, transient=True, disable=len(adapters) < 5):
            yield name or path.name, shared.read_adapter(path)

    collection = shared.extended(existing(folder), read(), components, max_residual)
    shared.write(target, collection)
    show(collection, console)
    return collection


def export(folder: Path, task: str, to: Path | None = None, console: Console | None = None) -> Path:
    """Write one task of a collection as a stock LoRA, by default to its folder ``export/TASK``; returns where.

    Raises:
        StoreError: no collection, or a folder in the way.
        ValueError: a task that is not there.
    """
    found = existing(folder)
    if found is None:
        raise store.StoreError(f"{folder} holds no collection: it has no {shared.MANIFEST}")
    target = to or home(folder) / "export" / task
    adapter = shared.adapter_of(found, task)
    if target.exists() and not (target / shared.CONFIG).exists():
        raise store.StoreError(f"{target} exists and holds no adapter; choose another folder")
    shared.write_adapter(target, adapter)
    (console or Console()).print(
        f"{target}: {found.residuals[task]:.2%} of the weight change that came is not in it", soft_wrap=True
    )
    return target


def merge(folder: Path, other: Path, to: Path, *, components: int = 64, console: Console | None = None) -> Collection:
    """Write the tasks of two collections, such as those of two sites that have learned apart, as one in ``to``."""
    one, two = existing(folder), existing(other)
    if one is None or two is None:
        raise store.StoreError(f"{folder if one is None else other} holds no collection: it has no {shared.MANIFEST}")
    if to.exists() and any(to.iterdir()):
        raise store.StoreError(f"{to} is not empty; choose another folder")
    collection = shared.merged(one, two, components)
    shared.write(to, collection)
    show(collection, console or Console())
    return collection


def home(folder: Path) -> Path:
    """Where the collection of ``folder`` is: in a run, a folder of its own."""
    return folder / OWN if (folder / "config.yaml").exists() else folder


def existing(folder: Path) -> Collection | None:
    """The collection of ``folder``; that of a run begins with the tasks that it has learned. None: there is none."""
    target = home(folder)
    if (target / shared.MANIFEST).exists():
        return shared.read(target)
    if target != folder:
        return of_run(folder)
    if folder.exists() and any(folder.iterdir()):
        raise store.StoreError(f"{folder} is not empty and holds no collection: it has no {shared.MANIFEST}")
    return None


def of_run(folder: Path) -> Collection:
    """The tasks that a run of the method "share" has learned so far.

    Raises:
        StoreError: a run of another method, or one that has finished no task.
    """
    shop, latest = reopened(folder)
    if not isinstance(shop.method, Share):
        raise store.StoreError(f"{folder} is a run of the method {shop.config.method['name']!r}, not of 'share'")
    adapter = shared.read_adapter(latest.folder / "adapter")
    bases = {name: scaled(shop.method.bases[name], site.scale) for name, site in shop.method.sites.items()}
    return Collection(adapter.config, bases, dict.fromkeys(shop.method.tasks, adapter.rest))


def scaled(bases: Bases, scale: float) -> Bases:
    """The same tasks with all weight changes ``scale`` times as large."""
    state = bases.state()
    for core in state["cores"].values():
        core["left"] = scale * core["left"]
        core["sizes"] = core["sizes"] * core["sizes"].new_tensor([scale, scale**2, scale, 1.0])
    return Bases.from_state(state)


def show(collection: Collection, console: Console) -> None:
    """The tasks with what is lost of each, and what is stored, beside an adapter a task."""
    table = Table("task", "rank", "lost of its weight change")
    one = next(iter(collection.bases.values()))
    lossy = 0
    for task, residual in collection.residuals.items():
        lossy += residual > LOSSY
        colour = "red" if residual > LOSSY else ""
        table.add_row(task, str(one.cores[task].left.shape[1]), f"{residual:.2%}", style=colour)
    console.print(table)
    kinds = collection.bytes()
    console.print("bytes: " + ", ".join(f"{kind} {size:,}" for kind, size in kinds.items()), highlight=False)
    if lossy:
        console.print(
            f"[yellow]{lossy} of {len(collection.tasks)} tasks lose more than {100 * LOSSY:.0f} %:[/] they share too "
            "little with the others; raise --components, or keep them as adapters of their own"
        )
