"""Rows as data for language models come: each is cut into pieces of text, of which some are to be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Format = Literal["messages", "sharegpt", "prompt", "alpaca", "text"]
Learned = Literal["completion", "last", "all"]
Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]

COLUMNS: dict[str, tuple[str, ...]] = {  # the columns that tell a format
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
CONTENT = {"messages": "content", "prompt": "content", "sharegpt": "value"}  # the key of a turn's text
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

REWRITTEN = (
    "the chat template writes an answer otherwise once more messages follow, so that it is not what the model sees "
    "when it goes on; `language.loss: last` learns the last answer alone"
)
UNOPENED = "the chat template does not begin an answer as its generation prompt does: it cannot be told what to learn"


class FormatError(ValueError):
    """A row that does not have the form it should."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text, and whether the model is to learn to write it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Spoken:
    """A row as text.

    Attributes:
        pieces: in order; joined they are the row. Each is tokenised alone, as it is when the model answers.
        answer: what the model should write last; None where there is no prompt.
        rendered: whether a chat template has made the pieces, with all special tokens.
    """

    pieces: list[Piece]
    answer: str | None
    rendered: bool


def format_of(columns: Sequence[str], named: str | None, text: str) -> str:
    """The format that ``columns`` show: the one that is ``named``, else the only one that they fit.

    ``text`` is the name of the column of plain texts.

    Raises:
        FormatError: columns that are missing, or that fit several formats or none.
    """
    wanted = COLUMNS | {"text": (text,)}
    fitting = [name for name in get_args(Format) if set(wanted[name]) <= set(columns)]
    if named is not None:
        if missing := [column for column in wanted[named] if column not in columns]:
            raise FormatError(f"no column {missing[0]!r}, which format {named!r} needs; columns: {', '.join(columns)}")
        return named
    if len(fitting) > 1:
        raise FormatError(f"columns {', '.join(columns)} fit several formats: say `format: {' | '.join(fitting)}`")
    if not fitting:
        known = "; ".join(f"{name}: {' and '.join(needed)}" for name, needed in wanted.items())
        raise FormatError(f"columns {', '.join(columns)} fit no format; known: {known}")
    return fitting[0]


def spoken(row: Mapping[str, Any], form: str, text: str, learned: Learned, render: Render | None) -> Spoken:
    """``row`` of format ``form`` as text.

    Args:
        row: by column.
        form: as ``format_of`` found it.
        text: the column of format "text".
        learned: "completion": every answer; "last": only the last; "all": everything.
        render: the tokenizer's chat template: messages, and whether to open an answer, -> text. None: it has none.

    Raises:
        FormatError: what the row lacks, or messages without a template.
    """
    if form == "text":
        return Spoken([Piece(_text(row, text), True)], None, False)
    if form == "prompt" and isinstance(row["prompt"], str):
        return _plain(_text(row, "prompt"), _text(row, "completion"), learned)
    if form == "alpaca" and render is None:
        return _plain(_alpaca_prompt(row), _text(row, "output"), learned)
    if form == "prompt":
        asked, answered = _messages(row, "prompt"), _messages(row, "completion")
    elif form == "alpaca":
        asked, answered = _alpaca(row), [{"role": "assistant", "content": _text(row, "output")}]
    else:
        asked, answered = [], _messages(row, "messages") if form == "messages" else _sharegpt(row)
    if render is None:
        raise FormatError(
            "messages need a chat template, and this tokenizer has none: use a model that has one, or rows of "
            "`prompt` and `completion`"
        )
    return _rendered(asked, answered, learned, render)


def answer_of(row: Mapping[str, Any], form: str) -> str:
    """The last answer of ``row``, which ``spoken`` has accepted, as it stands there."""
    if form == "prompt" and isinstance(row["completion"], str):
        return row["completion"]
    return str(row["output"] if form == "alpaca" else _turns(row, form)[-1][CONTENT[form]])


def answered(row: Mapping[str, Any], form: str, answer: str) -> dict[str, Any]:
    """``row`` with another last answer."""
    if form == "alpaca" or (form == "prompt" and isinstance(row["completion"], str)):
        return dict(row) | {COLUMNS[form][1]: answer}
    *before, last = _turns(row, form)
    return dict(row) | {COLUMNS[form][-1]: [*before, dict(last) | {CONTENT[form]: answer}]}


def _turns(row: Mapping[str, Any], form: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = row[COLUMNS[form][-1]]
    return turns


def _plain(prompt: str, completion: str, learned: Learned) -> Spoken:
    return Spoken([Piece(prompt, learned == "all"), Piece(completion, True)], completion, False)


def _rendered(asked: list[Message], answered: list[Message], learned: Learned, render: Render) -> Spoken:
    """The conversation ``asked`` and ``answered``, cut where answers begin and end; those in ``answered`` count."""
    messages = asked + answered
    mine = [i for i in range(len(asked), len(messages)) if messages[i]["role"] == "assistant"]
    if not mine or mine[-1] != len(messages) - 1:
        raise FormatError("the last message is not the assistant's: there is nothing to learn to say")
    whole, pieces, end = render(messages, False), [], 0
    for i in mine[-1:] if learned == "last" else mine:
        before, after = render(messages[:i], True), render(messages[: i + 1], False)
        if not (whole.startswith(before) and whole.startswith(after) and len(before) < len(after)):
            raise FormatError(REWRITTEN if i != mine[-1] else UNOPENED)
        pieces += [Piece(whole[end : len(before)], learned == "all"), Piece(whole[len(before) : len(after)], True)]
        end = len(after)
    return Spoken(pieces, str(messages[-1]["content"]), True)


def _messages(row: Mapping[str, Any], column: str) -> list[Message]:
    """Messages with role and content; what a row leaves empty is left out."""
    found = row[column]
    if not isinstance(found, list) or not found:
        raise FormatError(f"column {column!r} holds no messages")
    messages = [{k: v for k, v in message.items() if v is not None} for message in found]
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise FormatError(f"column {column!r}: a message needs `role` and `content`, both text; got {message}")
    return messages


def _sharegpt(row: Mapping[str, Any]) -> list[Message]:
    messages = []
    for turn in row["conversations"] or []:
        speaker, said = turn.get("from"), turn.get("value")
        if speaker not in SPEAKERS or not isinstance(said, str):
            raise FormatError(
                f"column 'conversations': a turn needs `from` ({', '.join(SPEAKERS)}) and `value`; got {turn}"
            )
        messages.append({"role": SPEAKERS[speaker], "content": said})
    if not messages:
        raise FormatError("column 'conversations' holds no turns")
    return messages


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    parts = [_text(row, "instruction"), row.get("input") or ""]
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": "\n\n".join(part for part in parts if part)}]


def _alpaca_prompt(row: Mapping[str, Any]) -> str:
    """An instruction for a model without a chat template."""
    parts = [row.get("system"), f"### Instruction:\n{_text(row, 'instruction')}"]
    parts += [f"### Input:\n{row['input']}" if row.get("input") else None, "### Response:\n"]
    return "\n\n".join(part for part in parts if part)


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise FormatError(f"column {column!r} holds {row[column]!r}, not text")
    return row[column]
