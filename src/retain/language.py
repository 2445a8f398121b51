"""Streams of a language model: texts, prompts, conversations -> tokens, and which of them are learned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import datasets
from datasets.fingerprint import Hasher

from retain.answers import Apart, Asked
from retain.batches import Padded
from retain.formats import FormatError, Learned, Spoken, answer_of, answered, format_of, spoken
from retain.nearest import did_you_mean
from retain.pictures import Illustrated, Pictures, check_picture
from retain.sources import DataError, Split, progress
from retain.splits import splits_of
from retain.task import IGNORED, CrossEntropy, Task

if TYPE_CHECKING:
    from retain.config import RunConfig, TaskConfig

MAX_LENGTH = 512  # tokens, unless a task says otherwise
PICTURED = 2048  # the same of rows with pictures, of which LLaVA makes 576
LONGER = 2  # times the longest answer is what a model may write, unless a task says otherwise
MOST = 100  # different answers that are options
SPACE = "▁"  # of sentencepiece
LONG = 5_000  # rows from which on a progress bar is worth its line


def language_tasks(config: RunConfig, processor: Any) -> tuple[list[Task], Task | None, dict[str, Asked], Apart | None]:
    """The tasks and the guard of ``config``, what is asked on the test rows of tasks, and what calibrates the gauge.

    Rows are data sets of ``input_ids`` and ``labels``, -100 where nothing is learned; those of an encoder-decoder have
    what is read in the one and what is to be written in the other, those of a model of pictures their ``image``.

    Raises:
        DataError: the first thing wrong with the data, in one line.
    """
    encode, asked, apart = encoder_of(config, processor), dict[str, Asked](), Apart()
    tokenizer, pictures = encode.tokenizer, encode.pictures
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    padded = Padded(tokenizer.pad_token_id)
    collate = padded if pictures is None else Illustrated(padded, pictures)

    def task(entry: TaskConfig) -> Task:
        splits = splits_of(config, entry, labelled=False).at_most(entry, config.rows_seed)
        train = splits.train.rows

        def scored(split: Split, questions: dict[str, Asked]) -> datasets.Dataset:
            rows = encode(entry, "test", split.rows, train)
            if entry.metrics or entry.options:
                questions[entry.name] = _asked(entry, rows, encode)
            return rows

        learned = encode(entry, "training", train)
        found = Task(entry.name, learned, scored(splits.test, asked), CrossEntropy(), collate)
        if splits.gauge is not None:
            apart.tasks[entry.name] = replace(found, test=scored(splits.gauge, apart.asked))
        return found

    tasks, guard = [task(entry) for entry in config.tasks], None if config.guard is None else task(config.guard)
    return tasks, guard, asked, apart if apart.tasks else None


def encoder_of(config: RunConfig, processor: Any) -> Encoder:
    """What makes tokens of the rows of ``config``; ``processor`` is the model's, or its tokenizer."""
    if config.model.kind == "image-text-to-text":
        return Encoder(processor.tokenizer, "completion", pictures=Pictures(processor))
    return Encoder(processor, config.language.loss, apart=config.model.kind == "seq2seq-lm")


def _asked(entry: TaskConfig, rows: datasets.Dataset, encode: Encoder) -> Asked:
    """What ``entry`` asks on its test ``rows``, if the model's context has room for it."""
    most, tokenizer = entry.max_new_tokens or LONGER * max(rows["length"]), encode.tokenizer
    longest = 0 if encode.apart else max(len(prompt) for prompt in rows["prompt"])
    if entry.metrics and longest + most > tokenizer.model_max_length:
        raise DataError(
            f"task {entry.name!r}: a prompt of {longest} tokens and {most} that may be written are more than the "
            f"model's {tokenizer.model_max_length}: lower max_new_tokens"
        )
    pixels = encode.pictures.pixels if encode.pictures else None
    return Asked(rows, entry.metrics or (), tokenizer, most, options=bool(entry.options), pixels=pixels)


@dataclass(frozen=True)
class _Reading:
    """How rows are read, cut at ``length`` tokens, and whether what is asked on them is kept, with which options."""

    form: str
    text: str
    length: int
    asks: bool = False
    options: Sequence[str] = ()
    image: str | None = None

    @property
    def columns(self) -> list[str]:
        asked = ["prompt", "answer", "length"] if self.asks else []
        pictured = ["image"] if self.image else []
        return ["input_ids", "labels", *pictured, *asked, *(["options", "right"] if self.options else [])]


