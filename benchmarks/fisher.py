"""Time and memory of the exact diagonal Fisher: ours, the floor, and every other way to it that we know.

    python -m benchmarks.fisher
    python -m benchmarks.fisher --workloads MLP "MiniLM q v, T=16" --repeats 1

One process, one thread, contenders interleaved; CPU seconds, medians. Each is first compared with the oracle, which
differentiates one example at a time in float64. The floor is a plain forward and backward plus the outer products of
all examples at the rate of a large matrix product, measured in the same rounds. Writes the workloads it ran into
benchmarks/results/fisher.json and leaves the others there.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.fisher_contenders import CONTENDERS, OURS, PLAIN, Contender, Run
from benchmarks.fisher_peers import PEERS
from benchmarks.fisher_workloads import BUILD, Squares, Workload, build, oracle
from retain import store

RESULTS = Path(__file__).parent / "results" / "fisher.json"
PACKAGES = ("retain", "torch", "backpack-for-pytorch", "opacus", "curvlinops-for-pytorch", "asdfghjkl", "nngeometry")
GEMM = 1024  # the matrix product that gives the rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=[""], help="beginnings of their names; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    chosen = [name for name in BUILD if name.startswith(tuple(options.workloads))]
    if not chosen:
        parser.error(f"no workload begins with {' or '.join(options.workloads)}; known: {'; '.join(BUILD)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in chosen:
        found = measure(build(name), CONTENDERS | PEERS, options.repeats)
        save(RESULTS, name, found | {"repeats": options.repeats, "versions": versions(), "machine": machine()})
        show(name, found)


def measure(workload: Workload, contenders: Mapping[str, Contender], repeats: int) -> dict[str, Any]:
    """Errors against the oracle, then memory, then CPU seconds of ``repeats`` rounds over all that ran."""
    exact, rows, runs = oracle(workload), {}, {}
    for name, contender in contenders.items():
        try:
            run = contender(workload)
            rows[name] = accuracy(run(), exact) | {"extra_mib": extra_memory(run)}
            runs[name] = run
        except Exception as error:  # whatever a peer does with this model is its result
            rows[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    products, square = [], torch.randn(GEMM, GEMM)
    for _ in range(repeats):
        products.append(timed(lambda: square @ square))
        for name, run in runs.items():
            seconds[name].append(timed(run))
    for name, times in seconds.items():
        rows[name] |= {"seconds": times, "to_ours": ratio(times, seconds[OURS])}
    rate = 2 * GEMM**3 / median(products)
    floors = [plain + workload.flops / rate for plain in seconds[PLAIN]]
    floor = {"seconds": floors, "gemm_gflops": rate / 1e9, "ours_to_floor": ratio(seconds[OURS], floors)}
    return {"floor": floor, "contenders": rows}


def accuracy(found: Squares, exact: Squares) -> dict[str, float]:
    """Relative error over all entries, ||F - exact|| / ||exact||, and the ratio of the sums; nothing if F is none."""
    if not found:
        return {}
    if found.keys() != exact.keys() or any(found[n].shape != exact[n].shape for n in exact):
        raise ValueError("what it gives is not a square for every weight")
    error = sum(float((found[n].double() - exact[n]).square().sum()) for n in exact)
    size = sum(float(square.square().sum()) for square in exact.values())
    sums = [sum(float(square.double().sum()) for square in squares.values()) for squares in (found, exact)]
    return {"error": (error / size) ** 0.5, "bias": sums[0] / sums[1]}


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds of one call: on a machine with other work they are steadier than those of the clock."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def extra_memory(run: Run) -> float:
    """The most MiB of tensors that a call holds at once, beyond the F that it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        found = run()
    kept = sum(square.nbytes for square in found.values())
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return (peak - kept) / 2**20


def save(path: Path, name: str, found: dict[str, Any]) -> None:
    """Put one workload into the file."""
    document = store.read_json(path) if path.exists() else {}
    document["command"] = "python -m benchmarks.fisher"
    document["workloads"] = document.get("workloads", {}) | {name: found}
    store.write_json(path, document)


def versions() -> dict[str, str | None]:
    """Installed versions of all that is compared."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def show(name: str, found: dict[str, Any]) -> None:
    """One workload's table."""
    floor = found["floor"]
    title = f"{name}: ours / floor {floor['ours_to_floor']:.2f}, products at {floor['gemm_gflops']:.0f} GF/s"
    table = Table("contender", "time / ours", "seconds", "error", "sum / exact", "extra MiB", title=title)
    for contender, row in found["contenders"].items():
        if "failed" in row:
            table.add_row(contender, "fails", "", row["failed"])
            continue
        accurate = [f"{row['error']:.1e}", f"{row['bias']:.4f}"] if "error" in row else ["", ""]
        times = [f"{row['to_ours']:.2f}", f"{median(row['seconds']):.3f}"]
        table.add_row(contender, *times, *accurate, f"{row['extra_mib']:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
