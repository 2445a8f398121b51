"""What a stage is measured by: every task scored as it stands, and the rows that calibrate the gauge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from retain.answers import Asked, answers
from retain.batches import length_of
from retain.evaluate import Score, evaluate, evaluate_unsaid
from retain.progress import WorkBar
from retain.task import Task
from retain.workshop import Stage, Workshop


def score(shop: Workshop, stage: Stage, bar: WorkBar) -> dict[str, Score]:
    """How good the model is after ``stage`` at every task, learned or not, and at the guard."""
    return _scores(shop, stage, bar, shop.scored(), shop.stream.asked)


def score_gauge(shop: Workshop, stage: Stage, bar: WorkBar) -> dict[str, Score] | None:
    """The same of rows that only calibrate the gauge, of what is learned by now; None if ``score`` calibrates it."""
    apart = shop.stream.gauge
    if apart is None or shop.method.factor is None:
        return None
    return _scores(shop, stage, bar, shop.gauging(stage), apart.asked)


def _scores(
    shop: Workshop, stage: Stage, bar: WorkBar, tasks: Iterable[Task], asked: Mapping[str, Asked]
) -> dict[str, Score]:
    method, guard, scores = shop.method, shop.stream.guard, {}
    how: Any = {"seen": range(shop.before + stage.number + 1), "batch_size": shop.config.scored_at_once}
    for task in tasks:
        bar.show(f"{stage.name}: scoring {task.name}")
        method.activate(None if guard is not None and task.name == guard.name else task.name)
        found = evaluate(shop.model, task, **how)
        if method.separate and method.learned and shop.stream.guessed:
            found = evaluate_unsaid(method, task, found, **how)
        scores[task.name] = found if shop.stream.guessed else replace(found, correct_unknown=None, task_found=None)
        bar.advance(len(task.test), length := length_of(task.test))
        if task.name in asked:
            bar.show(f"{stage.name}: asking {task.name}")
            advance = partial(bar.advance, each=length)
            told = answers(shop.model, asked[task.name], batch_size=shop.config.scored_at_once, advance=advance)
            scores[task.name] = replace(found, answers=told)
    method.activate(None)
    return scores
