"""``retain add-task``: next week's data behind the tasks of a file or of a run, which goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from retain import config as configuration
from retain import yamls
from retain.commands.init import Guess, guess
from retain.config import RunConfig
from retain.files import held, write
from retain.intake import read_text
from retain.sections import DRAWS, LANGUAGE
from retain.workshop import check_folder

# Kind of a model -> what its rows are guessed to be.
ALIKE: dict[str, Sequence[str]] = dict.fromkeys(LANGUAGE, LANGUAGE) | {DRAWS: ("image",)}


def add_task(target: Path, sources: Sequence[str], name: str | None, console: Console) -> None:
    """Add a task for each of ``sources`` (as of ``init``) behind those of ``target``, a YAML file or a run's folder.

    All else in a file stays as it is, comments too.

    Raises:
        ValueError: a name that exists, rows of another kind, or a run whose method does not go on.
        StoreError: no run, one that is in use, or one of another configuration.
    """
    run = target.is_dir()
    path, beside = (target / "config.yaml", Path()) if run else (target, target.parent)
    if run and not path.exists():
        raise ValueError(f"{target} holds no run: it has no config.yaml")
    with held(target) if run else nullcontext():
        config = configuration.load(path)
        if run and Path(config.output).resolve() != target.resolve():
            raise ValueError(f"{target} is the run of {config.output}: move it back there, or go on from its state")
        guesses = [guess(source, beside) for source in sources]
        if name is not None:
            guesses[0].entry["name"] = name
        _check(config, guesses, name)
        text = yamls.append(read_text(path), "tasks", [found.entry for found in guesses])
        fresh = configuration.parse(yamls.read(text)).tasks[len(config.tasks) :]
        longer = config.model_copy(update={"tasks": [*config.tasks, *fresh]})
        check_folder(longer)
        write(path, configuration.dump(longer) if run else text)
    for found in guesses:
        console.print(f"{found.entry['name']}: {'; '.join(found.told)}", highlight=False)
    console.print(
        f"{path}: added behind {', '.join(task.name for task in config.tasks)}. Next: [cyan]retain run {path}[/], "
        "which leaves what is finished as it is",
        highlight=False,
        soft_wrap=True,
    )


def _check(config: RunConfig, guesses: Sequence[Guess], given: str | None) -> None:
    """Refuse tasks that ``config`` cannot have, or that are several with one name ``given``.

    Raises:
        ValueError: by the name of the first.
    """
    if given is not None and len(guesses) > 1:
        raise ValueError(f"one name, {given!r}, for {len(guesses)} tasks: add them one by one")
    known = [task.name for task in config.tasks]
    for found in guesses:
        name = found.entry["name"]
        if name in known:
            raise ValueError(f"there is a task {name!r} already; give this one another name with --name")
        if found.kind not in (None, *ALIKE.get(config.model.kind, [config.model.kind])):
            raise ValueError(
                f"{name!r} has rows for model.kind {found.kind!r} ({'; '.join(found.told)}), and here it is "
                f"{config.model.kind!r}"
            )
        known.append(name)
