"""Commands that hand adapters on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

share = typer.Typer(
    help="Keep many adapters of one model on shared bases: stock LoRAs go in and come out, no data needed.",
    no_args_is_help=True,
)
Collection = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Of a collection, or of a run of the method share.", show_default=False),
]
Components = Annotated[int, typer.Option(help="The most columns of a basis.", min=1)]


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[
        Path | None, typer.Option(help="Where to write; RUN/export if not given.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Export this task's adapter (methods per-task and share).")] = None,
) -> None:
    """Write a run's adapter as a stock PEFT LoRA and print the largest logit difference that a clean process sees.

    Example: [cyan]retain export runs/bot --to adapters/bot[/]
    """
    from retain.commands.export import export as command

    command(folder, to, task, Console())


@share.command("add-adapter")
def add_adapter(
    folder: Collection,
    adapters: Annotated[
        list[Path], typer.Argument(help="Folders of stock PEFT LoRAs, of any rank.", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the task, if it is one; that of its folder if not given.", show_default=False),
    ] = None,
    components: Components = 64,
    max_residual: Annotated[
        float | None,
        typer.Option(
            help="Largest relative error allowed for any task; bases grow beyond --components to keep it.", min=0, max=1
        ),
    ] = None,
) -> None:
    """Take adapters that were trained elsewhere into a collection, which is made if there is none.

    Bases grow by what they lack of an adapter and are cut to the components;
    all earlier tasks are re-expressed in closed form. The table says what is
    lost of each: unrelated adapters do not fit, and are marked.

    Example: [cyan]retain share add-adapter zoo adapters/* --components 64[/]
    """
    from retain.commands.share import add_adapters

    add_adapters(folder, adapters, name=name, components=components, max_residual=max_residual, console=Console())


@share.command("export")
def export_task(
    folder: Collection,
    task: Annotated[str, typer.Option(help="Name of the task.", show_default=False)],
    to: Annotated[
        Path | None, typer.Option(help="Where to write; FOLDER/export/TASK if not given.", show_default=False)
    ] = None,
) -> None:
    """Write one task of a collection as a stock PEFT LoRA.

    Example: [cyan]retain share export zoo --task legal --to adapters/legal[/]
    """
    from retain.commands.share import export as command

    command(folder, task, to, Console())


@share.command()
def merge(
    folder: Collection,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Like FOLDER.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The new collection.", show_default=False)],
    components: Components = 64,
) -> None:
    """Make one collection of two, such as those of two sites that have learned apart.

    Example: [cyan]retain share merge north south --to both[/]
    """
    from retain.commands.share import merge as command

    command(folder, other, to, components=components, console=Console())
