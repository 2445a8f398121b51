"""What a training cost the earlier tasks, beside what was foreseen of it, and what there is to warn of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from retain.method import Method
from retain.multiplier import loosened

CLEAR = 2.0  # standard errors from zero
SLIGHT = 0.01  # nats an example of each earlier task that nobody need be warned of
INERT = 0.01  # of a nat paid for a nat lost


def calibrate(
    foreseen: Mapping[str, float],
    remembered: Mapping[str, float],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The foreseen beside the measured rise of the earlier tasks' test loss over one training, nats per example.

    A measured rise is a mean over a task's test rows, and its standard error that of their paired differences. "ratio"
    is foreseen over measured, null unless the measured rise is clear: more than two standard errors.

    Args:
        foreseen: what ``Method.predicted_rise`` gave before the boundary.
        remembered: how much each earlier task counts in the "total", by name.
        before: the loss (n,) of each test row at the last boundary, by task.
        after: the same now.
    """
    total, variance, tasks = 0.0, 0.0, {}
    for name, share in remembered.items():
        rises = (after[name].double() - before[name].double()).numpy()
        error = rises.std(ddof=1) / len(rises) ** 0.5 if len(rises) > 1 else np.nan
        tasks[name] = _compared(foreseen.get(name), rises.mean(), error)
        total, variance = total + share * rises.mean(), variance + (share * error) ** 2
    return {"total": _compared(foreseen["total"], total, variance**0.5), "tasks": tasks}


def shares_lost(
    remembered: Mapping[str, float], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> tuple[float, float] | None:
    """The share of its score that each earlier task has lost over one training, summed, and its standard error.

    Paired by test row; where hardly any row differs, the error is at least what one row would make. None if no task has
    a score to lose.

    Args:
        remembered: how much each earlier task counts, by name.
        before: what each test row scored at the last boundary (n,), by task; a task without scores is left out.
        after: the same now.
    """
    lost, variance, scored = 0.0, 0.0, False
    for name, weight in remembered.items():
        if name in before and (had := before[name].mean()) > 0:
            shares, scored = (before[name] - after[name]) / had, True
            error = max(shares.std() / len(shares) ** 0.5, 1 / (len(shares) * had))
            lost, variance = lost + weight * shares.mean(), variance + (weight * error) ** 2
    return (float(lost), float(variance**0.5)) if scored else None


def note(
    method: Method, task: str, rise: Mapping[str, Any], share: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Tell ``method`` what a training has cost; returns how it had read its gauge, and the factor from now on.

    Args:
        method: after ``end_task``.
        task: the one just learned.
        rise: the "total" of ``calibrate``.
        share: what ``shares_lost`` gave.
    """
    before = method.factor
    if before is None:
        return {}
    error = math.inf if rise["standard_error"] is None else rise["standard_error"]
    method.calibrate(task, rise["foreseen"], rise["measured"], error, share)
    after = method.factor or before
    told = {} if share is None else {"share_lost": {"measured": share[0], "standard_error": share[1]}}
    return told | (before.read(rise["foreseen"]) if before.boundaries else {}) | {"factor": asdict(after)}


def doubts(
    calibration: Mapping[str, Any], strength: float, task: str, loss: float, limit: str | None = None
) -> list[str]:
    """What to tell a user of a protection that does nothing, or that leaves no room for anything else.

    Args:
        calibration: of one boundary.
        strength: what a foreseen nat weighed during training.
        task: the one just learned.
        loss: its test loss before it was learned. No training that goes downhill pays more than that.
        limit: the budget that found ``strength``, if there is one; a rise inside it may weigh next to nothing.
    """
    total = calibration["total"]
    paid, lost, ratio = strength * total["foreseen"], total["measured"], total["ratio"]
    if paid > loss:
        return [
            f"learning {task!r} has paid {paid:.3g} nats an example to its own protection, more than the whole loss of "
            f"{loss:.3g} that there was to gain: the protection dominates, and training cannot follow it. "
            f"{loosened(strength, limit)}, or lower the learning rate"
        ]
    inert = paid < INERT * lost and lost > SLIGHT * len(calibration["tasks"])
    if inert and strength and limit is None and ratio is not None:
        fair = f"about {float(format(1 / ratio, '.1g')):g}" if ratio > 0 else "far more"
        return [
            f"learning {task!r} has cost the earlier tasks {lost:.3g} ± {total['standard_error']:.2g} nats an example, "
            f"and protecting them weighed {paid:.1g}: the protection is inert. method.strength is {strength:g}: "
            f"raise it ({fair} would weigh a nat lost like a nat gained)"
        ]
    return []


def in_words(rise: Mapping[str, Any]) -> str:
    """A measured rise beside what was foreseen of it, as a sentence's end."""
    error = "" if rise["standard_error"] is None else f" ± {rise['standard_error']:.3f}"
    if rise["ratio"] is None:
        words = f"changed by {rise['measured']:+.3f}{error}, no clear rise; foreseen {rise['foreseen']:+.2g}"
    else:
        words = (
            f"rose by {rise['measured']:.3f}{error}; foreseen {rise['foreseen']:.2g}, {share_in_words(rise['ratio'])}"
        )
    if "calibrated" in rise:
        words += f", calibrated {rise['calibrated']:.2g} ({rise['low']:.2g} to {rise['high']:.2g})"
    return words


def share_in_words(ratio: float) -> str:
    """``ratio`` as people say it: "1/30 of it", "1.4 times that"."""
    if not 0 < ratio < 0.7:
        return f"{ratio:.2g} times that"
    return f"1/{1 / ratio:.0f} of it" if ratio < 0.1 else f"1/{1 / ratio:.1f} of it"


def _compared(foreseen: float | None, measured: float, error: float) -> dict[str, float | None]:
    ratio = foreseen / measured if foreseen is not None and measured > CLEAR * error else None
    return {"foreseen": foreseen, "measured": _number(measured), "standard_error": _number(error), "ratio": ratio}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
