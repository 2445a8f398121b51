"""The model card: an adapter's README with what the run found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retain.units import human
from retain.yamls import flow

TAGS = "tags: [lora, continual-learning, retain]\n"


def card(readme: str, results: Mapping[str, Any]) -> str:
    """``readme``, which says how to load the adapter, with the scores, storage and provenance of ``results``."""
    nats = results.get("nats_per_token")
    found, unit = (nats, "nats a token, lower is better") if nats else (results["accuracy"], "accuracy")
    matrix, names = found["matrix"], results["tasks"]
    rows = [
        f"| {name} | {_number(matrix[0][i])} | {_number(matrix[i + 1][i])} | {_number(matrix[-1][i])} |"
        for i, name in enumerate(names)
    ]
    if guard := results.get("guard"):
        values = guard["nats_per_token"]
        rows.append(f"| {guard['name']} (general) | {_number(values[0])} | · | {_number(values[-1])} |")
    sizes = results["bytes"]
    kept = (
        f"The adapter takes {human(sizes['adapter'])}; the state to go on from, {human(sizes['state'])}, is not here."
    )
    return "\n".join(
        [
            readme.replace("library_name: peft\n", f"library_name: peft\n{TAGS}", 1).rstrip(),
            "",
            f"## Scores ({unit}; {results['rows']} rows)",
            "",
            "| task | untouched model | just learned | in the end |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Tasks were learned in this order. Method: {flow(results['method'])}; seed {results['seed']}; "
            f"retain {results['retain']}. {kept if sizes else ''}\n",
        ]
    )


def _number(value: float | None) -> str:
    return "·" if value is None else f"{value:.3f}"
