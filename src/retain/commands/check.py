"""``retain check``: whether a run has forgotten more than it may, as an exit code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from retain import config as configuration
from retain import store
from retain.paired import lost
from retain.results import KINDS

Verdict = Literal["fine", "cannot tell", "too much"]
STYLES = {"fine": "green", "cannot tell": "yellow", "too much": "bold red"}


@dataclass(frozen=True)
class Bound:
    """What may be lost: a share of the score that a task had ("%"), points of it (""), or nats of loss ("nats")."""

    value: float
    unit: Literal["%", "", "nats"]

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
        return f"{amount:.1%}" if self.unit == "%" else f"{amount:.3f}{' nats' if self.unit else ''}"


def check(folder: Path, bound: Bound, console: Console) -> bool:
    """Print a verdict on every task of the finished run in ``folder``; False if one has lost more than ``bound``.

    A task has lost what lies between its test rows right after its own training and at the end. It is too much only
    where the whole 95 % interval over test rows, drawn in pairs, is beyond the bound.

    Raises:
        StoreError: no finished run, or a damaged file.
    """
    if not (folder / "results.json").exists():
        raise store.StoreError(f"{folder} holds no finished run: it has no results.json; `retain run` continues one")
    scenario = configuration.load(folder / "config.yaml").scenario
    stages = [path for path in sorted((folder / "tasks").iterdir()) if store.is_closed(path)]
    for stage in stages:
        store.verify(stage, "scores.json")
    records = [store.read_json(stage / "scores.json") for stage in stages]
    fine = True
    for number, name in enumerate(records[-1]["tasks"], 1):
        after = next(i for i, record in enumerate(records) if record["learned"] >= number)
        if after == len(records) - 1:
            console.print(f"{name}: learned last, nothing to forget yet", highlight=False, soft_wrap=True)
            continue
        then, now = (_rows(stages[i], records[i], name, KINDS[scenario][0], bound) for i in (after, -1))
        verdict, line = judged(name, then, now, bound)
        console.print(f"{line}: [{STYLES[verdict]}]{verdict}[/]", highlight=False, soft_wrap=True)
        fine = fine and verdict != "too much"
    return fine


def judged(name: str, then: Sequence[float], now: Sequence[float], bound: Bound) -> tuple[Verdict, str]:
    """The verdict on a task whose rows scored ``then`` (n,) and score ``now`` (n,), and what it rests on."""
    sign = -1 if bound.unit == "nats" else 1  # of a loss, more is worse
    before, after = (sign * float(np.mean(rows)) for rows in (then, now))
    fall, low, high = lost(then, now, relative=bound.unit == "%")
    if isnan(low):
        return "cannot tell", f"{name}: {before:.3f} -> {after:.3f}, of which there is no share"
    verdict: Verdict = "too much" if low > bound.value else "fine" if high <= bound.value else "cannot tell"
    amount, least, most, allowed = map(bound.said, (fall, low, high, bound.value))
    said = f"lost {amount}, 95 % within {least} to {most}, allowed {allowed}"
    return verdict, f"{name}: {before:.3f} -> {after:.3f}, {said}"


def _rows(stage: Path, record: Mapping[str, Any], name: str, kind: str, bound: Bound) -> list[float]:
    """The scores (n,) of a task's test rows after ``stage``; losses count below zero, so that higher is better."""
    if bound.unit == "nats":
        store.verify(stage, "losses.safetensors")
        return [-x for x in store.read_tensors(stage / "losses.safetensors")[name].tolist()]
    if kind not in record["tasks"][name]:
        raise ValueError(f"task {name!r} has no accuracy: give --max-forgetting in nats, such as 0.05nats")
    return [float(bit) for bit in record["tasks"][name][kind]]
