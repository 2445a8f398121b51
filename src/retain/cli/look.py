"""Commands that look at what is there."""

from __future__ import annotations

import inspect as signatures
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|ADAPTER|STATE|FILE",
            help="A run, a stock adapter, a collection, a state, or a .safetensors file.",
            show_default=False,
        ),
    ],
) -> None:
    """Say what a folder or a file holds: stages and scores, layers and ranks, tensors by kind and their bytes.

    Example: [cyan]retain inspect runs/bot/adapter[/]
    """
    from retain.commands.inspect import inspect as command

    command(path, Console())


def schema() -> None:
    """Print the configuration as JSON Schema, for editors that complete and check YAML.

    Example: [cyan]retain schema > retain.schema.json[/], and in the first line of
    the file [cyan]# yaml-language-server: $schema=retain.schema.json[/]
    """
    import json

    from retain.commands.schema import schema as command

    print(json.dumps(command(), indent=1))


def audit(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
) -> None:
    """Check a run's ledger and files, and say which rows were read when, and what is kept of them.

    The exit code is 1 if something was changed or is missing.

    Example: [cyan]retain audit runs/bot[/]
    """
    from retain.commands.audit import audit as command

    command(folder, Console())


def doctor() -> None:
    """Check that this machine has what runs need, and say what to do where it has not.

    The exit code is 1 if something is wrong.

    Example: [cyan]retain doctor[/]
    """
    from retain.commands.doctor import doctor as command

    if not command(Console()):
        raise typer.Exit(1)


def methods(
    name: Annotated[str | None, typer.Argument(help="One of them: what its keywords mean.", show_default=False)] = None,
) -> None:
    """List the methods and the keywords that their `method:` section takes, with defaults.

    Example: [cyan]retain methods ewc-lora[/]
    """
    from retain.methods import METHODS, method_named

    console = Console()
    if name is not None:
        told = signatures.getdoc(method_named(name)) or ""
        # A file says the model elsewhere: it is no keyword of `method:`.
        console.print(re.sub(r"\n    model: .*(\n {8}.*)*", "", told), markup=False, highlight=False)
        return
    table = Table("method", "what it does", "keywords")
    for known, method in METHODS.items():
        keywords = [p for p in signatures.signature(method).parameters.values() if p.name != "model"]
        table.add_row(
            known,
            (signatures.getdoc(method) or "").split("\n\n")[0].replace("\n", " "),
            "\n".join(f"{p.name}: {'null' if p.default is None else p.default}" for p in keywords),
        )
    console.print(table)
    console.print("null: left to the method. retain methods NAME says what its keywords mean.", highlight=False)
