"""Runs made of nothing but outcomes, for what reports say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retain.report.read import Run


def told(name: str, stages: list[list[str]], tasks: str = "faq sql law", **results: Any) -> Run:
    """A run of method ``name`` whose stages found ``stages``: of each task a string of 0 and 1 by test row."""
    names = tasks.split()[: len(stages[0])]
    records = [
        {
            "learned": number,
            "tasks": {
                task: {"rows": len(bits), "loss": 1.0, "known": bits, "unknown": bits}
                for task, bits in zip(names, found, strict=True)
            },
        }
        for number, found in enumerate(stages)
    ]
    fixed = {
        "retain": "0",
        "method": {"name": name},
        "scenario": "task",
        "seed": 0,
        "rows": "test",
        "tasks": names,
        "calibration": [],
        "warnings": {},
        "boundary": {},
        "bytes": {},
        "steps": 3,
        "seconds": {"train": 1.0},
    }
    return Run(Path(name), {}, fixed | results, records, [Path("base")])


# Of ten rows each: faq is learned and half forgotten, sql is learned; law comes last.
FORGETFUL = [["0" * 10] * 3, ["1" * 10, "0" * 10, "0" * 10], ["1" * 8 + "00", "1" * 10, "0" * 10]]
FORGETFUL.append(["1" * 5 + "0" * 5, "1" * 10, "1" * 10])
FAITHFUL = [["0" * 10] * 3, ["1" * 10, "0" * 10, "0" * 10], ["1" * 10] * 2 + ["0" * 10], ["1" * 10] * 3]
