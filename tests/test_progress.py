"""The time that is said to be left, and what is shown of a training."""

from __future__ import annotations

import io

from rich.console import Console

from retain.progress import WorkBar, in_short


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_is_work_at_the_speed_so_far_and_boundaries_as_long_as_those_before() -> None:
    clock = Clock()
    bar = WorkBar(Console(file=io.StringIO()), 400.0, 2, clock)
    bar.stage(200.0, 1)
    assert bar.left() == "", "nothing is known yet"
    clock.now = 10
    bar.advance(100.0)
    assert bar.left() == "0:00:10 of 0:00:30 left"
    with bar.boundary():
        clock.now = 50
    bar.advance(0.0)
    assert bar.left() == "0:00:10 of 0:01:10 left"  # 300 of work, and another boundary
    clock.now = 60
    bar.advance(100.0)
    bar.stage(200.0, 1)
    assert bar.left() == "0:01:00 of 0:01:00 left"


def test_a_training_is_shown_with_its_loss_and_its_extra_term() -> None:
    assert in_short({"grad_norm": 1.0}) == ": training"
    assert in_short({"loss": 0.51234}) == ": loss 0.512"
    logs = {"loss": 0.5, "extra_loss": 0.0123, "foreseen_rise": 0.004, "calibrated_rise": 0.12, "strength": 10.0}
    assert in_short(logs) == ": loss 0.5 + 0.012, rise 0.12, strength 10"


def test_nothing_is_left_of_the_bar_where_it_is_piped() -> None:
    file = io.StringIO()
    with WorkBar(Console(file=file, force_terminal=False), 2.0) as bar:
        bar.show("faq: loss 1")
        bar.advance(1.0)
    assert not file.getvalue().strip()
