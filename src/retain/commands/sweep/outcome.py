"""What finished runs of a sweep amount to: a point for every value, the curves that they make, and the steps saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retain import ledger, store, tokenwise
from retain.commands.many.cells import Cell
from retain.commands.many.spread import spread
from retain.commands.sweep.branch import SHARED
from retain.commands.sweep.curves import SOLE, Curve, Sweep, Value
from retain.commands.sweep.front import Point, hypervolume, knee, pareto
from retain.ledger import LEDGER
from retain.sections import IN_NATS, LANGUAGE

Found = dict[str, Any]
Kind = tuple[str, str, tuple[str, ...]]

# Of each kind: where a run's results have it, what is learned, and the scores learned, forgetting, final.
ACCURACY: Kind = ("accuracy", "learning accuracy", ("learning_accuracy", "forgetting", "average_accuracy"))
SCORE: Kind = ("score", "learning score", ACCURACY[2])
NATS: Kind = (tokenwise.TOKEN, "nats gained a token", ("gained", "forgetting", "final"))
PER_EXAMPLE: Kind = (tokenwise.EXAMPLE, "nats gained an example", NATS[2])
NAMES = ("learned", "forgetting", "final")


def gather(made: Sweep, failed: Mapping[str, str], left_out: Mapping[str, str]) -> Found:
    """Everything that ``sweep.json`` says: of all values that have runs, also those of earlier sittings."""
    kind = _kind(made)
    curves = {curve.label: found for curve in made.curves if (found := _curve(made, curve, kind))["points"]}
    whole = list(complete(curves))
    points = [at(point) for _, point in whole]
    reference = _reference(kind, points)
    for curve in curves.values():
        own = [at(point) for point in curve["points"] if point["complete"]]
        curve["hypervolume"] = hypervolume(own, reference) if own else None
        bend = knee(own) if own else None
        curve["knee"] = None if bend is None else [p for p in curve["points"] if p["complete"]][bend]["value"]
    for (_, point), good in zip(whole, pareto(points), strict=True):
        point["front"] = good
    return {
        "retain": version("retain"),
        "stream": made.document,
        "scenario": made.document["scenario"],
        "rows": made.document["evaluation"].get("rows") or "test",
        "seeds": made.seeds,
        "learned": kind[1],
        "unit": {ACCURACY: "share of rows", SCORE: "score"}.get(kind) or tokenwise.UNITS[kind[0]],
        "reference": {"forgetting": reference[0], "learned": reference[1]},
        "steps": _steps(made),
        "curves": curves,
        "failed": dict(failed),
        "left_out": dict(left_out),
    }


def complete(curves: Mapping[str, Found]) -> Iterator[tuple[str, Found]]:
    """The points of all curves that have every seed and both coordinates, each with the label of its method."""
    return ((label, point) for label, curve in curves.items() for point in curve["points"] if point["complete"])


def at(point: Found) -> Point:
    """(forgetting, learned), means over seeds."""
    return point["forgetting"]["mean"], point["learned"]["mean"]


def reached(made: Sweep, curve: Curve, value: Value) -> Point | None:
    """(forgetting, learned) of a point, means over seeds; None if it lacks a seed."""
    cells = {seed: cell for seed, cell in made.cells(curve, value).items() if cell.finished}
    found = _point(made, cells, _kind(made)) if len(cells) == len(made.seeds) else {"complete": False}
    return at(found) if found["complete"] else None


def _kind(made: Sweep) -> Kind:
    if (model := made.document["model"]["kind"]) in IN_NATS:
        return NATS if model in LANGUAGE else PER_EXAMPLE
    return SCORE if {task.get("metric") for task in made.document["tasks"]} - {None, "accuracy"} else ACCURACY


def _reference(kind: Kind, points: Sequence[Point]) -> Point:
    """(forgetting, learned) that is worse than any of ``points``, which hypervolumes are taken to."""
    if kind is ACCURACY:
        return 1.0, 0.0
    if kind is SCORE:
        return max([f for f, _ in points], default=0.0), min([learned for _, learned in points], default=0.0)
    return max([learned for _, learned in points], default=0.0), 0.0


def _curve(made: Sweep, curve: Curve, kind: Kind) -> Found:
    points = []
    for value in made.found(curve):
        cells = {seed: cell for seed, cell in made.cells(curve, value).items() if cell.finished}
        if cells:
            points.append({"value": None if value == SOLE else value} | _point(made, cells, kind))
    return {
        "method": curve.entry.method,
        "sections": curve.entry.sections,
        "keyword": curve.keyword if curve.scale else None,
        "points": points,
    }


def _point(made: Sweep, cells: Mapping[int, Cell], kind: Kind) -> Found:
    scores = [cell.results()[kind[0]]["scores"] for cell in cells.values()]
    found = {mine: spread([score[name] for score in scores]) for mine, name in zip(NAMES, kind[2], strict=True)}
    there = len(cells) == len(made.seeds) and None not in (found["learned"], found["forgetting"])
    runs = {str(seed): cell.folder.relative_to(made.output).as_posix() for seed, cell in cells.items()}
    return {"runs": runs, "complete": there, "front": False, **found}


def _steps(made: Sweep) -> dict[str, int]:
    """The optimizer steps of all finished runs: those that were taken, and those that as many runs apart would take."""
    taken, apart, trunks = 0, 0, set[Path]()
    for curve in made.curves:
        trunks |= {cell.folder for cell in made.trunks(curve).values() if cell.finished}
        for value in made.found(curve):
            for cell in made.cells(curve, value).values():
                if cell.finished:
                    own = _each(cell.folder)
                    apart += sum(own)
                    taken += sum(own[SHARED:] if _branched(cell.folder) else own)
    return {"taken": taken + sum(sum(_each(trunk)[:SHARED]) for trunk in trunks), "apart": apart}


def _each(folder: Path) -> list[int]:
    """The steps of every training."""
    stages = sorted(folder.glob("tasks/*/scores.json"))
    return [store.read_json(path).get("steps", 0) for path in stages]


def _branched(folder: Path) -> bool:
    return any(entry["event"] == "branched" for entry in ledger.read(folder / LEDGER))
