"""What is compared, and the folder that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain import config as configuration
from retain import yamls
from retain.commands.many.cells import Cell
from retain.commands.many.entries import Entry
from retain.config import RunConfig
from retain.nearest import did_you_mean

CLAIM = "compare.yaml"
APART = 1000  # between the seed of a comparison and that of its tuning


@dataclass(frozen=True)
class Budget:
    """What a comparison spends: values to try of every knob, and rows of a task at most."""

    name: str
    tries: int
    max_train: int | None = None
    max_test: int | None = None


BUDGETS = {"full": Budget("full", 5), "small": Budget("small", 3, 40, 50)}


def budget_named(name: str, tries: int | None) -> Budget:
    """The budget of that name, with so many tries if they are given.

    Raises:
        ValueError: there is none.
    """
    if name not in BUDGETS:
        raise ValueError(f"unknown budget {name!r}; known: {', '.join(BUDGETS)}{did_you_mean(name, BUDGETS)}")
    return BUDGETS[name] if tries is None else replace(BUDGETS[name], tries=tries)


@dataclass(frozen=True)
class Comparison:
    """What is compared: ``document`` is the configuration of every run but for its method, its seed and its folder."""

    document: dict[str, Any]
    budget: Budget
    entries: list[Entry]
    seeds: list[int]
    output: Path

    def tuning(self, entry: Entry) -> dict[float, Cell]:
        """The runs that try a value of its knob, on validation rows and under a seed that no other run has."""
        common = (
            self.document
            | entry.sections
            | {
                "evaluation": self.document["evaluation"] | {"rows": "validation"},
                "seed": (self.document["seed"] + APART) % 2**32,
            }
        )
        found = {}
        for value in entry.tried:
            folder = self.output / "tuning" / entry.folder / f"{entry.keyword}={value:g}"
            own = {"method": entry.method | {str(entry.keyword): value}, "output": str(folder)}
            name = f"{entry.label}, tuning {entry.keyword} {value:g}"
            found[value] = Cell(entry.label, name, configuration.parse(common | own))
        return found

    def cells(self, entry: Entry, chosen: float | None) -> dict[int, Cell]:
        """Its runs by seed, on test rows, with the value of its knob that was ``chosen`` if there was a choice."""
        method = entry.method if chosen is None else entry.method | {str(entry.keyword): chosen}
        checked = configuration.parse(self.document | entry.sections | {"method": method})
        found = {}
        for turn, seed in enumerate(self.seeds, 1):
            own = {"seed": seed, "output": str(self.output / entry.folder / f"seed-{seed}")}
            found[seed] = Cell(entry.label, f"{entry.label}, seed {seed}", checked.model_copy(update=own), turn)
        return found


def reference(label: str | None, found: Sequence[Entry]) -> str:
    """The label of the method that others are compared with: ``label``, else sequential, else the first.

    Raises:
        ValueError: it is not among them.
    """
    labels = [entry.label for entry in found]
    if label is None:
        return "sequential" if "sequential" in labels else labels[0]
    if label not in labels:
        near = did_you_mean(label, labels)
        raise ValueError(f"--against {label!r} is not among the methods: {', '.join(labels)}{near}")
    return label


def document(config: RunConfig, budget: Budget) -> dict[str, Any]:
    """``config`` without method and output: no more rows than allowed, and the same for all seeds."""
    content = config.model_dump(exclude_none=True, exclude={"method", "output"})
    for task in [*content["tasks"], *([content["guard"]] if "guard" in content else [])]:
        for key in ("max_train", "max_test"):
            if (most := getattr(budget, key)) is not None:
                task[key] = min(task.get(key, most), most)
    return content | {"split_seed": config.rows_seed}


def described(config: RunConfig, made: Comparison) -> str:
    """What does not change from one sitting to the next, as YAML: more methods and more seeds may come."""
    budget = {"budget": made.budget.name, "tries": made.budget.tries}
    return yamls.write(budget | {"stream": made.document | {"method": config.method}})
