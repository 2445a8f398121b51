"""A run as its latest finished task has left it."""

from __future__ import annotations

from pathlib import Path

from retain import config as configuration
from retain import store
from retain.continuing import restore
from retain.workshop import Stage, Workshop, prepare


def reopened(folder: Path) -> tuple[Workshop, Stage]:
    """The run in ``folder``, which may have been moved, and its latest finished stage, whose state is in place.

    Raises:
        StoreError: no run, nothing finished, or a damaged file.
    """
    if not (folder / "config.yaml").exists():
        raise store.StoreError(f"{folder} holds no run: it has no config.yaml")
    settings = configuration.load(folder / "config.yaml")
    shop = prepare(settings.model_copy(update={"output": str(folder)}))
    finished = [stage for stage in shop.stages()[1:] if store.is_closed(stage.folder)]
    if not finished:
        raise store.StoreError(f"{folder}: no task is finished yet")
    restore(shop, finished[-1].folder)
    return shop, finished[-1]
