"""MNIST, then Fashion-MNIST, with a small MLP: plain training, EWC, Online EWC.

    scripts/fetch_optional_data.sh mnist fashion-mnist     # once
    python examples/mnist.py --seeds 0 1 2                 # test rows: benchmarks/results/mnist.json
    python examples/mnist.py --seeds 0 1 2 --sweep         # validation rows: benchmarks/results/mnist_sweep.json

Ten outputs belong to each task; accuracy is given with the task known (its ten compete) and unknown (all twenty do).
EWC and Online EWC differ from the third task on: with two, their rows must be the same.
"""

from __future__ import annotations

import argparse
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from retain import EWC, CrossEntropy, Task, attach
from retain.evaluate import evaluate
from retain.store import write_json

CACHE = os.environ.get("RETAIN_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "retain")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NAMES = ("mnist", "fashion-mnist")
# One number a task: the loss on a digit lets only digits compete, so that a task leaves the other's outputs alone.
LOSS = CrossEntropy(groups=torch.arange(20) // 10)
STRENGTH = {"strength": 1e3}  # from validation rows, where 100 to 1e6 are as good: mnist_sweep.json
METHODS = {"sequential": {"strength": 0.0}, "ewc": STRENGTH, "online-ewc": {**STRENGTH, "decay": 0.9}}
SWEEP = {f"ewc {s:g}": {"strength": s} for s in (0.0, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6)}


def read(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, 784) from 0 to 1 and labels (N,), from IDX files."""

    def array(kind: str) -> np.ndarray:
        content = gzip.decompress(Path(CACHE, name, f"{split}-{kind}-ubyte.gz").expanduser().read_bytes())
        dims = content[3]
        shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()

    images, labels = torch.from_numpy(array("images-idx3")), torch.from_numpy(array("labels-idx1"))
    return images.flatten(1) / 255, labels.long()


def tasks(rows: int, validation: bool) -> list[Task]:
    """Both tasks, trained on the first ``rows`` rows (50000 at most); the last 10000 training rows are validation."""
    made = []
    for number, name in enumerate(NAMES):
        x, y = read(name, "train")
        x_test, y_test = (x[50000:], y[50000:]) if validation else read(name, "t10k")
        train = TensorDataset(x[:50000][:rows], y[:50000][:rows] + 10 * number)
        made.append(Task(name, train, [(x_test, y_test + 10 * number)], LOSS))
    return made


def run(stream: list[Task], keywords: dict[str, Any], seed: int, epochs: int) -> dict[str, Any]:
    """What is known of both tasks at the end, and the rise of the first one's loss with what was foreseen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 20))
    method, first = EWC(model, seed=seed, **keywords), []
    for task in stream:
        method.begin_task(task)
        optimizer = torch.optim.Adam(method.param_groups(), lr=1e-3)
        attach(optimizer, method)
        x, y = task.train.tensors
        for batch in [b for _ in range(epochs) for b in torch.randperm(len(x)).split(128)]:
            loss = task.loss.nll(model(x[batch]), y[batch]).mean() + method.extra_loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        foreseen = method.predicted_rise().get("total", 0.0)  # nothing before the first task has ended
        method.end_task(task)
        first.append(evaluate(model, stream[0], seen=range(2)))
    both = [first[-1], evaluate(model, stream[1], seen=range(2))]
    known = [score.correct.double().mean().item() for score in both]
    return {
        "known": known,
        "unknown": [score.correct_unknown.double().mean().item() for score in both],
        "average known": sum(known) / 2,
        "forgetting": first[0].correct.double().mean().item() - known[0],
        "rise": first[1].loss - first[0].loss,
        "rise foreseen": foreseen,
    }


def main(seeds: list[int], sweep: bool = False, rows: int = 50000, epochs: int = 3, output: Path = RESULTS) -> None:
    torch.set_num_threads(1)
    if missing := " ".join(name for name in NAMES if not Path(CACHE, name).expanduser().is_dir()):
        print(f"skipped: not found in {CACHE}: {missing}. To fetch: scripts/fetch_optional_data.sh {missing}")
        return
    stream, found = tasks(rows, validation=sweep), []
    titles = ("MNIST, known", "Fashion, known", "MNIST, unknown", "Fashion, unknown", "forgetting")
    print(" " * 14 + "".join(f"{title:>17}" for title in titles))
    for name, keywords in (SWEEP if sweep else METHODS).items():
        mine = [run(stream, keywords, seed, epochs) for seed in seeds]
        found += [{"method": name, **keywords, "seed": seed, **one} for seed, one in zip(seeds, mine, strict=True)]
        cells = np.array([[*one["known"], *one["unknown"], one["forgetting"]] for one in mine])
        pairs = zip(cells.mean(0), cells.std(0, ddof=min(1, len(seeds) - 1)), strict=True)
        print(f"{name:<14}" + "".join(f"{m:>9.3f} ± {s:.3f}" for m, s in pairs), flush=True)
    command = f"python examples/mnist.py --seeds {' '.join(map(str, seeds))}{' --sweep' * sweep}"
    write_json(output / f"mnist{'_sweep' * sweep}.json", {"command": command, "rows": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sweep", action="store_true", help="try strengths on rows held out of training")
    options = parser.parse_args()
    main(options.seeds, options.sweep)
