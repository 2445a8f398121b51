"""Which form of the Fisher protects best per byte, and which foresees the rise of the earlier tasks' loss?

    python -m benchmarks.importance --streams fashion text --seeds 0 1 2

Every cell (form, strength) of a stream continues from one and the same first task. Along the run without protection all
forms watch: what each foresees at a boundary stands beside the rise that the test rows show. Strengths are judged on
validation rows, accuracies are of test rows. Writes benchmarks/results/importance-STREAM-SEED.json; run again to
continue.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fisher import machine, versions
from benchmarks.importance_report import draw, show
from benchmarks.streams import STREAMS, Stream
from benchmarks.training import fit, outcome, packed, scores, share
from retain import EWCLoRA, store
from retain.lora import adapter_parameters

RESULTS = Path(__file__).parent / "results"
FORMS: dict[str, dict[str, Any]] = {
    "diagonal": {"form": "diagonal"},
    "diagonal uint8": {"form": "diagonal", "storage": "uint8"},
    "factored 4": {"form": "factored", "components": 4},
    "kronecker dense": {"form": "kronecker", "rank": None, "temperature": 1.0},
    "kronecker 16": {"form": "kronecker", "rank": 16, "temperature": 1.0},
    "kronecker 4": {"form": "kronecker", "rank": 4, "temperature": 1.0},
    "kronecker 16, temperature 3": {"form": "kronecker", "rank": 16, "temperature": 3.0},
}
ROWS_LEFT_OUT = "held-out rows"
ESTIMATES: dict[str, dict[str, Any]] = {  # of which only the foresight is of interest
    f"kronecker 16, {how}": FORMS["kronecker 16"] | keywords
    for how, keywords in {
        "training rows": {},
        ROWS_LEFT_OUT: {},
        "temperature 3": {"temperature": 3.0},
        "labels of the data": {"labels": "data"},
    }.items()
}
STRENGTHS = {
    "diagonal": (1e2, 1e3, 1e4, 1e5),
    "diagonal uint8": (1e3, 1e4),
    "factored 4": (1e3, 1e4),
    "kronecker dense": (10.0, 100.0),
    "kronecker 16": (1.0, 10.0, 30.0, 100.0, 300.0),
    "kronecker 4": (10.0, 100.0),
    "kronecker 16, temperature 3": (3.0, 10.0, 30.0),
}
DEFAULT = ("kronecker 16, temperature 3", 10.0)
PASS = {"labels": "mixture", "samples": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--estimates", action="store_true", help="also watch other ways to measure one form")
    parser.add_argument("--strengths", type=float, nargs="+", help="only these of those that a form is tried with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.streams:
        for seed in options.seeds:
            wanted = cells(options.forms, options.strengths)
            study(name, seed, [*wanted, ("estimates", 0.0)] if options.estimates else wanted)
    rows = [row for path in sorted(RESULTS.glob("importance-*-*.json")) for row in store.read_json(path)["rows"]]
    show(rows, list(FORMS | ESTIMATES), DEFAULT)
    draw(rows)


def cells(forms: list[str], strengths: list[float] | None) -> list[tuple[str, float]]:
    """No protection, and every form with its strengths."""
    every = [(form, strength) for form in forms for strength in STRENGTHS[form]]
    return [("none", 0.0), *(cell for cell in every if strengths is None or cell[1] in strengths)]


def study(name: str, seed: int, wanted: list[tuple[str, float]]) -> None:
    """The wanted cells of one stream and seed, each written when it is done."""
    path = RESULTS / f"importance-{name}-{seed}.json"
    rows = store.read_json(path)["rows"] if path.exists() else []
    done = {(row["form"], row["strength"]) for row in rows}
    if not (missing := [cell for cell in wanted if cell not in done]):
        return
    stream = STREAMS[name](seed)
    model = stream.model(seed)
    first = fit(model, stream, 0, [EWCLoRA(model, strength=0.0, fisher=PASS | FORMS["diagonal"], seed=seed)], seed)
    start = {n: p.detach().clone() for n, p in adapter_parameters(model).items()}
    for form, strength in missing:
        with torch.no_grad():
            for n, p in adapter_parameters(model).items():
                p.copy_(start[n])
        row = measure(model, stream, form, strength, seed)
        rows.append(
            {"stream": name, "seed": seed, "form": form, "strength": strength, "first_task_seconds": first} | row
        )
        write(path, rows)
        print(
            name, seed, form, strength, {k: row[k] for k in ("final", "learned", "forgetting", "seconds")}, flush=True
        )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The cells of one stream and seed; docs/fisher.md has the commands that chose them."""
    document = {"command": "python -m benchmarks.importance", "machine": machine(), "versions": versions()}
    store.write_json(path, document | {"rows": rows})


def measure(model: Any, stream: Stream, form: str, strength: float, seed: int) -> dict[str, Any]:
    """Tasks two to five under one form and strength; with "none" all forms watch and none pulls."""
    begin = time.perf_counter()
    watched = {"none": FORMS, "estimates": ESTIMATES}.get(form) or {form: FORMS[form]}
    methods = {
        f: EWCLoRA(model, strength=strength, fisher=PASS | keywords, seed=seed) for f, keywords in watched.items()
    }
    tasks, table, learned, boundaries = stream.tasks, [], [], []
    before: list[tuple[Tensor, Tensor]] = []
    tests = [{k: v[: stream.glance if strength else None] for k, v in task.test[0].items()} for task in tasks]
    for number, task in enumerate(tasks):
        if number:
            fit(model, stream, number, list(methods.values()), seed)
        after = [outcome(model, *part) for part in zip(tasks[: number + 1], tests, strict=False)]
        if number:
            rises = [now - old for (now, _), (old, _) in zip(after, before, strict=False)]
            boundaries.append(
                {
                    "foreseen": {f: float(m.predicted_rise()["total"]) for f, m in methods.items()},
                    "rise": float(sum(r.mean() for r in rises)),
                    "standard_error": float(sum(r.var() / len(r) for r in rises)) ** 0.5,
                    "rises": [float(r.mean()) for r in rises],
                }
            )
        for way, method in methods.items():
            rows = stream.validation[number] if ROWS_LEFT_OUT in way else task.train[0]
            method.end_task(dataclasses.replace(task, train=[rows]))
        before = after
        table.append([share(right) for _, right in after])
        learned.append(share(outcome(model, task, stream.validation[number])[1]))
    final = [share(outcome(model, *part)[1]) for part in zip(tasks, stream.validation, strict=True)]
    return scores(table) | {
        "validation": {"final": sum(final) / len(tasks), "learned": sum(learned) / len(tasks)},
        "rows": [len(right[: stream.glance]) for _, right in after],
        "right": [packed(right[: stream.glance]) for _, right in after],
        "boundaries": boundaries,
        "bytes": {f: size(m) for f, m in methods.items()},
        "seconds": round(time.perf_counter() - begin, 1),
    }


def size(method: EWCLoRA) -> int:
    return sum(t.numel() * t.element_size() for key, t in method.state_dict().items() if key.startswith("fisher"))


if __name__ == "__main__":
    main()
