"""A comparison as a terminal and a page show it: one table, cut into as many as the width asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retain import yamls
from retain.commands.compare.measure import GUARD, Shown, measure_in
from retain.commands.table import ENDLESS, grid
from retain.units import human, human_time

NONE = "–"
FEW = 5  # seeds
LIMITS = {"max_train": "training", "max_test": "test"}
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A title, and what stands under it for a method."""

    title: str
    cell: Callable[[Found], str]


def groups(comparison: Found) -> list[list[Column]]:
    """The columns of the table in order; those of a group belong together."""
    against, by = comparison["against"], measure_in(comparison["unit"])
    shown = [[column for score in group for column in _columns(score, against)] for group in by.shown]
    shown[0].insert(0, Column("tuned", _knob))
    every = list(dict.fromkeys(name for found in comparison["methods"].values() for name in found["scores"]))
    for metric in (name.removesuffix("_final") for name in every if name.endswith("_final")):
        mine = Shown(f"{metric}_final", metric, signed=False), Shown(f"{metric}_forgetting", f"{metric} forgotten")
        shown.append([column for score in mine for column in _columns(score, against)])
    if GUARD in every:
        shown.append(_columns(Shown(GUARD, "rise of guard", "rise of guard vs"), against))
    return [
        *shown,
        [
            Column("adapter", lambda m: human(m["bytes"]["adapter"])),
            Column("kept beside it", _state),
            Column("a task adds", _growth),
        ],
        [
            Column("a step takes", lambda m: _time(m["seconds_per_step"])),
            Column("a boundary", lambda m: _time(m["seconds_per_boundary"])),
        ],
    ]


def _columns(score: Shown, against: str) -> list[Column]:
    found = [Column(score.title, lambda m: _score(m, score.name, "+" if score.signed else ""))]
    if score.versus:
        found.append(Column(f"{score.versus} {against}", lambda m: _difference(m, score.name)))
    return found


def show(console: Console, comparison: Found) -> None:
    """Print the table, cut where the terminal ends, and what is to be said of it."""
    methods, fitting = comparison["methods"], list[Column]()
    for group in groups(comparison):
        for part in [group] if _fits(console, methods, group) else [[column] for column in group]:
            if fitting and not _fits(console, methods, fitting + part):
                console.print(_table(methods, fitting))
                fitting = []
            fitting += part
    console.print(_table(methods, fitting))
    for line in remarks(comparison):
        console.print(escape(line), highlight=False)


def markdown(comparison: Found) -> str:
    """The page: the table, how it was made, the tuning, and the figures."""
    by = measure_in(comparison["unit"])
    columns = [column for group in groups(comparison) for column in group]
    rows = [[f"`{label}`", *(c.cell(found) for c in columns)] for label, found in comparison["methods"].items()]
    lines = ["# Comparison", "", *grid(["method", *(column.title for column in columns)], rows), ""]
    lines += [*(f"- {line}" for line in remarks(comparison)), ""]
    if tuned := comparison["tuning"]:
        lines += ["## Tuning", "", f"{by.final.capitalize()}, on validation rows, test rows aside.", ""]
        lines += [*grid(["method", "keyword", "tried", by.unit, "chosen"], list(map(_tuning, tuned.items()))), ""]
    for file, title in by.figures.items():
        lines += [f"![{title}]({file})", ""]
    return "\n".join(lines)


