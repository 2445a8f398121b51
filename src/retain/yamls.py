"""YAML as people mean it: 1e-4 is a number, a key that stands twice is a mistake, and nothing runs or explodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

LONGEST = 2**17  # characters of a document: hundreds of tasks
DEEPEST = 32  # sections in sections
MOST = 100_000  # values, those of aliases counted wherever they stand
WORD = 10_000  # characters of a single value

EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key is a word or a number (line {key.start_mark.line + 1})")
            if key.value in known:
                raise ValueError(f"the key {key.value!r} stands twice (line {key.start_mark.line + 1})")
            known.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, and quotes a text that would be read back as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1, which PyYAML speaks, reads 1e-4 as text for want of a dot.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def read(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        ValueError: not YAML, in one line that says where; or larger or deeper than what people write.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters; at most {LONGEST:,} are read")
    try:
        _check(yaml.parse(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"not YAML: {place}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from None


def _check(events: Iterable[Any]) -> None:
    """Refuse a document by what it would become: aliases of aliases grow without end, and tags ask for objects.

    Raises:
        ValueError: by its line.
    """
    count, opened = 0, list[tuple[str | None, int, int]]()  # of each section its anchor, the count before it, its depth
    anchors: dict[str, tuple[int, int]] = {}  # the values of each, and the sections in each other
    for event in events:
        where, anchor = f"(line {event.start_mark.line + 1})", getattr(event, "anchor", None)
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"the tag {event.tag} is not allowed {where}")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > WORD:
            raise ValueError(f"a value of {len(event.value):,} characters; at most {WORD:,} are read {where}")
        if isinstance(event, yaml.AliasEvent) and any(anchor == name for name, *_ in opened):
            raise ValueError(f"the alias *{anchor} stands for what it is part of {where}")
        values, below = 1, 0
        if isinstance(event, yaml.AliasEvent):
            values, below = anchors.get(str(anchor), (1, 0))
        elif isinstance(event, yaml.ScalarEvent) and anchor is not None:
            anchors[anchor] = 1, 0
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, count, 0))
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before, below = opened.pop()
            if name is not None:
                anchors[name] = count - before, below + 1
            values, below = 0, below + 1
        else:
            values = int(isinstance(event, yaml.ScalarEvent))
        count += values
        if opened:
            opened[-1] = *opened[-1][:2], max(opened[-1][2], below)
        if count > MOST or len(opened) + below > DEEPEST:
            limit = f"{MOST:,} values" if count > MOST else f"{DEEPEST} sections in each other"
            raise ValueError(f"more than {limit} {where}")


def write(content: Any) -> str:
    """``content`` as YAML in the order that it has."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow(content: Any) -> str:
    """``content`` as YAML on one line."""
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**6)
    return text.strip()


def append(text: str, section: str, entries: Sequence[Any]) -> str:
    """``text``, a document of sections, with ``entries`` behind those of the list ``section``, and all else as it is.

    Raises:
        ValueError: no such list, or one that is written in a way that this cannot add to.
    """
    before = read(text)
    if not isinstance(before, dict) or not isinstance(before.get(section), list) or not before[section]:
        raise ValueError(f"there is no list {section!r} to add to")
    end, column, within = _end(text, section)
    if not within and (end := text.find("\n", len(text[:end].rstrip()))) < 0:
        end = len(text)
    form = ", {}" if within else f"\n{' ' * column}- {{}}"
    found = text[:end] + "".join(form.format(flow(entry)) for entry in entries) + text[end:]
    try:
        fits = read(found) == before | {section: [*before[section], *entries]}
    except ValueError:
        fits = False
    if not fits:
        lines = "\n".join(f"- {flow(entry)}" for entry in entries)
        raise ValueError(f"{section!r} is written in a way that nothing can be added to; add this yourself:\n{lines}")
    return found


def _end(text: str, section: str) -> tuple[int, int, bool]:
    """Of the list ``section`` where its last item ends, where its items stand in the line, and if brackets hold it."""
    depth, last, column, key, within = 0, 0, -1, "", False
    for event in yaml.parse(text, Loader=_Loader):
        begins, ends = event.start_mark, event.end_mark
        if begins is None or ends is None:
            continue
        opens, closes = (isinstance(event, kind) for kind in (yaml.CollectionStartEvent, yaml.CollectionEndEvent))
        depth -= closes
        if column >= 0 and closes and depth == 1:
            return last, column, within
        if depth == 1 and column < 0:
            if isinstance(event, yaml.SequenceStartEvent) and key == section:
                column, within = begins.column, bool(event.flow_style)
            key = event.value if isinstance(event, yaml.ScalarEvent) else ""
        depth += opens
        bracket = closes and text[begins.index : ends.index] in ("]", "}")
        if bracket or isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            last = ends.index
    raise ValueError(f"there is no list {section!r} to add to")


def override(document: dict[str, Any], assignment: str, after: str = "") -> None:
    """Carry out ``section.key=value`` in ``document``; the value is YAML, and a number picks an entry of a list.

    Raises:
        ValueError: not an assignment, whose value may be what comes ``after`` it, or its section is none.
    """
    path, equals, value = assignment.partition("=")
    if not equals or not path.strip():
        apart = not equals and after and (after.startswith("=") or "=" not in after)
        hint = f"; write {assignment}={after.lstrip('=') or 'value'}, without spaces" if apart else ""
        raise ValueError(f"override {assignment!r} is not of the form section.key=value{hint}")
    *sections, last = path.strip().split(".")
    try:
        here: Any = document
        for step in sections:
            key = _key(here, step)
            if here[key] is None:
                here[key] = {}
            here = here[key]
        key = _key(here, last)
        here[key] = read(value)
    except ValueError as error:
        raise ValueError(f"override {assignment!r}: {error}") from None


def _key(here: Any, step: str) -> Any:
    """``step`` as an index of ``here``, where a section that lacks it gets it."""
    if isinstance(here, dict):
        here.setdefault(step)
        return step
    if not isinstance(here, list):
        raise ValueError(f"{step!r} is inside {here!r}, which is no section")
    if not step.isdecimal() or int(step) >= len(here):
        raise ValueError(f"{step!r} is no entry of a list of {len(here)}, counted from 0")
    return int(step)
