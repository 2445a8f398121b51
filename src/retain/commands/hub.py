"""``retain state push | pull``: a state on the Hugging Face hub, or a server that speaks like it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from rich.console import Console

from retain import artefact, store
from retain.artefact import Manifest
from retain.commands.state import check_rows
from retain.files import replace_folder

FILES = (artefact.MANIFEST, artefact.MODEL, artefact.METHOD)
README = """---
library_name: retain
---
What `{method}` remembers of {tasks}, beside the model {base}. Another run goes on from it without the data:

```console
retain state pull {repo} --to state
retain run new.yaml --from-state state
```

It holds weights, and sums over training rows. With few rows, sums come close to the rows: treat it like the data.
"""


def push(folder: Path, repo: str, *, public: bool, rows: bool, console: Console) -> None:
    """Upload the state in ``folder``, which is checked, to ``repo``; a new repository is private unless ``public``.

    Raises:
        StoreError: no state, a damaged one, training rows in it and not ``rows``, or what the server answers.
    """
    manifest = artefact.read_manifest(folder)
    check_rows(manifest, rows)
    api = HfApi(endpoint=_endpoint())
    with _told(repo), tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        for name in FILES:
            shutil.copyfile(folder / name, staged / name)
        store.write(staged / "README.md", _card(manifest, repo))
        api.create_repo(repo, private=not public, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=staged, commit_message=f"State of {manifest.method}")
    console.print(f"{repo}: {done.oid}", highlight=False, soft_wrap=True)


def pull(repo: str, to: Path, revision: str | None, console: Console) -> None:
    """Download the state in ``repo`` to ``to``, which is replaced once all of it is there and whole.

    Nothing but the three files of a state is fetched.

    Raises:
        StoreError: what the server answers, no state, or a damaged one; ``to`` is as it was.
    """

    def fill(fresh: Path) -> None:
        with _told(repo):
            snapshot_download(
                repo, revision=revision, local_dir=fresh, allow_patterns=list(FILES), endpoint=_endpoint()
            )
        shutil.rmtree(fresh / ".cache", ignore_errors=True)
        artefact.read_manifest(fresh)

    replace_folder(to, fill)
    manifest = artefact.read_manifest(to)
    tasks = ", ".join(task.name for task in manifest.tasks)
    console.print(f"{to}: state of {manifest.method} after {tasks}", highlight=False, soft_wrap=True)


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Tell in one line what keeps the block from reaching ``repo``."""
    try:
        yield
    except store.StoreError:
        raise
    except Exception as error:  # whatever stands between here and the hub, to the user it cannot be reached
        reason = " ".join(str(error).split()) or type(error).__name__
        raise store.StoreError(f"{repo} at {_endpoint()}: {reason[:400]}") from error


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def _card(manifest: Manifest, repo: str) -> str:
    tasks = ", ".join(task.name for task in manifest.tasks)
    return README.format(method=manifest.method, tasks=tasks, base=manifest.base.name, repo=repo)
