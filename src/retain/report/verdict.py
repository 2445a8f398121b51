"""What a run comes to, in a sentence or two, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retain import scores
from retain.paired import each, interval, resampled
from retain.report.read import Run


def verdict(run: Run, others: Sequence[Run] = ()) -> list[str]:
    """The verdict first: what was kept of the earlier tasks, then what was learned, then how the ``others`` compare."""
    final, learned = scores.average_accuracy(run.matrix), scores.learning_accuracy(run.matrix)
    if not run.in_turn:
        at_once = " at once" if len(run.tasks) > 1 else ""
        return [f"Learned {listed(run.tasks)}{at_once}: accuracy {final:.3f} in the end."]
    low, high = scores.bootstrap(run.outcomes, scores.stability)
    kept = f"{_percent(scores.stability(run.matrix))} ({_percent(low)} to {_percent(high)})"
    later = run.tasks[-1] if len(run.tasks) == 2 else "what came after"
    plain = next((o for o in others if o.name == "sequential" and o.in_turn and comparable(run, o)), None)
    beside = f"; sequential training kept {_percent(scores.stability(plain.matrix))}" if plain else ""
    return [
        f"Kept {kept} of its accuracy on {listed(run.tasks[:-1])} while learning {later}{beside}.",
        f"A task reached {learned:.3f} when it was learned, in the mean; in the end all have {final:.3f}, where the "
        f"untouched model had {float(np.nanmean(run.matrix[0])):.3f}.",
        *(against(run, other) for other in others),
    ]


def comparable(run: Run, other: Run) -> bool:
    """Whether both were scored on the same rows of the same tasks in the same way."""
    sizes = [[column.shape[1] for column in one.outcomes] for one in (run, other)]
    return run.tasks == other.tasks and run.bits == other.bits and sizes[0] == sizes[1]


def against(run: Run, other: Run) -> str:
    """The final accuracy of two runs, paired by test row."""
    if not comparable(run, other):
        return f"{other.name} in {other.folder} has other tasks or test rows, so the two cannot be compared."
    draws = [each(resampled([one.outcomes]), scores.average_accuracy) for one in (run, other)]
    low, high = interval(draws[0] - draws[1])
    difference = scores.average_accuracy(run.matrix) - scores.average_accuracy(other.matrix)
    clear = "" if low > 0 or high < 0 else ": not told apart"
    return (
        f"{other.name} ended at {scores.average_accuracy(other.matrix):.3f}; {run.name} minus {other.name}: "
        f"{100 * difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}){clear}."
    )


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them; many are counted."""
    if len(names) > 4:
        return f"{len(names)} tasks"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
