"""Which methods take part: names of ``METHODS``, and variants such as ``eblora:energy=0.9,lora.lora_alpha=40``."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from retain import config as configuration
from retain import yamls
from retain.config import RunConfig
from retain.methods import METHODS, method_named

ALL = "all"
ASSIGNMENT = r",(?=[\w.]+=)"  # a comma between two assignments of a variant, not within a value
SECTIONS = ("lora", "heads", "training")  # of which a variant may change a key; rows and seeds are the same for all


@dataclass(frozen=True, eq=False)
class Entry:
    """One method, as it was asked for.

    Attributes:
        label: as it was asked for.
        method: what its runs have as ``method``, but for what is tuned.
        keyword: the method's knob; None if it has none.
        tried: the values of it to try, ascending; empty where there is no choice: no knob, a value that is given, or
            the default alone.
        sections: what a variant changes of the rest of the configuration.
    """

    label: str
    method: dict[str, Any]
    keyword: str | None = None
    tried: tuple[float, ...] = ()
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The label as a file system takes it."""
        return re.sub(r"[^\w.+=,-]+", "_", self.label)

    @property
    def cumulative(self) -> bool:
        """Whether it trains on all tasks at once."""
        return METHODS[self.method["name"]].cumulative


def entries(asked: Sequence[str], config: RunConfig, tries: int) -> tuple[list[Entry], dict[str, str]]:
    """The methods to compare in the order asked for, and of those that "all" leaves out, the reasons.

    What the file says under ``method`` holds for the method of that name. A keyword that the file or a variant sets is
    not tuned.

    Raises:
        ValueError: a name, a keyword or a value that is not allowed, a method that is there twice, or more ``tries``
            than a knob has values.
    """
    labels = [label for item in asked for label in ([m for m in METHODS if m not in asked] if item == ALL else [item])]
    found, left_out = list[Entry](), dict[str, str]()
    for label in labels:
        try:
            found.append(_entry(label, config, tries))
        except configuration.ConfigError as error:
            if label in asked:
                raise ValueError(f"{label}: {error}") from None
            left_out[label] = str(error)
    for folder in (folders := [entry.folder for entry in found]):
        if folders.count(folder) > 1:
            raise ValueError(f"{folder!r} is there twice; methods: {', '.join(entry.label for entry in found)}")
    if not found:
        raise ValueError(f"no method to compare; known: {ALL}, {', '.join(METHODS)}")
    return found, left_out


def tried(values: Sequence[float], default: Any, tries: int) -> tuple[float, ...]:
    """So many of ``values`` in a row, with ``default`` in the middle as far as there are values on both sides."""
    centre = list(values).index(default) if default in values else len(values) // 2
    start = min(max(centre - tries // 2, 0), len(values) - tries)
    return tuple(values[start : start + tries])


def _entry(label: str, config: RunConfig, tries: int) -> Entry:
    name, _, rest = label.partition(":")
    cls, whole = method_named(name), config.model_dump(exclude_none=True)
    sections = {"method": dict(config.method) if config.method["name"] == name else {"name": name}}
    for assignment in re.split(ASSIGNMENT, rest) if rest else []:
        section = assignment.partition(".")[0]
        if section in SECTIONS:
            sections.setdefault(section, copy.deepcopy(whole[section]))
        yamls.override(sections, assignment if section in SECTIONS else f"method.{assignment}")
    method = sections.pop("method")
    keyword, values = cls.knob or (None, ())
    choice = () if keyword is None or keyword in method or tries == 1 else values
    if choice and tries > len(choice):
        raise ValueError(f"--tries {tries}: {keyword} of {label} has {len(choice)} values, and all methods try as many")
    if choice:
        choice = tried(choice, inspect.signature(cls).parameters[str(keyword)].default, tries)
    for own in [{keyword: value} for value in choice] or [{}]:
        configuration.parse(whole | sections | {"method": method | own})
    return Entry(label, method, keyword, choice, sections)