class Encoder:
    """Rows of any format -> rows of tokens and labels.

    Args:
        tokenizer: of the model.
        learned: of a row, where the model is causal.
        apart: for an encoder-decoder: all before the last answer is read, and that is learned.
        pictures: of a model that takes one with each row. LLaVA's template puts a space before an answer, which its
            tokenizer puts before whatever it is given, too.
    """

    def __init__(
        self, tokenizer: Any, learned: Learned, *, apart: bool = False, pictures: Pictures | None = None
    ) -> None:
        self.tokenizer, self.learned, self.apart = tokenizer, learned if not apart else "last", apart
        self.pictures = pictures
        # Takes long for a large vocabulary: once here, not in every map.
        self.hash = Hasher.hash(tokenizer if pictures is None else pictures.processor)
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids[:1])
        self.joins = pictures is not None and "".join(first).startswith(SPACE)
        opening = list(tokenizer("").input_ids)
        self.opening = opening[:-1] if opening and opening[-1] == tokenizer.eos_token_id else opening

    def __call__(
        self, entry: TaskConfig, kind: str, rows: datasets.Dataset, seen: datasets.Dataset | None = None
    ) -> datasets.Dataset:
        """``rows`` of ``entry`` as tokens; those of which ``max_length`` leaves nothing to learn are left out.

        Test rows, those with training rows ``seen`` beside them, have what ``entry`` asks in columns of their own.
        """
        where, how = f"task {entry.name!r}", self._reading(entry, rows, seen)
        if how.image:
            rows = rows.cast_column(how.image, datasets.Image(decode=False))

        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            found: dict[str, list[Any]] = {name: [] for name in how.columns}
            for at, number in enumerate(numbers):
                try:
                    row = self._row({column: values[at] for column, values in batch.items()}, how)
                except FormatError as error:
                    raise DataError(f"{where}: {kind} row {number}: {error}") from None
                for key, value in row.items():
                    found[key].append(value)
            return found

        with progress(len(rows) > LONG):
            tokens = rows.map(
                encode,
                batched=True,
                with_indices=True,
                remove_columns=rows.column_names,
                new_fingerprint=Hasher.hash([rows._fingerprint, self.hash, self.learned, self.apart, astuple(how)]),
                desc=f"tokenizing {entry.name}",
            )
        if not len(tokens):
            raise DataError(f"{where}: max_length {how.length} leaves no {kind} row anything to learn: raise it")
        if left_out := len(rows) - len(tokens):
            warnings.warn(
                f"{where}: max_length {how.length} ends {left_out} of {len(rows)} {kind} rows before anything is "
                "learned: they are left out",
                stacklevel=2,
            )
        return tokens

    def _reading(self, entry: TaskConfig, rows: datasets.Dataset, seen: datasets.Dataset | None) -> _Reading:
        where, longest = f"task {entry.name!r}", self.tokenizer.model_max_length
        usual = MAX_LENGTH if self.pictures is None else PICTURED
        length, text = entry.max_length or min(usual, longest), str(entry.text)
        if length > longest:
            raise DataError(f"{where}: max_length {length} is more than the model's {longest}")
        try:
            form = format_of(rows.column_names, entry.format, text)
        except FormatError as error:
            raise DataError(f"{where}: {error}") from None
        asks = seen is not None and bool(entry.metrics or entry.options)
        if form == "text" and (asks or self.apart or self.pictures):
            reader = "an encoder-decoder" if self.apart else "a model of pictures" if self.pictures else ""
            wanted = f"{reader} learns to write" if reader else "metrics and options need"
            raise DataError(f"{where}: rows of format 'text' have no answers, which {wanted}")
        image = entry.image if self.pictures else None
        if image:
            check_picture(entry.name, rows, image)
        options = _options(entry, seen, form) if asks and entry.options else ()
        return _Reading(form, text, length, asks, options, image)

    def _row(self, row: Mapping[str, Any], how: _Reading) -> dict[str, Any]:
        """The columns of a row; none if nothing is left to learn."""
        said, picture = spoken(row, how.form, how.text, self.learned, self._render), []
        if self.pictures:
            said, picture = self.pictures.placed(said), self.pictures.tokens(row[str(how.image)])
        if self.apart:
            ids, labels = prompt, answer = self.pair(said, how.length)
        else:
            ids, labels, start = self.tokens(said, picture)
            prompt, answer = ids[:start], ids[start:]
        if all(label == IGNORED for label in labels[: how.length]):
            return {}
        found: dict[str, Any] = {"input_ids": ids[: how.length], "labels": labels[: how.length]}
        if how.image:
            found |= {"image": row[how.image]}
        if how.asks:
            found |= {"prompt": prompt, "answer": said.answer, "length": len(answer)}
        return found | (self._choices(row, how, str(said.answer)) if how.options else {})

    def _choices(self, row: Mapping[str, Any], how: _Reading, answer: str) -> dict[str, Any]:
        """The ids that each option would have as the answer of ``row``, and which of them is its ``answer``."""
        options, found = how.options, []
        if answer not in options:
            known = ", ".join(map(repr, options[:20])) + ", ..." * (len(options) > 20)
            raise FormatError(f"the answer {answer!r} is none of the options {known}{did_you_mean(answer, options)}")
        for option in options:
            other = spoken(answered(row, how.form, option), how.form, how.text, self.learned, self._render)
            found.append(self.pair(other, how.length)[1] if self.apart else self._answer(other))
        return {"options": found, "right": options.index(answer)}

    def tokens(self, row: Spoken, picture: Sequence[int] = ()) -> tuple[list[int], list[int], int]:
        """Ids and labels of ``row``, and where its last piece begins; a ``picture`` stands in the place of its mark.

        The pieces are tokenised one by one, between what opens a text and what ends it.

        A chat template writes both itself, but for some of models of pictures; what follows its last end of turn is not
        learned.
        """
        eos, bos = self.tokenizer.eos_token_id, self.tokenizer.bos_token or ""
        opened = row.rendered and (self.pictures is None or row.pieces[0].text.startswith(bos))
        ids = [] if opened else [*self.opening]
        labels, start = [IGNORED] * len(ids), 0
        for number, piece in enumerate(row.pieces, 1):
            text = piece.text.strip(" ") if row.rendered and self.joins else piece.text
            own = list(self.tokenizer(text, add_special_tokens=False).input_ids)
            ended = row.rendered and (self.pictures is None or eos in own)
            if number == len(row.pieces) and not ended and eos is not None:
                own.append(eos)
            if self.pictures:
                own = self.pictures.expanded(own, picture)
            ends = len(own) - own[::-1].index(eos) if row.rendered and eos in own else len(own)
            start = len(ids)
            ids += own
            labels += own[:ends] + [IGNORED] * (len(own) - ends) if piece.learned else [IGNORED] * len(own)
        return ids, [IGNORED, *labels[1:]], start

    def pair(self, row: Spoken, length: int) -> tuple[list[int], list[int]]:
        """Ids that are read of ``row``, at most ``length``, and those to be written, each with a beginning and an end.

        A chat template writes these itself.
        """
        if row.rendered:
            ids, _, start = self.tokens(row)
            return ids[:start][:length], self._answer(row)
        (read, written), eos = (piece.text for piece in row.pieces), self.tokenizer.eos_token_id
        ids = self.tokenizer(read, truncation=True, max_length=length).input_ids
        labels = self.tokenizer(text_target=written).input_ids
        return ids, labels if eos is None or eos in labels else [*labels, eos]

    def _answer(self, row: Spoken) -> list[int]:
        """The ids of the last piece of ``row`` that are learned."""
        _, labels, start = self.tokens(row)
        return [label for label in labels[start:] if label != IGNORED]

    @property
    def _render(self) -> Any:
        if self.pictures:
            return self.pictures.render if self.pictures.processor.chat_template else None
        if self.tokenizer.chat_template is None:
            return None
        return lambda messages, opens: self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens
        )


def _options(entry: TaskConfig, seen: datasets.Dataset, form: str) -> list[str]:
    """The options of ``entry``: those that it lists, or the answers of the training rows ``seen``."""
    if isinstance(entry.options, list):
        return entry.options
    found = sorted({answer_of(row, form) for row in seen})
    if not 2 <= len(found) <= MOST:
        raise DataError(
            f"task {entry.name!r}: its training rows have {len(found)} different answers; `options: true` takes 2 to "
            f"{MOST}: list them"
        )
    return found
