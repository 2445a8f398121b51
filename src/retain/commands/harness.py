"""``retain check --lm-eval``: tasks of the lm-evaluation-harness as guards, before all training against now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from retain.commands.check import Bound, judged, told
from retain.commands.reopened import reopened
from retain.hf import load_processor
from retain.nearest import did_you_mean
from retain.task import evaluating

FEW = Bound(0.02, "")  # points of a score that a task may lose, if nobody says


def check(
    folder: Path,
    names: Sequence[str],
    bound: Bound | None,
    console: Console,
    *,
    include: Path | None = None,
    limit: int | None = None,
) -> bool:
    """Print a verdict on what the run in ``folder`` has lost of tasks of lm-eval; False if one has lost too much.

    The model is scored twice: without its adapter, which is the model before any training, and with it. Both answer the
    same documents, so that the interval is over documents in pairs.

    Args:
        folder: of a run of a causal language model.
        names: of the tasks.
        bound: of points of a score, or a share of it; None: ``FEW``.
        console: where to print.
        include: a folder with definitions of tasks beside those that lm-eval brings.
        limit: documents of each task; None: all.

    Raises:
        ValueError: lm-eval is not installed, does not know a task, or gives its documents no scores of their own.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError("--lm-eval needs the lm-evaluation-harness: pip install 'retain[eval]'") from error
    manager = TaskManager(include_path=str(include), include_defaults=False) if include else None
    if manager is None or not set(names) <= set(manager.all_tasks):  # of its own it reads some ten thousand files
        manager = TaskManager(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(f"--lm-eval: lm-eval knows no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    shop, _ = reopened(folder)
    model, path, kind = shop.model, shop.config.model.path, shop.config.model.kind
    if kind != "causal-lm":
        raise ValueError(f"--lm-eval: tasks of lm-eval are for causal language models, and this is of kind {kind!r}")
    shop.method.activate(None)
    tokenizer, options = load_processor(path, kind), {"task_manager": manager, "limit": limit}
    with evaluating(model):
        now = answered(model, tokenizer, names, **options)
        with model.disable_adapter():
            then = answered(model, tokenizer, names, **options)
    verdicts = [told(*judged(name, [then[name], now[name]], bound or FEW), console) for name in now]
    return "too much" not in verdicts


def answered(model: Any, tokenizer: Any, names: Sequence[str], **options: Any) -> dict[str, list[float]]:
    """The score (n,) of every document of every task by name, higher is better; of its first metric and filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # Which warns of a model that is handed over, and would move it.
    served = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    found = simple_evaluate(served, tasks=list(names), bootstrap_iters=0, log_samples=True, **options)
    return {task: _scores(task, rows, found["higher_is_better"][task]) for task, rows in found["samples"].items()}


def _scores(task: str, rows: Sequence[Mapping[str, Any]], better: Mapping[str, bool]) -> list[float]:
    metric, chosen = rows[0]["metrics"][0], rows[0]["filter"]
    values = [row[metric] for row in sorted(rows, key=lambda row: row["doc_id"]) if row["filter"] == chosen]
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"--lm-eval: the {metric} of {task!r} is of all its documents together; choose another task")
    return [float(value) if better.get(metric, True) else -float(value) for value in values]
