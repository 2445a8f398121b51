"""Streams of pictures that a diffusion model learns to draw: files and texts -> latents and what is read of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import datasets
import torch
from datasets.fingerprint import Hasher
from torch import Tensor

from retain.answers import Apart
from retain.formats import FormatError
from retain.pictures import check_picture, loaded
from retain.pipelines import Encoders, Pipeline
from retain.sources import DataError, check_text, progress
from retain.splits import splits_of
from retain.task import NoisePrediction, SquaredError, Task

if TYPE_CHECKING:
    from retain.config import RunConfig, TaskConfig

AT_ONCE = 4  # pictures that are encoded
WRITTEN = 64  # rows that are written to the cache at a time
LONG = 32  # rows from which on a progress bar is worth its line
WORDS = "encoder_hidden_states"  # as the UNet calls them


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows -> a batch of ``sample``, ``row`` and ``encoder_hidden_states``; ``said`` has these (T, D) by prompt."""

    said: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        words = [self.said[row["prompt"]] if "prompt" in row else torch.as_tensor(row[WORDS]) for row in rows]
        return {
            "sample": torch.stack([torch.as_tensor(row["sample"]) for row in rows]),
            "row": torch.tensor([int(row["row"]) for row in rows]),
            WORDS: torch.stack(words),
        }


def drawn_tasks(config: RunConfig, pipeline: Pipeline) -> tuple[list[Task], Apart | None]:
    """The tasks of ``config``, and what calibrates the gauge if that is not what is scored.

    Rows have a ``sample`` (C, h, w), the number ``row``, and their ``prompt`` or what the text encoder makes of their
    text. VAE and text encoder are in memory as long as this takes.

    Raises:
        DataError: the first thing wrong with the data, in one line.
    """
    side = config.model.resolution or pipeline.side
    if side % pipeline.factor:
        raise DataError(f"model.resolution {side} is no multiple of {pipeline.factor}, the pixels to a latent")
    encode = _Encoder(Encoders(pipeline), side)
    forward, tasks, apart = NoisePrediction(pipeline.scheduler), list[Task](), Apart()
    for entry in config.tasks:
        splits = splits_of(config, entry, labelled=entry.classes is not None).at_most(entry, config.rows_seed)
        train, test, *more = (encode(entry, split.rows) for split in splits.every)
        tasks.append(Task(entry.name, train, test, SquaredError(), encode.collate, forward=forward))
        for rows in more:
            apart.tasks[entry.name] = replace(tasks[-1], test=rows)
    return tasks, apart if apart.tasks else None


class _Encoder:
    """Pictures and texts of an entry -> rows, which are made once and then lie in the cache of ``datasets``."""

    def __init__(self, encoders: Encoders, side: int) -> None:
        self.encoders, self.side, self.collate = encoders, side, Drawn()
        self.hash = encoders.fingerprint

    def __call__(self, entry: TaskConfig, rows: datasets.Dataset) -> datasets.Dataset:
        check_picture(entry.name, rows, entry.image)
        text = str(entry.text)
        if entry.prompt is None:
            _check_text(entry.name, rows, text)
        elif entry.prompt not in self.collate.said:
            self.collate.said[entry.prompt] = self.encoders.words([entry.prompt])[0]
        pictures = rows.cast_column(entry.image, datasets.Image(decode=False))

        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            opened = [_opened(entry.name, *one) for one in zip(numbers, batch[entry.image], strict=True)]
            found: dict[str, Any] = {"sample": self.encoders.latents(opened, self.side).numpy(), "row": numbers}
            if entry.prompt is not None:
                return found | {"prompt": [entry.prompt] * len(numbers)}
            return found | {WORDS: self.encoders.words(batch[text]).numpy()}

        told = [rows._fingerprint, self.hash, self.side, entry.image, entry.prompt or [text]]
        with progress(len(rows) > LONG):
            made = pictures.map(
                encode,
                batched=True,
                batch_size=AT_ONCE,
                writer_batch_size=WRITTEN,
                with_indices=True,
                remove_columns=rows.column_names,
                features=self._features(entry.prompt is not None),
                new_fingerprint=Hasher.hash(told),
                desc=f"encoding {entry.name}",
            )
        return made.with_format("torch")

    def _features(self, prompted: bool) -> datasets.Features:
        pipeline = self.encoders.pipeline
        side = self.side // pipeline.factor
        words = {"prompt": datasets.Value("string")}
        if not prompted:
            words = {WORDS: datasets.Array2D((pipeline.tokens, pipeline.width), "float32")}
        sample = datasets.Array3D((pipeline.channels, side, side), "float32")
        return datasets.Features({"sample": sample, "row": datasets.Value("int64")} | words)


def _check_text(task: str, rows: datasets.Dataset, column: str) -> None:
    if column not in rows.column_names:
        raise DataError(
            f"task {task!r}: no column {column!r} of texts; name one with `text`, or say what all pictures are with "
            f"`prompt`; columns: {', '.join(rows.column_names)}"
        )
    check_text(task, rows, column)


def _opened(task: str, number: int, picture: Any) -> Any:
    try:
        return loaded(picture)
    except FormatError as error:
        raise DataError(f"task {task!r}: row {number}: {error}") from None