def remarks(comparison: Found) -> Iterator[str]:
    """What a reader has to know to trust the table, a sentence or two each."""
    against, seeds, budget = comparison["against"], comparison["seeds"], comparison["budget"]
    by = measure_in(comparison["unit"])
    if told := [f"{how}: {', '.join(labels)}" for how, labels in comparison["verdict"].items() if labels]:
        yield f"Final {by.unit} against {against}, by each interval alone: {'; '.join(told)}."
    if len(seeds) > 1:
        spread = f"{len(seeds)} seeds on the same rows: mean ± standard deviation"
        narrow = ", and rather too narrow with so few seeds" if len(seeds) < FEW else ""
        yield f"{spread}; intervals are 95 % over seeds and test rows, paired{narrow}."
    else:
        yield "One seed, so no spread; intervals are 95 % over test rows alone, paired."
    yield _tuned(budget)
    if (measure := comparison["intransigence"]) is None:
        yield "Intransigence needs per-task or joint among the methods."
    else:
        kind = (
            "each task learned alone" if measure["each_task_alone"] else "at the end of training on all tasks at once"
        )
        yield f"Intransigence: {by.lacks} {measure['reference']}, {kind}."
    for label, found in comparison["methods"].items():
        if found["cumulative"]:
            yield f"{label} learns all tasks at once and needs all their rows, which are not counted as kept."
    machine, seconds = comparison["machine"], comparison["seconds"]
    yield (
        f"Took {human_time(seconds['wall'])} on {machine['cores']} cores, runs at a time: {machine['jobs']}, threads "
        f"each: {machine['threads']}. One after the other the runs took {human_time(seconds['runs'])}, of which tuning "
        f"{human_time(seconds['tuning'])}."
    )
    for label, reason in comparison["left_out"].items():
        yield f"Left out: {label}: {reason}"
    for name, reason in comparison["failed"].items():
        yield f"Failed: {name}: {reason}"


def _tuned(budget: Found) -> str:
    rows = [f"at most {budget[key]} {kind} rows a task" for key, kind in LIMITS.items() if budget[key] is not None]
    limits = f"Budget {budget['name']!r}: {', '.join(rows) or 'all rows'}"
    if budget["tries"] == 1:
        return f"{limits}, nothing tuned."
    tries = f"{budget['tries']} values of every knob tried on validation rows, under one other seed"
    return f"{limits}; {tries}. Test rows were scored with what was chosen alone."


def _table(methods: Found, chosen: Sequence[Column]) -> Table:
    table = Table("method")
    for column in chosen:
        table.add_column(column.title, justify="right", no_wrap=True)
    for label, found in methods.items():
        table.add_row(escape(label), *(escape(column.cell(found)) for column in chosen))
    return table


def _fits(console: Console, methods: Found, chosen: Sequence[Column]) -> bool:
    options = console.options.update(max_width=ENDLESS)
    return console.measure(_table(methods, chosen), options=options).maximum <= console.width


def _tuning(item: tuple[str, Found]) -> list[str]:
    label, found = item
    tried = ", ".join(f"{value:g}" for value in found["tried"])
    scores = ", ".join("failed" if score is None else f"{score:.3f}" for score in found["scores"])
    edge = " (at the edge)" if found["at_the_edge"] else ""
    return [f"`{label}`", found["keyword"], tried, scores, f"{found['chosen']:g}{edge}"]


def _knob(found: Found) -> str:
    knob = found["knob"]
    if knob is None:
        return NONE
    if (value := knob["value"]) is None:
        return f"{knob['keyword']} default"
    said = f"{value:g}" if isinstance(value, int | float) else value if isinstance(value, str) else yamls.flow(value)
    return f"{knob['keyword']} {said}{'' if knob['tuned'] else ' (given)'}"


def _score(found: Found, name: str, sign: str) -> str:
    if (value := found["scores"].get(name)) is None:
        return NONE
    text = format(value["mean"], f"{sign}.3f")
    return text if value["std"] is None else f"{text} ± {value['std']:.3f}"


def _difference(found: Found, name: str) -> str:
    if (difference := found["difference"].get(name)) is None:
        return NONE
    low, high = difference["interval_95"]
    return f"{difference['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _state(found: Found) -> str:
    """What is kept beside the adapter, by kind; what comes to less than a hundredth is not worth a word."""
    kinds = found["bytes"]["kinds"]
    large = sorted((k for k in kinds if kinds[k] > 0.01 * sum(kinds.values())), key=lambda k: -kinds[k])
    if found["bytes"]["state"] < 1024 or not large:
        return NONE
    return ", ".join(f"{kind} {human(kinds[kind])}" for kind in large)


def _growth(found: Found) -> str:
    """Bytes that every task after the first has added."""
    after = {int(t): size for t, size in found["bytes"]["after"].items()}
    if len(after) < 2:
        return NONE
    each = (after[max(after)] - after[min(after)]) / (max(after) - min(after))
    return human(each) if each >= 1024 else NONE


def _time(found: Found | None) -> str:
    if found is None:
        return NONE
    seconds = found["mean"]
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else human_time(seconds)
