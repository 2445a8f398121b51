"""The command line: ``retain --help``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape

from retain.cli import hand_on, judge, look, state, train

app = typer.Typer(
    help="Fine-tune one LoRA adapter on task after task without losing the earlier ones.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
PANELS: dict[str, list[Callable[..., None]]] = {
    "Train": [train.demo, train.init, train.plan, train.run, train.add_task],
    "Judge": [judge.compare, judge.sweep, judge.report, judge.check],
    "Look": [look.inspect, look.audit, look.methods, look.schema, look.doctor],
    "Hand on": [hand_on.export],
}
for panel, commands in PANELS.items():
    for command in commands:
        listing = judge.Listing if command in (judge.compare, judge.sweep) else None
        app.command(rich_help_panel=panel, cls=listing)(command)
app.add_typer(hand_on.share, name="share", rich_help_panel="Hand on")
app.add_typer(state.state, name="state", rich_help_panel="Hand on")


def main() -> None:
    """Run the command line; what a user can mend is one line on the error stream, not a traceback."""
    warnings.simplefilter("ignore", FutureWarning)  # of transformers and peft, to whoever builds on them
    try:
        app()
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
