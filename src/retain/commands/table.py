"""Score matrices and comparisons as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from retain.calibration import share_in_words
from retain.metrics import TITLES
from retain.results import score_of
from retain.tokenwise import in_nats
from retain.units import human

MISSING, ENDLESS = "·", 10_000


def print_scores(console: Console, results: Mapping[str, Any]) -> None:
    """The score matrix of a run, rows = what was learned so far, and the scores that follow from it."""
    (_print_tokenwise if in_nats(results)[0] else _print_score)(console, results)
    if results["calibration"]:
        _print_calibration(console, results["calibration"], results["tasks"])
    for warnings in results["warnings"].values():
        for warning in warnings:
            console.print(f"[yellow]{escape(warning)}[/]", highlight=False)


def _print_tokenwise(console: Console, results: Mapping[str, Any]) -> None:
    """Losses, and what they come down to."""
    (found, unit), method, guard = in_nats(results), results["method"]["name"], results.get("guard")
    title = f"{method}: {results['rows']} rows, {unit}, lower is better"
    _print_matrix(console, title, *beside(results["tasks"], found["matrix"], guard))
    _print_levels(console, found)
    if guard:
        low, high = (format(x, "+.3f") for x in guard["interval_95"])
        says = "above zero is worse" + ("" if guard["held"] else f"; {method} does not hold it")
        notes = f"[dim](95% over rows: {low} to {high}; {says})[/]"
        console.print(f"  {'rise of ' + guard['name']:<18} {guard['rise']:+.3f}  {notes}", highlight=False)
    for metric, found in results.get("metrics", {}).items():
        _print_matrix(console, f"{metric}, higher is better", results["tasks"], found["matrix"])
        _print_levels(console, found)


def beside(
    names: Sequence[str], matrix: Sequence[Sequence[float | None]], guard: Mapping[str, Any] | None
) -> tuple[list[str], list[list[float | None]]]:
    """``matrix`` (T+1, T) with the column of a guard, if there is one, and the names of all columns."""
    if not guard:
        return [*names], [[*row] for row in matrix]
    return [*names, guard["name"]], [[*row, x] for row, x in zip(matrix, guard["nats_per_token"], strict=True)]


def _print_levels(console: Console, found: Mapping[str, Any]) -> None:
    for name, says in (("gained", "above zero is better"), ("forgetting", "above zero is worse"), ("final", "")):
        _print_level(console, found, name, says)


def _print_level(console: Console, found: Mapping[str, Any], name: str, says: str) -> None:
    if (value := found["scores"][name]) is None:
        return
    form = ".3f" if name == "final" else "+.3f"
    low, high = (format(x, form) for x in found["intervals_95"][name])
    notes = f"[dim](95% over rows: {low} to {high}{'; ' * bool(says)}{says})[/]"
    console.print(f"  {name:<18} {format(value, form):>6}  {notes}", highlight=False)


def _print_matrix(console: Console, title: str, names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> None:
    table = _matrix(names, matrix)
    if console.measure(table, options=console.options.update(max_width=ENDLESS)).maximum > console.width:
        title, table = f"{title}; results.json has the whole matrix", _summary(names, matrix)
    console.print(f"[italic]{title}[/]", highlight=False)
    console.print(table)


def _print_score(console: Console, results: Mapping[str, Any]) -> None:
    (found, unit), names, rows = score_of(results), results["tasks"], results["rows"]
    kind = {"task": "task known", "class": "task unknown", "domain": "one shared head"}[results["scenario"]]
    if unit == "score":
        names = [f"{name}: {TITLES[results['metric'][name]]}" for name in names]
    _print_matrix(console, f"{results['method']['name']}: {rows} {unit} ({kind})", names, found["matrix"])
    scores, intervals, word = found["scores"], found["intervals_95"], "accuracy" if unit == "accuracy" else "score"
    for name in ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer"):
        if scores[name] is not None:
            form = ".3f" if name.endswith("accuracy") else "+.3f"
            value, low, high = (format(x, form) for x in (scores[name], *intervals[name]))
            interval = f"[dim](95% over {rows} rows: {low} to {high})[/]"
            title = name.replace("accuracy", word).replace("_", " ")
            console.print(f"  {title:<18} {value:>6}  {interval}", highlight=False)


def _print_calibration(console: Console, boundaries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """How far each task raised the loss on those before it, and how far the method foresaw that."""
    console.print("[italic]what learning did to the earlier tasks' test loss (nats an example, ± standard error)[/]")
    table = Table("learning", "of")
    for title in ("raised it by", "foreseen", ""):
        table.add_column(title, justify="right")
    for boundary in boundaries:
        tasks, learned = boundary["tasks"], names[boundary["after"] - 1]
        told_apart = {name: rise for name, rise in tasks.items() if rise["foreseen"] is not None}
        of = next(iter(tasks)) if len(tasks) == 1 else f"all {len(tasks)}, summed"
        for name, rise in {of: boundary["total"], **(told_apart if len(tasks) > 1 else {})}.items():
            table.add_row(learned if name == of else "", name, *_rise(rise))
    console.print(table)


def _rise(rise: Mapping[str, float | None]) -> tuple[str, str, str]:
    error, ratio = rise["standard_error"], rise["ratio"]
    measured = _number(rise["measured"], "+.3f") + ("" if error is None else f" ± {error:.3f}")
    return measured, _number(rise["foreseen"], ".2g"), "no clear rise" if ratio is None else share_in_words(ratio)


def print_comparison(console: Console, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a run: what it ended with, what it forgot, and what it cost."""
    console.print("[italic]after the last task (state: what is kept for the next one, beside the adapter)[/]")
    table = Table()
    for title in ("method", "accuracy", "forgetting", "learned", "adapter", "state", "seconds"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for name, results in runs.items():
        scores, size = score_of(results)[0]["scores"], results["bytes"]
        table.add_row(
            name,
            _number(scores["average_accuracy"]),
            _number(scores["forgetting"], "+.3f"),
            _number(scores["learning_accuracy"]),
            human(size["adapter"]),
            human(size["state"]),
            f"{sum(results['seconds'].values()):.0f}",
        )
    console.print(table)


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> Table:
    table, there = Table("after learning"), [i for i in range(len(names)) if any(row[i] is not None for row in matrix)]
    for i in there:
        table.add_column(names[i], justify="right", no_wrap=True)
    for t, row in enumerate(matrix):
        if any(value is not None for value in row):
            alone = t > 1 and all(value is None for value in matrix[t - 1])
            label = "all at once" if alone else ["nothing yet", *names][t]
            styles = [_style(i, t) if i < len(matrix) - 1 else "" for i in there]
            table.add_row(label, *map(Text, [_number(row[i]) for i in there], styles))
    return table


def _summary(names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> Table:
    """What a matrix with more columns than the terminal has room for comes down to."""
    table = Table("task")
    for title in ("untouched model", "just learned", "at the end"):
        table.add_column(title, justify="right")
    for i, name in enumerate(names):
        learned = matrix[i + 1][i] if i + 1 < len(matrix) else None
        table.add_row(name, *map(_number, (matrix[0][i], learned, matrix[-1][i])))
    return table


def _style(task: int, learned: int) -> str:
    """A task not learned yet is dim, the one just learned is bold."""
    return "bold" if task == learned - 1 else "" if task < learned else "dim"


def _number(value: float | None, form: str = ".3f") -> str:
    return MISSING if value is None else format(value, form)


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, a line each."""
    lines = [titles, ["---", *(["---:"] * (len(titles) - 1))], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
