"""Commands that look at what is there."""

from __future__ import annotations

import inspect as signatures
import re
import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

FILLED = 116  # of a line in the code, less the indent of a docstring of a class


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
        told = re.sub(r"\n    model: .*(\n {8}.*)*", "", told)
        console.print(_refilled(told, console.width), markup=False, highlight=False, soft_wrap=True)
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


def _refilled(text: str, width: int) -> str:
    """A docstring at most ``width`` wide: a line goes on where it was full in the code, or the next is indented."""
    found = list[list[str]]()
    for line in text.splitlines():
        first, last = (found[-1][0], found[-1][-1]) if found else ("", "")
        deeper = _indent(line) > _indent(first) and not first.endswith(":")
        if first and line and (deeper or len(last) + 1 + len(line.split()[0]) > FILLED):
            found[-1].append(line)
        else:
            found.append([line])
    return "\n".join(_filled(lines, width) for lines in found)


def _filled(lines: list[str], width: int) -> str:
    first = lines[0]
    hanging = (
        lines[-1] if len(lines) > 1 else ("    " if first.startswith(" ") else "  " * first.startswith("-")) + first
    )
    fits = textwrap.TextWrapper(width, _indent(first), _indent(hanging), break_long_words=False, break_on_hyphens=False)
    return fits.fill(" ".join(line.strip() for line in lines))


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
