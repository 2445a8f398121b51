"""How a method's knob is set: the same number of values for all, on validation rows, under a seed of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retain.commands.compare.measure import measure_of
from retain.commands.many.cells import Cell
from retain.commands.many.entries import Entry


def choose(entry: Entry, cells: Mapping[float, Cell]) -> dict[str, Any]:
    """What the runs ``cells`` say, one a value tried: that of the best final score is chosen.

    Of equal ones the nearest to the middle counts, which is the default where there are values on both sides. A run
    that has failed scores null; if all have, nothing is chosen.
    """
    results = {value: cell.results() for value, cell in cells.items() if cell.finished}
    config = next(iter(cells.values())).config
    by = measure_of(config.model.kind, (task.metric for task in config.tasks))
    scores = {value: found[by.key]["scores"][by.decides] for value, found in results.items()}
    middle, sign = len(entry.tried) // 2, 1 if by.lower else -1
    order = sorted(scores, key=lambda value: (sign * scores[value], abs(entry.tried.index(value) - middle)))
    chosen = order[0] if order else None
    return {
        "keyword": entry.keyword,
        "tried": list(entry.tried),
        "scores": [scores.get(value) for value in entry.tried],
        "chosen": chosen,
        "at_the_edge": len(entry.tried) > 1 and chosen in (entry.tried[0], entry.tried[-1]),
        "seed": next(iter(cells.values())).config.seed,
        "rows": "validation",
    }
