"""A run that begins where another stands, and differs in one keyword that has had no part in anything so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retain import config as configuration
from retain import store, yamls
from retain.config import RunConfig
from retain.files import StoreError, copy_folder, held, write
from retain.ledger import LEDGER, Ledger
from retain.methods import METHODS
from retain.workshop import check_folder

SHARED = 1  # tasks


def shared(config: RunConfig, keyword: str) -> int:
    """The tasks that runs of ``config`` have in common, whatever ``keyword`` is of its method.

    None where something is held before the first: a guard, or what another run has learned.
    """
    method = METHODS[config.method["name"]]
    held = config.state is not None or (config.guard is not None and method.guards)
    return SHARED if keyword in method.late and not held else 0


def branch(trunk: Path, config: RunConfig, keyword: str) -> None:
    """Make the folder of ``config`` a run that has the first stages of the finished ``trunk``, and goes on from there.

    What is there already stays; after a kill the same call ends what it began. The configuration is written first, so
    that a run which nobody ends making trains on its own what it lacks, with the same results.

    Args:
        trunk: the folder of a run that has stopped after what is shared.
        config: of the branch.
        keyword: of the method, in which alone both may differ.

    Raises:
        StoreError: they differ in more, or the trunk has not come far enough or is damaged, or the folder is in use.
        ValueError: ``keyword`` has its part from the beginning.
    """
    if not (tasks := shared(config, keyword)):
        raise ValueError(f"{keyword} of {config.method['name']} counts from the first task on: nothing can be shared")
    _check(trunk, config, keyword)
    stages = [trunk / "base", *sorted(trunk.glob("tasks/*"))[:tasks]]
    if len(stages) <= tasks or not all(store.is_closed(stage) for stage in stages):
        raise StoreError(f"{trunk} has not learned {tasks} of its tasks yet, from where a branch would begin")
    output = Path(config.output)
    check_folder(config)
    with held(output):
        check_folder(config)
        write(output / "config.yaml", configuration.dump(config))
        fresh = [stage for stage in stages if not store.is_closed(output / stage.relative_to(trunk))]
        if fresh:
            _record(trunk, output, config.method.get(keyword), keyword)
        for stage in fresh:
            copy_folder(stage, output / stage.relative_to(trunk))


def _check(trunk: Path, config: RunConfig, keyword: str) -> None:
    path = trunk / "config.yaml"
    try:
        other = configuration.parse(yamls.read(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StoreError(f"{trunk} holds no run to branch from: {error}") from error
    if difference := configuration.difference(_without(other, keyword), _without(config, keyword)):
        raise StoreError(f"{trunk} is no beginning of {config.output}: {difference}")


def _without(config: RunConfig, keyword: str) -> str:
    content: dict[str, Any] = config.model_dump(exclude_none=True, exclude={"output"})
    content["method"] = {key: value for key, value in content["method"].items() if key != keyword}
    return yamls.write(content)


def _record(trunk: Path, output: Path, value: Any, keyword: str) -> None:
    """The branch's ledger: the trunk's, and what the branch is."""
    write(output / LEDGER, (trunk / LEDGER).read_bytes())
    Ledger(output / LEDGER).append("branched", trunk=str(trunk), keyword=keyword, value=value)
