"""Commands that take long end when a signal asks for it, and say how to continue."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from retain.stopping import Stop


@contextmanager
def stoppable() -> Iterator[Stop]:
    """The block ends on SIGINT (exit code 130) and SIGTERM (143), once what it is at is saved."""
    from retain import ranks
    from retain.stopping import Stop, Stopped

    try:
        with Stop().listening() as stop:
            yield stop
    except Stopped as stopped:
        if ranks.first():
            again = "the same command" if "WORLD_SIZE" in os.environ else shlex.join(["retain", *sys.argv[1:]])
            line = f"{stopped}; to continue: {again}"
            Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
        raise typer.Exit(stopped.code) from None
