"""How the cells of a comparison train on a stream of ``streams``, and what they are judged by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.streams import Batch, Stream
from retain import Method, Task, attach
from retain.heads import heads_of


def fit(
    model: Any,
    stream: Stream,
    number: int,
    methods: Sequence[Method],
    seed: int,
    watch: Callable[[int], None] = lambda _: None,
) -> float:
    """One task in an own loop, AdamW with a linearly falling rate; every method hooks the same optimizer.

    ``watch`` is called with the number of steps made, after each. Returns seconds.
    """
    begin, task = time.perf_counter(), stream.tasks[number]
    heads = heads_of(model)
    heads.train_only([number])
    for method in methods:
        method.begin_task(task)
    groups = methods[0].param_groups()
    groups[-1]["lr"] = stream.head_learning_rate
    optimizer = torch.optim.AdamW(groups, lr=stream.learning_rate, weight_decay=0.0)
    handles = [handle for method in methods for handle in attach(optimizer, method)]
    rows, generator = task.train[0], torch.Generator().manual_seed(1000 * seed + number)
    n = len(rows["labels"])
    chunks = [c for _ in range(stream.epochs) for c in torch.randperm(n, generator=generator).split(stream.batch_size)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(chunks))
    model.train()
    for step, chunk in enumerate(chunks, 1):
        loss = task.loss.nll(logits(model, {k: v[chunk] for k, v in rows.items()}), rows["labels"][chunk]).mean()
        (loss + sum(method.extra_loss() for method in methods)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        watch(step)
    for handle in handles:
        handle.remove()
    model.eval()
    return round(time.perf_counter() - begin, 1)


def logits(model: Any, rows: Batch) -> Tensor:
    return model(**{k: v for k, v in rows.items() if k != "labels"}).logits


@torch.no_grad()
def outcome(model: Any, task: Task, rows: Batch) -> tuple[Tensor, Tensor]:
    """Loss of each row (n,) in nats, and whether it is classified right (n,), the task known."""
    model.eval()
    lost, right = [], []
    for chunk in torch.arange(len(rows["labels"])).split(64):
        outputs, labels = logits(model, {k: v[chunk] for k, v in rows.items()}), rows["labels"][chunk]
        lost.append(task.loss.nll(outputs, labels))
        right.append(task.loss.restrict(outputs, labels).argmax(1) == labels)
    return torch.cat(lost), torch.cat(right)


def share(right: Tensor) -> float:
    return float(right.double().mean())


def scores(table: list[list[float]]) -> dict[str, float]:
    """Final and learning accuracy and forgetting (minus backward transfer) of a table, rows: after each task."""
    count = len(table)
    learned = [table[i][i] for i in range(count)]
    return {
        "final": sum(table[-1]) / count,
        "learned": sum(learned) / count,
        "forgetting": sum(learned[i] - table[-1][i] for i in range(count - 1)) / (count - 1),
    }


def packed(right: Tensor) -> str:
    """Eight rows a byte, for a results file."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(text: str, rows: int) -> np.ndarray:
    """What ``packed`` was given, as 0 and 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:rows].astype(float)


def interval(differences: Sequence[np.ndarray], redraws: int = 4000) -> tuple[float, float, float]:
    """The mean over tasks of what the test rows of each differ by, and its 95 % interval: rows redrawn within tasks."""
    generator = np.random.default_rng(0)
    means = [generator.choice(d, (redraws, len(d))).mean(1) for d in differences]
    low, high = np.quantile(np.mean(means, 0), [0.025, 0.975])
    return float(np.mean([d.mean() for d in differences])), float(low), float(high)
