"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="A YAML file: see docs/cli.md.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="[cyan]section.key=value[/], values as in YAML.", show_default=False)
]
Seeds = Annotated[int, typer.Option(help="How many, from the file's on.", min=1)]
Jobs = Annotated[
    int | None,
    typer.Option(help="Runs at a time; as many as cores and memory allow if not given.", min=1, show_default=False),
]
