"""``retain check``: whether a run has forgotten more than it may, as an exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from retain import config as configuration
from retain import store
from retain.guard import rows_of
from retain.paired import lost
from retain.results import KINDS, answered
from retain.scores import Column, matrix_of

Verdict = Literal["fine", "cannot tell", "too much"]
Record = Mapping[str, Any]
TOKENS, LOSSES = "tokens", "losses"  # what is scored of a language model, and of others without classes
USUAL = 0.05  # nats a token
STYLES = {"fine": "green", "cannot tell": "yellow", "too much": "bold red"}


@dataclass(frozen=True)
class Bound:
    """What may be lost: a share of the score that a task had ("%"), points of it (""), or so much loss."""

    value: float
    unit: Literal["%", "", "nats", "nats a token"]

    @classmethod
    def parse(cls, text: str) -> Bound:
        """``2%``, ``0.02`` or ``0.05nats``.

        Raises:
            ValueError: anything else.
        """
        found = re.fullmatch(r"\s*(\d+\.?\d*(?:e-?\d+)?|\.\d+)\s*(%|nats|)\s*", text)
        if not found:
            raise ValueError(
                f"--max-forgetting: {text!r} is not allowed; expected a share of a task's score such as 2%, points of "
                "it such as 0.02, or a rise of its loss such as 0.05nats"
            )
        number, unit = float(found[1]), found[2]
        return cls(number / 100 if unit == "%" else number, unit)  # type: ignore[arg-type]

    def said(self, amount: float) -> str:
        """``amount`` in the bound's unit."""
        return f"{amount:.1%}" if self.unit == "%" else f"{amount:.3f} {self.unit}".rstrip()


def check(folder: Path, bound: Bound | None, console: Console, *, guard: float | None = None) -> bool:
    """Print a verdict on every task of the finished run in ``folder``; False if one has lost more than it may.

    A task has lost what lies between its test rows right after its own training and at the end, a guard what lies
    between the untouched model and the end. It is too much only where the whole 95 % interval over test rows, drawn in
    pairs, is beyond the bound.

    Args:
        folder: of the run.
        bound: of the tasks; None: 2 % of their score, or 0.05 nats a token.
        console: where to print.
        guard: of the guard, nats a token; None: 0.05, if there is one.

    Raises:
        StoreError: no finished run, or a damaged file.
        ValueError: a bound of what the run has not measured.
    """
    if not (folder / "results.json").exists():
        raise store.StoreError(f"{folder} holds no finished run: it has no results.json; `retain run` continues one")
    config = configuration.load(folder / "config.yaml")
    kind = TOKENS if config.model.writes else LOSSES if config.model.in_nats else KINDS[config.scenario][0]
    stages = [p for p in store.stage_folders(folder) if p.name == "base" or store.is_closed(p)]
    for stage in stages:
        store.verify(stage, "scores.json")
    records = [store.read_json(stage / "scores.json") for stage in stages]
    if guard is not None and "guard" not in records[0]:
        raise ValueError(f"--max-guard-rise {guard:g}: the run has no guard; a configuration names one under `guard`")
    verdicts = [*_of_tasks(stages, records, kind, bound, console), *_of_guard(records, guard, console)]
    return "too much" not in verdicts


def _of_tasks(
    stages: Sequence[Path], records: Sequence[Record], kind: str, bound: Bound | None, console: Console
) -> Iterator[Verdict]:
    for number, name in enumerate(records[-1]["tasks"], 1):
        after = next(i for i, record in enumerate(records) if record["learned"] >= number)
        if after == len(records) - 1:
            console.print(f"{name}: learned last, nothing to forget yet", highlight=False, soft_wrap=True)
            continue
        scored = next(iter(records[-1]["tasks"][name].get("answers", {})), kind)
        allowed = _allowed(bound, scored)
        found = [records[i]["tasks"][name] for i in (after, -1)]
        if "metric" in found[0] and allowed.unit != "nats":
            yield told(*judged(name, answered(found), allowed), console)
            continue
        rows = [_rows(stages[i], records[i], name, scored, allowed) for i in (after, -1)]
        yield told(*judged(name, rows, allowed), console)


def _allowed(bound: Bound | None, scored: str) -> Bound:
    """What a task may lose of what is ``scored``: points of a loss are nats a token.

    Raises:
        ValueError: it has to be said, of losses whose size nobody knows.
    """
    if scored == LOSSES and (bound is None or bound.unit != "nats"):
        raise ValueError("tasks have no accuracy: give --max-forgetting as a rise of their loss, such as 2nats")
    if bound is None:
        return Bound(USUAL, "nats a token") if scored == TOKENS else Bound(0.02, "%")
    return Bound(bound.value, "nats a token") if scored == TOKENS and not bound.unit else bound


def _of_guard(records: Sequence[Record], most: float | None, console: Console) -> Iterator[Verdict]:
    if "guard" in records[0]:
        rows = [(-rows_of(record["guard"])).tolist() for record in (records[0], records[-1])]
        bound = Bound(USUAL if most is None else most, "nats a token")
        yield told(*judged(records[0]["guard"]["name"], rows, bound), console)


def told(verdict: Verdict, line: str, console: Console) -> Verdict:
    """Print ``verdict`` after the ``line`` that says what it rests on, and return it."""
    console.print(f"{line}: [{STYLES[verdict]}]{verdict}[/]", highlight=False, soft_wrap=True)
    return verdict


def judged(name: str, rows: Column, bound: Bound) -> tuple[Verdict, str]:
    """The verdict on a task with what its ``rows`` (2, n) scored then and score now, and what it rests on."""
    sign = -1 if bound.unit.startswith("nats") else 1  # of a loss, more is worse
    before, after = sign * matrix_of([rows])[:, 0]
    fall, low, high = lost(rows, relative=bound.unit == "%")
    if isnan(low):
        return "cannot tell", f"{name}: {before:.3f} -> {after:.3f}, of which there is no share"
    verdict: Verdict = "too much" if low > bound.value else "fine" if high <= bound.value else "cannot tell"
    amount, least, most, allowed = map(bound.said, (fall, low, high, bound.value))
    said = f"lost {amount}, 95 % within {least} to {most}, allowed {allowed}"
    return verdict, f"{name}: {before:.3f} -> {after:.3f}, {said}"


def _rows(stage: Path, record: Record, name: str, scored: str, bound: Bound) -> Sequence[float]:
    """The scores (n,) of a task's test rows after ``stage``; losses count below zero, so that higher is better."""
    if bound.unit == "nats":
        store.verify(stage, "losses.safetensors")
        return [-x for x in store.read_tensors(stage / "losses.safetensors")[name].tolist()]
    entry = record["tasks"][name]
    if scored == TOKENS:
        if bound.unit == "%":
            raise ValueError(f"task {name!r} has no accuracy: give --max-forgetting in nats a token, such as {USUAL:g}")
        return (-rows_of(entry)).tolist()
    if scored in entry.get("answers", {}):
        return entry["answers"][scored]
    return [float(bit) for bit in entry[scored]]
