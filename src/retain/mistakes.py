"""What is wrong with a configuration, in one line: section, key, value, what is allowed, the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
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
    "sequence_str": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_type": "a section of keys",
    "mapping_type": "a section of keys",
    "model_type": "a section of keys",
}
SHOWN = {"strength": ("a section of keys", "a section of keys such as {budget: 2%}")}  # where words do not tell enough


class Within(ValueError):
    """A mistake at ``key`` of the section that was looked at; every section around it puts its own name in front."""

    def __init__(self, key: str, reason: object) -> None:
        super().__init__(f"{key}{'.' if isinstance(reason, Within) else ': '}{reason}")


def check_task_name(name: str) -> str:
    """Refuse what cannot name a task and its files; returns ``name``."""
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(f"{name!r} cannot name a folder; allowed are letters, digits, spaces and _.+-")
    return name


def check_names(section: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Refuse a key of ``section`` that ``owner`` does not know.

    Raises:
        ValueError: naming the key, its value, what is known and the nearest.
    """
    known = list(known)
    for key, value in section.items():
        if key not in known:
            raise ValueError(_unknown(key, value, known, owner))


def check_types(section: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse a value of ``section`` that the type annotation of its key in ``kinds`` does not allow.

    Where only an object of a library's own class would do, the value is left to that library.

    Raises:
        Within: naming the key, its value and what is expected.
    """
    for key, value in section.items():
        if key not in kinds:
            continue
        try:
            TypeAdapter(kinds[key], config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
        except PydanticUserError:
            continue
        except ValidationError as error:
            mistakes = [mistake for mistake in error.errors() if mistake["type"] in (*EXPECTED, "literal_error")]
            if mistakes:
                raise _wrong_type(key, value, mistakes) from None


def _wrong_type(key: str, value: Any, mistakes: Sequence[ErrorDetails]) -> Within:
    """Among the types that were tried the one that fits best is that which fails deepest inside ``value``."""
    places = [tuple(s for s in mistake["loc"] if _inside(value, s)) for mistake in mistakes]
    deepest = max(places, key=len)
    found = [mistake for place, mistake in zip(places, mistakes, strict=True) if place == deepest]
    words, shown = ("", "") if deepest else SHOWN.get(key, ("", ""))
    expected = [shown if words == told else told for told in map(_expected, found)]
    return Within(".".join(map(str, (key, *deepest))), _refusal(found[0]["input"], expected))


def _inside(value: Any, step: int | str) -> bool:
    return isinstance(step, int) if isinstance(value, list) else isinstance(value, dict) and step in value


def _refusal(value: Any, expected: Iterable[str]) -> str:
    allowed = " or ".join(sorted(set(expected), key=lambda e: (len(e), e)))  # typing keeps no order of its own
    hint = did_you_mean(value, re.findall("'(.*?)'", allowed))
    if isinstance(value, bool) and "text" in allowed:
        hint = "; in YAML no and yes are false and true unless they stand in quotes"
    elif str(value).lower() == "none" and not hint:
        hint = "; in YAML nothing is written null"
    return f"{value!r} is not allowed; expected {allowed}{hint}"


def _unknown(key: object, value: Any, known: Sequence[str], owner: str = "") -> str:
    many = len(known) > 25 and owner
    allowed = f"known: the {len(known)} keywords of {owner}" if many else f"known: {', '.join(known)}"
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
        return str(Within(_dotted(place), first["ctx"]["error"]))
    return f"{_dotted(place)}: {_refusal(first['input'], (_expected(e) for p, e in places if p == place))}"


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
        if not _inside(document, step):
            break
        document = document[step]
        place.append(step)
    return tuple(place)


def _keys(kind: Any, place: Sequence[int | str]) -> list[str]:
    """The keys of the section at ``place``, such as ("tasks", 0), in a ``kind`` of model."""
    for step in place:
        kind = get_args(kind)[0] if isinstance(step, int) else kind.model_fields[step].annotation
        kind = get_args(kind)[0] if isinstance(kind, UnionType) else kind  # a section that may be left out
    return list(kind.model_fields)
