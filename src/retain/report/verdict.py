"""What a run comes to, in a sentence or two, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retain import scores
from retain.paired import each, interval, resampled
from retain.report.read import Run


def verdict(run: Run, others: Sequence[Run] = ()) -> list[str]:
    """The verdict first: what was kept of the earlier tasks, then what was learned, then how the ``others`` compare."""
    if run.tokenwise:
        return [*_in_nats(run, run.tokenwise), *(against(run, other) for other in others)]
    final, learned = scores.average_accuracy(run.matrix), scores.learning_accuracy(run.matrix)
    if not run.in_turn:
        at_once = " at once" if len(run.tasks) > 1 else ""
        return [f"Learned {listed(run.tasks)}{at_once}: {run.unit} {final:.3f} in the end."]
    later = run.tasks[-1] if len(run.tasks) == 2 else "what came after"
    earlier = f"{listed(run.tasks[:-1])} while learning {later}"
    plain = next((o for o in others if o.name == "sequential" and o.in_turn and comparable(run, o)), None)
    untouched = run.matrix[0][~np.isnan(run.matrix[0])]
    had = f", where the untouched model had {untouched.mean():.3f}" if len(untouched) == len(run.tasks) else ""
    return [
        _kept(run, earlier, plain),
        f"A task reached {learned:.3f} when it was learned, in the mean; in the end all have {final:.3f}{had}.",
        *(against(run, other) for other in others),
    ]


def _kept(run: Run, earlier: str, plain: Run | None) -> str:
    """What a run kept of ``earlier`` tasks: a share of accuracy; of other metrics, which may be negative, points."""
    if run.unit == "accuracy":
        low, high = scores.bootstrap(run.outcomes, scores.stability)
        kept = f"Kept {_percent(scores.stability(run.matrix))} ({_percent(low)} to {_percent(high)}) of its accuracy"
        beside = f"; sequential training kept {_percent(scores.stability(plain.matrix))}" if plain else ""
    else:
        low, high = scores.bootstrap(run.outcomes, scores.forgetting)
        kept = f"Lost {scores.forgetting(run.matrix):.3f} ({low:.3f} to {high:.3f}) of its {run.unit}"
        beside = f"; sequential training lost {scores.forgetting(plain.matrix):.3f}" if plain else ""
    return f"{kept} on {earlier}{beside}."


def comparable(run: Run, other: Run) -> bool:
    """Whether both were scored on the same rows of the same tasks in the same way."""
    alike = run.rows == other.rows and run.bits == other.bits
    return alike and run.results.get("metric") == other.results.get("metric")


def against(run: Run, other: Run) -> str:
    """The final score of two runs, paired by test row; of language models the final nats per token."""
    if not comparable(run, other):
        return f"{other.name} in {other.folder} has other tasks or test rows, so the two cannot be compared."
    if run.tokenwise and other.tokenwise:
        ours, theirs = run.tokenwise["scores"], other.tokenwise["scores"]
        lost = "" if theirs["forgetting"] is None else f" and lost {theirs['forgetting']:+.3f} on earlier tasks"
        better = "better" if ours["final"] < theirs["final"] else "worse"
        apart = abs(ours["final"] - theirs["final"])
        return f"{other.name} ended at {theirs['final']:.3f} {run.unit}{lost}; {run.name} is {apart:.3f} {better}."
    draws = [each(resampled([one.outcomes]), scores.average_accuracy) for one in (run, other)]
    low, high = interval(draws[0] - draws[1])
    difference = scores.average_accuracy(run.matrix) - scores.average_accuracy(other.matrix)
    clear = "" if low > 0 or high < 0 else ": not told apart"
    apart = f"{100 * difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    if run.unit != "accuracy":
        apart = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
    return (
        f"{other.name} ended at {scores.average_accuracy(other.matrix):.3f}; {run.name} minus {other.name}: "
        f"{apart}{clear}."
    )


def _in_nats(run: Run, found: Mapping[str, Any]) -> list[str]:
    """The same of a language model: nats per token, where lower is better."""
    score, ranges = found["scores"], found["intervals_95"]
    ended = f"In the end all tasks are at {score['final']:.3f} {run.unit}{_untouched(score, ', at ')}."
    if not run.in_turn:
        at_once = " at once" if len(run.tasks) > 1 else ""
        return [f"Learned {listed(run.tasks)}{at_once}.", ended, *_of_metrics(run), *_of_guard(run)]
    said = {k: f"{score[k]:.3f} ({ranges[k][0]:.3f} to {ranges[k][1]:.3f})" for k in ranges if score[k] is not None}
    gained = f"Learning a task made it better by {said['gained']}, in the mean. " if "gained" in said else ""
    return [
        f"Lost {said['forgetting']} {run.unit} on {listed(run.tasks[:-1])} while learning what came after.",
        gained + ended,
        *_of_metrics(run),
        *_of_guard(run),
    ]


def _of_metrics(run: Run) -> list[str]:
    """What tasks are asked, a sentence a metric."""
    found = []
    for metric, told in run.results.get("metrics", {}).items():
        score, ranges = told["scores"], told["intervals_95"]
        ended = f"{metric} is {score['final']:.3f} in the end{_untouched(score, ', ')}"
        if score["just_learned"] is not None and run.in_turn:
            ended += f"; right after a task was learned, {score['just_learned']:.3f}"
        if score["forgetting"] is not None:
            low, high = ranges["forgetting"]
            ended += f"; earlier tasks lost {score['forgetting']:.3f} ({low:.3f} to {high:.3f})"
        found.append(f"{ended}.")
    return found


def _untouched(score: Mapping[str, float | None], then: str) -> str:
    """What the untouched model had; nothing where tasks were added later, so that nobody knows."""
    value = score["untouched"]
    return "" if value is None else f"; untouched{then}{value:.3f}"


def _of_guard(run: Run) -> list[str]:
    """What became of what the untouched model could do."""
    if (guard := run.guard) is None:
        return []
    then, now = guard["nats_per_token"][0], guard["nats_per_token"][-1]
    low, high = guard["interval_95"]
    word = "worse" if low > 0 else "better" if high < 0 else "not told apart"
    held = "" if guard["held"] else f", which {run.name} does not hold"
    return [
        f"What the untouched model could do ({guard['name']}{held}) went from {then:.3f} to {now:.3f} nats a token: "
        f"{guard['rise']:+.3f} ({low:+.3f} to {high:+.3f}), {word}."
    ]


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them; many are counted."""
    if len(names) > 4:
        return f"{len(names)} tasks"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
