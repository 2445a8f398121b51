"""Whose a folder of many runs is."""

from __future__ import annotations

from pathlib import Path

from retain import config as configuration
from retain import store
from retain.files import ours


def claim(path: Path, what: str, text: str) -> None:
    """See that the folder of ``path`` is free for a ``what``, or already its own, and write down what it is of.

    Args:
        path: the file that says it.
        what: "comparison" or "sweep".
        text: YAML of what does not change from one sitting to the next.

    Raises:
        StoreError: the folder is of another one, or holds something else.
    """
    folder = path.parent
    if path.exists():
        try:
            difference = configuration.difference(path.read_text(encoding="utf-8"), text)
        except ValueError as error:
            raise store.StoreError(f"{path}: damaged: {error}") from error
        if difference:
            raise store.StoreError(f"{folder} holds another {what}: {difference}; choose another --output")
    elif folder.exists() and not (folder.is_dir() and all(ours(p) for p in folder.iterdir())):
        raise store.StoreError(f"{folder} is not empty and holds no {what}; choose another --output")
    else:
        store.write(path, text)
