"""``retain init``: a configuration to begin with, from files or hub names, with what was guessed said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from transformers import AutoConfig
from transformers.utils import cached_file

from retain import config as configuration
from retain.files import write
from retain.forecasters import FORECASTS
from retain.formats import COLUMNS, FormatError, format_of
from retain.metrics import OF_NUMBERS
from retain.mistakes import check_task_name
from retain.sections import DRAWS, IN_NATS, TARGETS
from retain.sources import DataError, natural, separator
from retain.yamls import flow

LENIENT = tuple(f"_raise_exceptions_for_{what}" for what in ("gated_repo", "missing_entries", "connection_errors"))
ENDINGS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
TEXTS = ("text", "sentence", "question", "review", "content", "body", "title", "instruction", "prompt", "input")
LOOKED_AT = 100  # rows of a file
DATES = ("date", "time", "timestamp", "datetime", "day", "month")
LABELS = ("label", "labels", "class", "category", "intent", "topic", "target")
ANSWERS = ("answer", "answers", "response", "responses", "completion", "output", "reply")  # to what another column asks


@dataclass
class Guess:
    """What one entry of ``tasks`` will say, the kind of model that its rows need, and how that was told."""

    entry: dict[str, Any]
    kind: str | None
    told: list[str] = field(default_factory=list)
    labels: frozenset[str] = frozenset()  # that the rows looked at have


def init(path: Path, sources: Sequence[str], model: str, method: str, console: Console) -> None:
    """Write the YAML file ``path`` for tasks from ``sources``: files, folders of images, or hub names.

    Raises:
        ValueError: a file in the way, no sources, rows that fit nothing, or tasks of different kinds.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; choose another name or remove it")
    guesses = [guess(source, path.parent) for source in sources]
    kinds = {found.kind for found in guesses if found.kind}
    if len(kinds) > 1:
        each = ", ".join(f"{found.entry['name']}: {found.kind or 'not known'}" for found in guesses)
        raise ValueError(f"one run has tasks of one kind, and these are of several: {each}")
    kind = _kind(kinds.pop() if kinds else "text", model)
    for found in guesses if kind == DRAWS else ():
        found.entry["prompt"] = f"a picture in the style of {found.entry['name']}"
        found.told.append("all called alike: see `prompt`")
    text = document(kind, model, method, guesses)
    write(path, text)
    try:
        configuration.load(path)
    except ValueError:
        path.unlink()
        raise
    told = [f"{found.entry['name']}: {'; '.join(found.told)}" for found in guesses]
    console.print("\n".join([*told, *_shared(guesses)]), highlight=False, markup=False)
    console.print(
        f"{path}: written. Next: [cyan]retain plan {path}[/], then [cyan]retain run {path}[/]", highlight=False
    )


def _kind(kind: str, model: str) -> str:
    """``kind``, or that of encoder-decoders or of pipelines, if what ``model`` has can be had and says it is one."""
    if kind == "image" and cached_file(model, "model_index.json", **dict.fromkeys(LENIENT, False)) is not None:
        return DRAWS
    if kind != "causal-lm":
        return kind
    try:
        decoder = AutoConfig.from_pretrained(model, trust_remote_code=False).is_encoder_decoder
    except (OSError, ValueError):
        return kind
    return "seq2seq-lm" if decoder else kind


def _shared(guesses: Sequence[Guess]) -> list[str]:
    """What to think of where the first two tasks that have labels in common are learned with a head each."""
    for one, other in combinations(guesses, 2):
        if common := sorted(one.labels & other.labels, key=natural):
            told = (
                f"labels of {one.entry['name']} and {other.entry['name']} are alike ({', '.join(common[:5])}"
                f"{', ...' * (len(common) > 5)}), and with `scenario: task` each task has a head of its own, so "
                "that whoever asks must say the task; if they mean the same, write `scenario: domain`, one for both"
            )
            return [told]
    return []


def guess(source: str, beside: Path) -> Guess:
    """What ``source`` is: a file by its ending, a folder of images, and otherwise a name on the hub."""
    place = Path(source)
    name = _name(place.stem if place.exists() else source.rpartition("/")[2])
    if place.is_dir():
        return Guess(
            {"name": name, "path": "imagefolder", "data_dir": _named(place, beside)}, "image", ["a folder of images"]
        )
    if not place.exists():
        if place.suffix in ENDINGS:
            raise DataError(f"{source}: no such file")
        return Guess({"name": name, "path": source}, None, ["a name on the hub; its columns were not looked at"])
    if place.suffix not in ENDINGS:
        raise DataError(f"{source}: unknown ending {place.suffix!r}; known: {', '.join(ENDINGS)}")
    kind = ENDINGS[place.suffix]
    if not place.stat().st_size:
        raise DataError(f"{source}: no rows")
    options = separator(kind, [str(place)])
    rows = datasets.load_dataset(kind, data_files=str(place), split="train", streaming=True, **options)
    try:
        first = list(rows.take(LOOKED_AT))
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{source}: no rows that can be read as {kind}: {error}") from error
    if not first:
        raise DataError(f"{source}: no rows")
    found = Guess({"name": name, "path": kind, "data_files": _named(place, beside)}, None)
    _columns(found, first, source)
    return found


