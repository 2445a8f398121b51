"""The model card: an adapter's README with what the run found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retain.metrics import TITLES
from retain.results import score_of
from retain.tokenwise import in_nats
from retain.units import human
from retain.yamls import flow

TAGS = "tags: [lora, continual-learning, retain]\n"


def card(readme: str, results: Mapping[str, Any]) -> str:
    """``readme``, which says how to load the adapter, with the scores, storage and provenance of ``results``."""
    found, unit = in_nats(results)
    found, unit = (found, f"{unit}, lower is better") if found else score_of(results)
    matrix, names, metrics = found["matrix"], results["tasks"], results.get("metric", {})
    titles = [f"{name}: {TITLES[metrics[name]]}" if unit == "score" else name for name in names]
    rows = [_row(title, i, matrix) for i, title in enumerate(titles)]
    for metric, asked in results.get("metrics", {}).items():
        there = [i for i in range(len(names)) if asked["matrix"][-1][i] is not None]
        rows += [_row(f"{names[i]}: {metric}, higher is better", i, asked["matrix"]) for i in there]
    if guard := results.get("guard"):
        values = guard["nats_per_token"]
        rows.append(
            f"| {guard['name']}: what the model could do before | {_number(values[0])} | · | {_number(values[-1])} |"
        )
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


def _row(name: str, task: int, matrix: Sequence[Sequence[float | None]]) -> str:
    return f"| {name} | " + " | ".join(_number(matrix[t][task]) for t in (0, task + 1, -1)) + " |"


def _number(value: float | None) -> str:
    return "·" if value is None else f"{value:.3f}"
