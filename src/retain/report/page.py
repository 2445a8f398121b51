"""The page itself: what its sections show, and one self-contained HTML file of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from retain import files, scores, yamls
from retain.report import figures
from retain.report.curve import curve
from retain.report.forgotten import flips
from retain.report.ledger import told
from retain.report.matrices import matrices
from retain.report.read import Run, read_run
from retain.report.verdict import comparable, verdict
from retain.units import human, human_time

SCORES = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "average_incremental_accuracy")


def report(folders: Sequence[Path], to: Path, *, examples: int = 20) -> None:
    """Write the report of one run, or of several side by side, to ``to``: one file that needs no network.

    Args:
        folders: of finished runs; with several, the verdicts of all stand beside each other.
        to: the file to write.
        examples: how many forgotten test rows of a task to show; with 0 nobody's data are read.

    Raises:
        StoreError: a folder that holds no finished run, or a damaged one.
    """
    runs = [read_run(folder) for folder in folders]
    files.write(to, page(runs, examples))


def page(runs: Sequence[Run], examples: int) -> str:
    """The HTML of a report."""
    alike = [run for run in runs if comparable(runs[0], run)]
    return _template().render(
        title=" · ".join(dict.fromkeys(run.name for run in runs)),
        runs=[_section(run, () if i else runs[1:], examples) for i, run in enumerate(runs)],
        together=figures.together(alike) if len(alike) > 1 else None,
        table=[_row(run) for run in runs] if len(runs) > 1 else None,
    )


def _section(run: Run, others: Sequence[Run], examples: int) -> dict[str, Any]:
    """All that the page shows of one run."""
    adapters, ledger = run.adapters(), told(run.folder, run.stages)
    lead, *rest = verdict(run, others)
    drawn = {
        "accuracy": figures.accuracy(run),
        "rises": figures.rises(run),
        "growth": figures.growth(run),
        "drift": figures.drift(run, adapters),
        "spectrum": figures.spectrum(adapters),
    }
    return {
        "run": run,
        "lead": lead,
        "rest": rest,
        "matrices": matrices(run, others),
        "scores": _scores(run),
        "figures": drawn,
        "sweep": curve(run.folder),
        "ledger": ledger,
        "calibration": run.results["calibration"],
        **_forgotten(run, examples),
        "storage": _storage(run),
        "warnings": [warning for found in run.results["warnings"].values() for warning in found],
        "boundary": run.results["boundary"],
        "seconds": run.results["seconds"],
        "settings": yamls.write(run.config),
        "loading": _loading(run),
        "versions": ledger.versions or {"retain": run.results["retain"]},
    }


def _scores(run: Run) -> list[dict[str, Any]]:
    if run.tokenwise:
        told = run.tokenwise
        each = [
            (name, value, *told["intervals_95"][name]) for name, value in told["scores"].items() if value is not None
        ]
        return [
            {"name": name.replace("_", " "), "value": value, "low": low, "high": high, "is": told["reading"][name]}
            for name, value, low, high in each
        ]
    found = []
    for name in SCORES:
        value = getattr(scores, name)(run.matrix)
        if not np.isnan(value):
            low, high = scores.bootstrap(run.outcomes, getattr(scores, name))
            meaning = getattr(scores, name).__doc__.split("\n")[0]
            word = "accuracy" if run.unit == "accuracy" else "score"
            name = name.replace("accuracy", word).replace("_", " ")
            found.append({"name": name, "value": value, "low": low, "high": high, "is": meaning})
    return found


def _forgotten(run: Run, examples: int) -> dict[str, Any]:
    """The flips, and why there are no rows of them if there should be."""
    try:
        return {"flips": flips(run, examples), "unread": ""}
    except ValueError as error:
        return {"flips": flips(run, 0), "unread": str(error)}


def _storage(run: Run) -> list[tuple[str, int]]:
    """What is kept after the last task, by kind, in bytes."""
    found = run.results["bytes"]
    kinds = sorted(found.get("kinds", {}).items(), key=lambda item: -item[1])
    return [("adapter", found["adapter"]), *kinds] if found else []


def _loading(run: Run) -> str:
    """The lines of the adapter's own README that load it."""
    lines = run.readme.partition("```python\n")[2].partition("```")[0]
    return lines.replace("this/folder", str(run.folder / "adapter"))


def _row(run: Run) -> dict[str, Any]:
    """A run's line in the table of several."""
    if run.tokenwise:
        told = run.tokenwise["scores"]
        found = {"final": told["final"], "learned": told["just_learned"], "forgetting": told["forgetting"]}
    else:
        kinds = {"final": "average_accuracy", "learned": "learning_accuracy", "forgetting": "forgetting"}
        found = {key: getattr(scores, name)(run.matrix) for key, name in kinds.items()}
    sizes = run.results["bytes"]
    seconds = sum(run.results["seconds"].values())
    return found | {"name": run.name, "folder": run.folder.name, "bytes": sizes, "seconds": seconds}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"human": human, "human_time": human_time}
    environment.filters["number"] = lambda x, form=".3f": "·" if x is None or np.isnan(x) else format(x, form)
    environment.filters["times"] = lambda ratio: f"{1 / ratio:.0f}" if abs(ratio) < 0.1 else f"{1 / ratio:.2g}"
    return environment.get_template("page.html.jinja")
