"""``retain export``: the adapter of a run as a stock PEFT LoRA, checked in a clean process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from retain import store
from retain.batches import with_decoder_inputs
from retain.commands.reopened import reopened
from retain.forecasters import FORECASTS
from retain.nearest import did_you_mean
from retain.sections import DRAWS
from retain.task import NoisePrediction, Task, evaluating, rows_of
from retain.vllm import VERSION, judge

PROBES = 8  # test rows of every task


def export(folder: Path, to: Path | None = None, task: str | None = None, console: Console | None = None) -> float:
    """Write the latest adapter of the run in ``folder`` to ``to`` and return the largest logit difference.

    Args:
        folder: of a run.
        to: the folder to write, ``folder``/export if not given; replaced if it holds an adapter.
        task: whose coefficients, for methods that keep some for each.
        console: where the measured difference is printed, and whether vLLM would load it.

    Raises:
        StoreError: no run, nothing finished, a folder in the way, or a damaged file.
        ValueError: a task that the run has not learned.
    """
    target = to or folder / "export"
    if target.exists() and not (target / "adapter_config.json").exists():
        raise store.StoreError(f"{target} exists and holds no adapter; choose another folder")
    shop, latest = reopened(folder)
    learned = shop.names()[: latest.number + 1]
    if task is not None and task not in learned:
        raise ValueError(f"no task {task!r} has been learned; known: {', '.join(learned)}{did_you_mean(task, learned)}")
    shop.method.activate(task)
    shop.write_adapter(target)
    difference = store.check_adapter(target, shop.model, [_probe(shop.model, t) for t in shop.stream.tasks])
    serving = _serving(target, shop.config.model.kind)
    said = f"{target}: loaded in a clean process, largest logit difference {difference:.1e}\n{serving}"
    (console or Console()).print(said, soft_wrap=True, markup=False, highlight=False)
    return difference


def _serving(folder: Path, kind: str) -> str:
    """What the rules of vLLM's loader say of the adapter in ``folder``, of a model of ``kind``."""
    if kind == DRAWS:
        return "vLLM serves no models that draw: README.md beside it says how it goes into a pipeline of diffusers"
    if kind == FORECASTS:
        return "whether vLLM serves a model that forecasts was not looked at: load it with PEFT, or merge"
    verdict = judge(folder)
    lines = [f"vLLM {VERSION} would load it, by the rules of its loader (it was not run): {verdict.options}"]
    if verdict.obstacles:
        lines = [f"vLLM {VERSION} would not load it (its rules were read, it was not run):"]
    return "\n".join([*lines, *(f"- {line}" for line in verdict.obstacles + verdict.remarks)])


def _probe(model: Any, task: Task) -> dict:
    rows, collate = rows_of(task.test, task.collate)
    batch = with_decoder_inputs(model, dict(collate([rows[i] for i in range(min(PROBES, len(rows)))])))
    if isinstance(task.forward, NoisePrediction):
        with evaluating(model):
            (noisy, time), others, _ = task.forward.noised(model, batch)
        return {"sample": noisy, "timestep": time} | others
    del batch["labels"]
    return batch
