"""Streams of a causal language model: texts, prompts, conversations -> tokens, and which of them are learned."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import datasets
from datasets.fingerprint import Hasher

from retain.batches import Padded
from retain.formats import FormatError, Learned, Spoken, format_of, spoken
from retain.sources import DataError, progress, read
from retain.task import IGNORED, CrossEntropy, Task

if TYPE_CHECKING:
    from retain.config import RunConfig, TaskConfig

MAX_LENGTH = 512  # tokens, unless a task says otherwise
LONG = 5_000  # rows from which on a progress bar is worth its line


def language_tasks(config: RunConfig, tokenizer: Any) -> tuple[list[Task], Task | None]:
    """The tasks and the guard of ``config``: data sets of ``input_ids`` and ``labels``, -100 where nothing is learned.

    Raises:
        DataError: the first thing wrong with the data, in one line.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encode, seed = Encoder(tokenizer, config.language.loss), config.rows_seed

    def task(entry: TaskConfig) -> Task:
        train, test, _ = read(entry, seed, config.evaluation.rows or "test", labelled=False)
        learned = encode(entry, "training", train.at_most(entry.max_train, seed).rows)
        scored = encode(entry, "test", test.at_most(entry.max_test, seed).rows)
        return Task(entry.name, learned, scored, CrossEntropy(), Padded(tokenizer.pad_token_id))

    return [task(entry) for entry in config.tasks], None if config.guard is None else task(config.guard)


class Encoder:
    """Rows of any format -> rows of tokens and labels, with the tokenizer of a causal language model."""

    def __init__(self, tokenizer: Any, learned: Learned) -> None:
        self.tokenizer, self.learned = tokenizer, learned
        self.hash = Hasher.hash(tokenizer)  # takes long for a large vocabulary: once here, not in every map
        opening = list(tokenizer("").input_ids)
        self.opening = opening[:-1] if opening and opening[-1] == tokenizer.eos_token_id else opening

    def __call__(self, entry: TaskConfig, kind: str, rows: datasets.Dataset) -> datasets.Dataset:
        """``rows`` of ``entry`` as tokens; those of which ``max_length`` leaves nothing to learn are left out."""
        where, longest = f"task {entry.name!r}", self.tokenizer.model_max_length
        length, text = entry.max_length or min(MAX_LENGTH, longest), str(entry.text)
        if length > longest:
            raise DataError(f"{where}: max_length {length} is more than the model's {longest}")
        try:
            form = format_of(rows.column_names, entry.format, text)
        except FormatError as error:
            raise DataError(f"{where}: {error}") from None

        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            found: dict[str, list[Any]] = {"input_ids": [], "labels": []}
            for at, number in enumerate(numbers):
                row = {column: values[at] for column, values in batch.items()}
                try:
                    ids, labels = self.tokens(spoken(row, form, text, self.learned, self._render))
                except FormatError as error:
                    raise DataError(f"{where}: {kind} row {number}: {error}") from None
                if any(label != IGNORED for label in labels[:length]):
                    found["input_ids"].append(ids[:length])
                    found["labels"].append(labels[:length])
            return found

        with progress(len(rows) > LONG):
            tokens = rows.map(
                encode,
                batched=True,
                with_indices=True,
                remove_columns=rows.column_names,
                new_fingerprint=Hasher.hash([rows._fingerprint, self.hash, form, text, length, self.learned]),
                desc=f"tokenizing {entry.name}",
            )
        if not len(tokens):
            raise DataError(f"{where}: max_length {length} leaves no {kind} row anything to learn: raise it")
        if left_out := len(rows) - len(tokens):
            warnings.warn(
                f"{where}: max_length {length} ends {left_out} of {len(rows)} {kind} rows before anything is learned: "
                "they are left out",
                stacklevel=2,
            )
        return tokens

    def tokens(self, row: Spoken) -> tuple[list[int], list[int]]:
        """Ids and labels of ``row``: its pieces one by one, between what opens a text and what ends it.

        A chat template writes both itself; what follows its last end of turn is not learned.
        """
        eos = self.tokenizer.eos_token_id
        ids = [] if row.rendered else [*self.opening]
        labels = [IGNORED] * len(ids)
        for number, piece in enumerate(row.pieces, 1):
            own = list(self.tokenizer(piece.text, add_special_tokens=False).input_ids)
            if number == len(row.pieces) and not row.rendered and eos is not None:
                own.append(eos)
            ends = len(own) - own[::-1].index(eos) if row.rendered and eos in own else len(own)
            ids += own
            labels += own[:ends] + [IGNORED] * (len(own) - ends) if piece.learned else [IGNORED] * len(own)
        return ids, [IGNORED, *labels[1:]]

    @property
    def _render(self) -> Any:
        if self.tokenizer.chat_template is None:
            return None
        return lambda messages, opens: self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens
        )
