"""A finished run as its report needs it: what the stages found, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retain import scores, store
from retain.collection import Adapter, read_adapter
from retain.intake import read_yaml
from retain.metrics import TITLES, Answered, Array
from retain.results import KINDS, columns, unit_of
from retain.summaries import read_results
from retain.tokenwise import in_nats


@dataclass(frozen=True)
class Run:
    """A run's folder, configuration, ``results.json``, the record of every stage, and the README of its adapter."""

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    records: list[dict[str, Any]]
    stages: list[Path]
    readme: str = ""

    @property
    def tasks(self) -> list[str]:
        return self.results["tasks"]

    @property
    def name(self) -> str:
        """The method, as a person would call the run."""
        return self.results["method"]["name"]

    @property
    def tokenwise(self) -> dict[str, Any] | None:
        """What ``results.json`` says of losses that are the scores, where lower is better; else None."""
        return in_nats(self.results)[0]

    @property
    def guard(self) -> dict[str, Any] | None:
        """What ``results.json`` says of what the untouched model could do; None where no guard was named."""
        return self.results.get("guard")

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """What tasks were asked: (T+1, T) by metric, higher is better; NaN where nothing was asked or measured."""
        return {name: np.array(told["matrix"], dtype=float) for name, told in self.results.get("metrics", {}).items()}

    @property
    def unit(self) -> str:
        """What the score matrix holds."""
        return in_nats(self.results)[1] or unit_of(self.results)

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Every task with the number of its test rows, and what was scored on them."""
        return [(self.unit, 0), *((task, self.records[-1]["tasks"][task]["rows"]) for task in self.tasks)]

    @property
    def columns(self) -> list[str]:
        """The tasks, each with its metric where several differ."""
        if self.unit != "score":
            return self.tasks
        return [f"{task}: {TITLES[self.results['metric'][task]]}" for task in self.tasks]

    @property
    def bits(self) -> str:
        """The key under which a record has the outcomes that count in this scenario."""
        return KINDS[self.results["scenario"]][0]

    @cached_property
    def outcomes(self) -> list[Array | Answered]:
        """Per task (T+1, rows) of 1 and 0 after every stage, or what was answered; NaN where nothing was measured."""
        return columns(self.records, self.tasks, self.bits)

    @cached_property
    def matrix(self) -> np.ndarray:
        """(T+1, T) score of every task after every stage, or its loss; NaN where nothing was measured."""
        if self.tokenwise:
            return np.array(self.tokenwise["matrix"], dtype=float)
        return scores.matrix_of(self.outcomes)

    @property
    def in_turn(self) -> bool:
        """Whether it learned task after task, and so could forget."""
        return len(self.tasks) > 1 and len(self.records) == len(self.tasks) + 1

    def adapters(self) -> list[Adapter]:
        """The adapter after every task, as far as they are plain LoRAs of linear layers."""
        found = []
        for folder in self.stages[1:]:
            try:
                found.append(read_adapter(folder / "adapter"))
            except store.StoreError:
                return []
        return found


def read_run(folder: Path) -> Run:
    """Read the run in ``folder``.

    Raises:
        StoreError: no run, one that is not finished, or a damaged file.
    """
    if not (folder / "config.yaml").exists():
        raise store.StoreError(f"{folder} holds no run: it has no config.yaml")
    if not (folder / "results.json").exists():
        done = len([path for path in store.stage_folders(folder)[1:] if store.is_closed(path)])
        raise store.StoreError(f"{folder} is not finished ({done} tasks are): run `retain run` again, then the report")
    config = read_yaml(folder / "config.yaml")
    stages = [p for p in store.stage_folders(folder) if p.name == "base" or store.is_closed(p)]
    for stage in stages:
        store.verify(stage, "scores.json")
    records = [store.read_json(stage / "scores.json") for stage in stages]
    readme = folder / "adapter" / "README.md"
    told = readme.read_text(encoding="utf-8") if readme.exists() else ""
    return Run(folder, config, read_results(folder / "results.json"), records, stages, told)
