"""Commands about states: what a method remembers, as files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from retain.cli.arguments import ConfigFile

state = typer.Typer(
    help="What a method remembers, as files of its own: another team goes on from it without the data.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="STATE", help="The folder of a state.", show_default=False)]
Rows = Annotated[bool, typer.Option("--with-rows", help="Also where the method keeps training rows.")]


@state.command()
def inspect(folder: Folder) -> None:
    """Say whose state it is, of which tasks and how many rows, and what it holds; check its files.

    Example: [cyan]retain state inspect runs/bot/state[/]
    """
    from retain.commands.state import inspect as command

    command(folder, Console())


@state.command("export")
def export_state(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="Where to write; RUN/state if not given.", show_default=False)] = None,
    with_rows: Rows = False,
) -> None:
    """Take out of a run what its next task would go on from.

    Example: [cyan]retain state export runs/bot --to states/bot[/]
    """
    from retain.commands.state import export as command

    command(run, to, with_rows, Console())


@state.command("import")
def import_state(folder: Folder, config: ConfigFile) -> None:
    """Let the run of a YAML file begin with a state, once it is known to belong there; writes `state:` into the file.

    Example: [cyan]retain state import states/bot new.yaml[/]
    """
    from retain.commands.state import take_in as command

    command(folder, config, Console())


@state.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="STATE...", help="Of each site.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The new state.", show_default=False)],
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Of a site's importance, one for each; its share of the rows if not given."),
    ] = None,
) -> None:
    """Add up what sites have measured on their own rows around the same weights: as one site with all rows would.

    Example: [cyan]retain state merge north/state south/state --to both[/]
    """
    from retain.commands.state_merge import merge as command

    command(folders, to, weights, Console())


@state.command()
def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(help="On the hub, as OWNER/NAME.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="A new repository is private otherwise.")] = False,
    with_rows: Rows = False,
) -> None:
    """Upload a state to the Hugging Face hub. Read first what it can reveal: docs/state.md."""
    from retain.commands.hub import push as command

    command(folder, repo, public=public, rows=with_rows, console=Console())


@state.command()
def pull(
    repo: Annotated[str, typer.Argument(help="On the hub, as OWNER/NAME.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The folder, replaced as a whole.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.", show_default=False)] = None,
) -> None:
    """Download a state from the Hugging Face hub, and check it."""
    from retain.commands.hub import pull as command

    command(repo, to, revision, Console())
