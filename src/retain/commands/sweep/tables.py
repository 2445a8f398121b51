"""A sweep as a terminal and a page show it: a line for every point, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retain.commands.table import grid

NONE, FIGURE = "–", "sweep.png"
DESCRIBED = {
    "learning accuracy": "Learned is the accuracy on each task right after its training, forgetting what of it is lost "
    "at the end, both means over tasks; final is the average accuracy at the end.",
    "learning score": "Learned is the score of each task right after its training, forgetting what of it is lost "
    "at the end, both means over tasks; final is the average score at the end.",
    **{
        f"nats gained {of}": f"Learned is by how many nats {of} each task's own training lowered its loss, forgetting "
        "what the tasks before the last lost of their best, both means over tasks; final is the mean loss at the end."
        for of in ("a token", "an example")
    },
}

Found = Mapping[str, Any]


def show(console: Console, content: Found) -> None:
    """Print the table and the remarks."""
    table = Table()
    table.add_column("method", overflow="fold")
    for title in titles(content)[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines(content):
        table.add_row(*map(escape, line))
    console.print(table)
    for remark in remarks(content):
        console.print(escape(remark), highlight=False, soft_wrap=True)


def markdown(content: Found) -> str:
    """The page."""
    rows = [[f"`{label}`", *rest] for label, *rest in lines(content)]
    said = [f"- {remark}" for remark in remarks(content)]
    head = ["# Stability against plasticity", ""]
    return "\n".join([*head, *grid(titles(content), rows), "", *said, "", f"![The curves]({FIGURE})", ""])


def titles(content: Found) -> list[str]:
    """Of the columns."""
    return ["method", "value", "learned", "forgetting", "final", ""]


def lines(content: Found) -> Iterator[list[str]]:
    """A line for every point, in the order of the values."""
    for label, curve in content["curves"].items():
        for point in curve["points"]:
            value = point["value"]
            bend = value is not None and value == curve["knee"]
            lacking = len(content["seeds"]) - len(point["runs"])
            yield [
                label,
                NONE if value is None else f"{value:g}",
                *(_score(point[name], sign) for name, sign in (("learned", ""), ("forgetting", "+"), ("final", ""))),
                ", ".join(["front"] * point["front"] + ["knee"] * bend + [f"lacks {lacking}"] * bool(lacking)),
            ]


def remarks(content: Found) -> Iterator[str]:
    """What a reader has to know to trust the table, a sentence or two each."""
    if knobs := [f"{curve['keyword']} of {label}" for label, curve in content["curves"].items() if curve["keyword"]]:
        yield f"Values are {', '.join(knobs)}."
    yield DESCRIBED[content["learned"]]
    seeds, rows = content["seeds"], content["rows"]
    if len(seeds) > 1:
        spread = f"{len(seeds)} seeds on the same rows: mean ± standard deviation"
        yield f"{spread}. Front, knee and hypervolume are of the means."
    else:
        yield "One seed, so no spread: neighbours in the table may change places under another."
    yield (
        "Front: no other point of any method learns as much and forgets as little. "
        "Knee: where a method's own front bends most, if it bends."
    )
    for label, curve in content["curves"].items():
        if curve["hypervolume"] is not None and curve["keyword"]:
            area = f"the area between its front and {_reference(content)}"
            yield f"Hypervolume of {label}, {area}: {curve['hypervolume']:.4f}."
    steps = content["steps"]
    saved = 1 - steps["taken"] / steps["apart"] if steps["apart"] else 0.0
    yield f"Optimizer steps: {steps['taken']} for what takes {steps['apart']} in runs apart, {saved:.0%} less."
    if rows == "test":
        yield (
            "Scored on test rows: what they say of a point that is picked by them is too good. "
            "evaluation.rows=validation picks on others."
        )
    for label, reason in content["left_out"].items():
        yield f"Left out: {label}: {reason}"
    for name, reason in content["failed"].items():
        yield f"Failed: {name}: {reason}"


def _reference(content: Found) -> str:
    reference = content["reference"]
    return f"forgetting {reference['forgetting']:.3g} at {reference['learned']:.3g} learned"


def _score(value: Found | None, sign: str) -> str:
    if value is None:
        return NONE
    text = format(value["mean"], f"{sign}.3f")
    return text if value["std"] is None else f"{text} ± {value['std']:.3f}"