def _columns(found: Guess, rows: Sequence[dict[str, Any]], source: str) -> None:
    """Add to ``found`` what the columns of its first ``rows`` tell."""
    columns = list(rows[0])
    text = next((c for c in (*TEXTS, *columns) if isinstance(rows[0].get(c), str) and c not in LABELS), None)
    conversation = any(set(needed) <= set(columns) for form, needed in COLUMNS.items() if form != "text")
    label = None if conversation else _label(rows, text)
    if label is not None:
        if text is None:
            raise DataError(f"{source}: a label {label!r} and no column of text; columns: {', '.join(columns)}")
        found.kind = "text"
        found.entry |= {k: v for k, v in (("text", text), ("label", label)) if v != k}
        numbers = isinstance(rows[0][label], float)
        found.entry |= {"metric": OF_NUMBERS[0]} if numbers else {}
        found.labels = frozenset(str(row[label]) for row in rows if not numbers and row[label] is not None)
        found.told.append(f"text {text!r} is {'labelled with numbers' if numbers else 'classified'} by {label!r}")
        return
    words = {name for name in columns if isinstance(rows[0][name], str)}
    if {name.lower() for name in words} <= {*DATES} and any(isinstance(value, float) for value in rows[0].values()):
        found.kind = FORECASTS
        found.told.append(f"a time series of {', '.join(name for name in columns if name not in words)}")
        return
    try:
        form = format_of(columns, None, "text" if conversation else text or "text")
    except FormatError as error:
        raise DataError(f"{source}: {error}; for classification, name columns such as text and label") from None
    _check_answers(form, text, columns, source)
    pictured = form != "text" and "image" in columns
    found.kind = "image-text-to-text" if pictured else "causal-lm"
    found.entry |= {"text": text} if form == "text" and text != "text" else {}
    found.told.append(f"rows for a language model{' that reads pictures' * pictured} ({form})")
    if form == "text" and (unread := [name for name in columns if name != text]):
        found.told.append(f"{text!r} alone is learned, and {', '.join(unread)} not read")


def _check_answers(form: str, text: str | None, columns: Sequence[str], source: str) -> None:
    """Refuse rows of plain texts with a column of answers beside them, which would not be learned."""
    answers = [name for name in columns if name.lower() in ANSWERS and name != text]
    if form == "text" and answers:
        raise DataError(
            f"{source}: of the columns {', '.join(columns)} only {text!r} would be learned, and {answers[0]!r} looks "
            f"like the answers: rename {text!r} to 'prompt' and {answers[0]!r} to 'completion'"
        )


def _label(rows: Sequence[dict[str, Any]], text: str | None) -> str | None:
    """The column that classifies: by its name, else another one of few values, each of which comes again."""
    if named := next((c for c in LABELS if isinstance(rows[0].get(c), str | int | float)), None):
        return named
    for column in rows[0]:
        values = {row[column] for row in rows if isinstance(row[column], str)}
        if column != text and 1 < len(values) <= len(rows) / 2:
            return column
    return None


def document(kind: str, model: str, method: str, guesses: Sequence[Guess]) -> str:
    """The file's text: what there is to set, with a word on each, and everything else left to its default."""
    headless = kind in (*IN_NATS, FORECASTS)
    heads = "" if headless else _HEADS
    rate = "2.0e-4" if kind in IN_NATS else "1.0e-3"
    targets = "" if kind in TARGETS else ", target_modules: all-linear"
    tasks = "\n".join(f"  - {flow(found.entry)}" for found in guesses)
    return f"""# retain plan FILE, then retain run FILE; after a crash run it again: it continues. All keys: docs/cli.md
model: {flow({"path": model} | ({} if kind == "text" else {"kind": kind}))}
lora: {{r: 8{targets}}}       # -> peft.LoraConfig
{heads}method: {flow({"name": method})}                       # `retain methods` lists the others
training: {{learning_rate: {rate}, num_train_epochs: 3, per_device_train_batch_size: 8}}    # -> TrainingArguments
tasks:                                         # learned in this order
{tasks}
"""


_HEADS = """\
heads: {learning_rate: 5.0e-3}                 # a new head starts from nothing
scenario: task                                 # a head each, the task said; class: it is not; domain: one head for all
"""


def _named(place: Path, beside: Path) -> str:
    """``place`` as a file in the folder ``beside`` names it."""
    try:
        return place.resolve().relative_to(beside.resolve()).as_posix()
    except ValueError:
        return str(place.resolve())


def _name(text: str) -> str:
    return check_task_name("".join(c if c.isalnum() or c in " _.+-" else "-" for c in text))
