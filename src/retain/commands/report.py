"""``retain report``: what runs come to, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from retain import store
from retain.report import report as write


def report(folders: Sequence[Path], to: Path | None, examples: int, console: Console) -> Path:
    """Write the report of the runs in ``folders`` to ``to``: into the run, or, of several, into the working folder.

    Raises:
        StoreError: a folder that holds no finished run, a damaged one, or a file in the way that is no page.
    """
    target = to or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if target.is_dir():
        raise store.StoreError(f"{target} is a folder; name a file, such as {target / 'report.html'}")
    with console.status("reading the runs"):
        write(folders, target, examples=examples)
    console.print(f"{target}: {store.size(target) / 2**20:.1f} MiB, opens in any browser", soft_wrap=True)
    return target
