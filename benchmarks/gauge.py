"""How well finished runs foresaw what they lost: predictions of the gauge beside what their boundaries measured.

    python -m benchmarks.gauge runs/comparison/*-small --to benchmarks/results/gauge.json

Reads every run under the given folders whose method foresees a rise, those that tuned a knob included, and takes each
folder for a stream. A prediction at a boundary was calibrated on earlier boundaries of the same run alone. A measured
rise is clear if it exceeds two standard errors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from retain import store
from retain.calibration import CLEAR

THIRD = 3  # boundary from which two earlier ones have calibrated a prediction


def points(folder: Path) -> Iterator[dict[str, Any]]:
    """Every boundary of every finished run under ``folder`` that had foreseen a rise."""
    for path in sorted(folder.rglob("results.json")):
        found = json.loads(path.read_text())
        for number, entry in enumerate(found.get("calibration", []), 1):
            total = entry["total"]
            if total["measured"] is None or total["standard_error"] is None:
                continue
            yield {
                "stream": folder.name,
                "run": str(path.parent.relative_to(folder)),
                "method": found["method"]["name"],
                "strength": found["method"].get("strength"),
                "boundary": number,
                "clear": total["measured"] > CLEAR * total["standard_error"],
            } | {key: total.get(key) for key in ("foreseen", "measured", "standard_error", "calibrated", "low", "high")}


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one method on one stream: rank correlation over all boundaries, and how near calibrated predictions came."""
    late = [p for p in found if p["boundary"] >= THIRD and p["clear"] and p["calibrated"]]
    ratios = [p["calibrated"] / p["measured"] for p in late]
    off = [max(ratio, 1 / ratio) for ratio in ratios]
    held = [p["low"] <= p["measured"] <= p["high"] for p in late]
    rho = spearmanr([p["foreseen"] for p in found], [p["measured"] for p in found]).statistic
    return {
        "boundaries": len(found),
        "clear": sum(p["clear"] for p in found),
        "spearman": _rounded(rho),
        "late_and_clear": len(late),
        "median_ratio": _rounded(np.median(ratios)) if late else None,
        "median_factor": _rounded(np.median(off)) if late else None,
        "within_two_thirds_interval": _rounded(np.mean(held)) if late else None,
    }


def _rounded(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of comparisons, sweeps or runs")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/gauge.json"))
    options = parser.parse_args()
    every = [point for folder in options.folders for point in points(folder)]
    groups = dict.fromkeys((point["stream"], point["method"]) for point in every)
    rows = [
        {"stream": stream, "method": method}
        | summary([p for p in every if (p["stream"], p["method"]) == (stream, method)])
        for stream, method in groups
    ]
    command = f"python -m benchmarks.gauge {' '.join(map(str, options.folders))} --to {options.to}"
    store.write_json(options.to, {"command": command, "summary": rows, "points": every})
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
