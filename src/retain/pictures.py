"""Pictures beside texts: what a multimodal processor makes of them, among the tokens of a row and beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from retain.batches import Padded
from retain.formats import FormatError, Message, Piece, Spoken
from retain.sources import DataError, check_column

MARK = "<image>"  # how rows say where their picture is
TEXTUAL = ("input_ids", "attention_mask")


@dataclass(frozen=True, eq=False)
class Pictures:
    """One picture a row, ahead of the first thing that is said, as LLaVA has it (Liu et al. 2023, arXiv 2304.08485).

    Marks in the texts of rows are taken out. A picture is what ``datasets.Image(decode=False)`` gives: bytes or a path.
    """

    processor: Any

    @property
    def tokenizer(self) -> Any:
        """Of the processor."""
        return self.processor.tokenizer

    def tokens(self, picture: Any) -> list[int]:
        """What stands for ``picture`` among the tokens of a row.

        Raises:
            FormatError: no picture, or a model that wants more than its pixels.
        """
        found = self.processor(
            text=[self.processor.image_token], images=[loaded(picture)], add_special_tokens=False, return_tensors="pt"
        )
        pixels = [name for name in found if name not in TEXTUAL]
        for name in pixels:
            if name.endswith("token_type_ids") or len(found[name]) != 1:
                raise FormatError(
                    f"its processor makes {name!r} of one picture, {tuple(found[name].shape)}: a model is wanted whose "
                    "pictures have one entry each, such as LLaVA"
                )
        return found["input_ids"][0].tolist()

    def expanded(self, ids: Sequence[int], picture: Sequence[int]) -> list[int]:
        """``ids`` with the tokens of a ``picture`` in the place of its mark."""
        mark = self.processor.image_token_id
        return [token for one in ids for token in (picture if one == mark else [one])]

    def render(self, messages: Sequence[Message], opens: bool) -> str:
        """``messages`` as the chat template writes them, the picture first in what is said first by the user."""
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        turns = []
        for number, message in enumerate(messages):
            said = [{"type": "text", "text": unmarked(message["content"])}]
            turns.append(message | {"content": [{"type": "image"}, *said] if number == first else said})
        return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=opens))

    def placed(self, row: Spoken) -> Spoken:
        """``row``, where no template has placed the picture, with its mark ahead of everything."""
        if row.rendered:
            return row
        first, *others = row.pieces
        text = f"{self.processor.image_token}\n{unmarked(first.text)}"
        return Spoken([Piece(text, first.learned), *others], row.answer, row.rendered)

    def pixels(self, pictures: Sequence[Any]) -> dict[str, Tensor]:
        """What the model takes of ``pictures``, (N, ...) each."""
        made = self.processor.image_processor(images=[loaded(picture) for picture in pictures], return_tensors="pt")
        return {name: torch.as_tensor(value) for name, value in made.items()}


@dataclass(frozen=True)
class Illustrated:
    """Rows of ``input_ids``, ``labels`` and ``image`` -> a batch: tokens as ``Padded`` has them, and the pictures."""

    padded: Padded
    pictures: Pictures

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return self.padded(rows) | self.pictures.pixels([row["image"] for row in rows])


def check_picture(task: str, rows: datasets.Dataset, column: str) -> None:
    """Refuse a ``column`` that is not there, or holds neither pictures nor paths of them."""
    check_column(task, rows, column)
    if not isinstance(feature := rows.features[column], datasets.Image) and feature != datasets.Value("string"):
        raise DataError(f"task {task!r}: column {column!r} holds {feature}, neither pictures nor their paths")


def loaded(picture: Any) -> Any:
    """``picture`` in RGB.

    Raises:
        FormatError: there is none, or it cannot be read.
    """
    if not picture or not (picture.get("bytes") or picture.get("path")):
        raise FormatError("it has no picture, which every row of such a model needs")
    try:
        return datasets.Image(mode="RGB").decode_example(picture)
    except OSError as error:
        raise FormatError(f"its picture cannot be read: {error}") from None


def unmarked(text: str) -> str:
    """``text`` without the mark of its picture.

    Raises:
        FormatError: marks of several.
    """
    if text.count(MARK) > 1:
        raise FormatError(f"{MARK} stands in it {text.count(MARK)} times: a row has one picture")
    return text.replace(MARK, "").strip() if MARK in text else text
