"""What is wrong with a configuration, in one line: section, key, value, what is allowed, the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from retain.nearest import did_you_mean

EXPECTED = {  # pydantic's kinds of mistake in plain words
    "string_type": "text",
    "string_too_short": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "list_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
}


def check_names(section: dict[str, Any], known: Iterable[str], owner: str) -> None:
    """Refuse a key of ``section`` that ``owner`` does not know.

    Raises:
        ValueError: naming the key, its value, what is known and the nearest.
    """
    known = list(known)
    for key, value in section.items():
        if key not in known:
            raise ValueError(_unknown(key, value, known, owner))


def _unknown(key: object, value: Any, known: Sequence[str], owner: str = "") -> str:
    allowed = f"known: {', '.join(known)}" if len(known) <= 25 else f"known: the {len(known)} keywords of {owner}"
    return f"unknown key {key!r} (value {value!r}); {allowed}{did_you_mean(key, known)}"


def one_line(error: ValidationError, document: dict[str, Any], root: type[BaseModel]) -> str:
    """The first mistake that ``error`` found in ``document``, a would-be ``root``.

    A key that is not known comes before one that is missing: it may be the same one misspelt. Where a value may be of
    several types, it says what each of them expects.
    """
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    places = [(_place(e["loc"], document), e) for e in mistakes]
    place, first = places[0]
    if first["type"] == "missing":
        return f"{_dotted(first['loc'][:-1])}: the key {first['loc'][-1]!r} is missing"
    if first["type"] == "extra_forbidden":
        return f"{_dotted(place[:-1])}: {_unknown(place[-1], first['input'], _keys(root, place[:-1]))}"
    if first["type"] == "value_error":
        return f"{_dotted(place)}: {first['ctx']['error']}"
    expected = " or ".join(dict.fromkeys(_expected(e) for p, e in places if p == place))
    hint = did_you_mean(first["input"], re.findall("'(.*?)'", expected))
    return f"{_dotted(place)}: {first['input']!r} is not allowed; expected {expected}{hint}"


def _expected(mistake: ErrorDetails) -> str:
    if mistake["type"] in EXPECTED:
        return EXPECTED[mistake["type"]].format(**mistake.get("ctx", {}))
    return mistake["msg"].removeprefix("Input should be ")


def _dotted(place: Sequence[int | str]) -> str:
    return ".".join(map(str, place)) or "the top level"


def _place(location: Sequence[int | str], document: Any) -> tuple[int | str, ...]:
    """``location`` as far as it is in the document: pydantic appends the name of the type it tried."""
    place: list[int | str] = []
    for step in location:
        inside = isinstance(document, dict) and step in document or isinstance(document, list) and isinstance(step, int)
        if not inside:
            break
        document = document[step]
        place.append(step)
    return tuple(place)


def _keys(kind: Any, place: Sequence[int | str]) -> list[str]:
    """The keys of the section at ``place``, such as ("tasks", 0), in a ``kind`` of model."""
    for step in place:
        kind = get_args(kind)[0] if isinstance(step, int) else kind.model_fields[step].annotation
    return list(kind.model_fields)
