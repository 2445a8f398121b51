"""The test rows that a run had right when their task was learned and has wrong in the end, as a person reads them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from retain import config as configuration
from retain.data import load_stream
from retain.hf import load_processor
from retain.report.read import Run

PAGE = 10  # rows at a time


@dataclass(frozen=True)
class Row:
    """A test row: its number, its label, and its text or, as a data URI, its picture."""

    number: int
    label: str
    text: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Flips:
    """Of one task: how many rows were forgotten and how many gained since it was learned, and some of the forgotten."""

    task: str
    forgotten: int
    gained: int
    rows: int
    pages: list[list[Row]]


def flips(run: Run, shown: int) -> list[Flips]:
    """The flips of every task but the last, if it tells classes apart; at most ``shown`` rows of a task.

    0 shows none of anybody's data.

    Raises:
        ValueError: the data that the configuration names are not there any more.
    """
    if not run.in_turn or run.tokenwise:
        return []
    found, reader = [], _Reader(run) if shown else None
    for i, name in enumerate(run.tasks[:-1]):
        told = [record["tasks"][name] for record in (run.records[i + 1], run.records[-1])]
        if run.bits not in told[0]:
            continue
        then, now = (np.array([int(bit) for bit in entry[run.bits]]) for entry in told)
        lost = np.flatnonzero((then == 1) & (now == 0))
        rows = [reader.row(i, int(n)) for n in lost[:shown]] if reader else []
        pages = [rows[start : start + PAGE] for start in range(0, len(rows), PAGE)]
        found.append(Flips(name, len(lost), int(((then == 0) & (now == 1)).sum()), len(then), pages))
    return found


class _Reader:
    """The test rows of a run, read again from where its configuration says they are."""

    def __init__(self, run: Run) -> None:
        config = configuration.load(run.folder / "config.yaml")
        self.processor = load_processor(config.model.path, config.model.kind)
        self.stream = load_stream(config, self.processor)
        self.own_classes = config.scenario != "domain"

    def row(self, task: int, number: int) -> Row:
        row = self.stream.tasks[task].test[number]
        first = sum(map(len, [*self.stream.before, *self.stream.labels[:task]])) if self.own_classes else 0
        label = self.stream.labels[task][int(row["labels"]) - first]
        if "pixel_values" in row:
            return Row(number, label, picture=_picture(row["pixel_values"]))
        return Row(number, label, text=self.processor.decode(row["input_ids"], skip_special_tokens=True))


def _picture(pixels: Tensor) -> str:
    """Pixels (C, H, W) of any range as a PNG in a data URI."""
    from PIL import Image

    shades = np.asarray(pixels, dtype=np.float32)
    shades = (255 * (shades - shades.min()) / max(float(np.ptp(shades)), 1e-9)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(shades.transpose(1, 2, 0) if len(shades) == 3 else shades[0]).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
