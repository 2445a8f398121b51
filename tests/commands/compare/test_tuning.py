"""The value of a knob is the one that does best on validation rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from compared import pretend, stream
from retain.commands.compare.tuning import choose
from retain.commands.many.cells import Cell
from retain.commands.many.entries import Entry

ENTRY = Entry("ewc", {"name": "ewc"}, "strength", (10.0, 100.0, 1000.0))

pytestmark = pytest.mark.usefixtures("fast_runs")


def cells(folder: Path, *right: float | None) -> dict[float, Cell]:
    """A run for each value, with such a share of right rows; None: it has failed."""
    made = {}
    for value, share in zip(ENTRY.tried, right, strict=True):
        config = stream(folder / f"{value:g}", evaluation={"rows": "validation"}, seed=1000)
        made[value] = Cell("ewc", "ewc, tuning", config)
        if share is not None:
            pretend(made[value], share)
    return made


@pytest.mark.parametrize(
    ("right", "chosen", "edge"),
    [
        ((0.2, 0.6, 0.4), 100.0, False),
        ((0.2, 0.4, 0.9), 1000.0, True),
        ((0.9, 0.4, 0.2), 10.0, True),
        ((0.5, 0.5, 0.5), 100.0, False),  # no reason to leave the default
        ((0.7, 0.5, 0.7), 10.0, True),
        ((0.3, None, 0.6), 1000.0, True),
        ((None, 0.3, None), 100.0, False),
    ],
)
def test_the_best_is_chosen(right: tuple, chosen: float, edge: bool, tmp_path: Path) -> None:
    choice = choose(ENTRY, cells(tmp_path, *right))
    assert (choice["chosen"], choice["at_the_edge"]) == (chosen, edge)
    assert (choice["keyword"], choice["tried"]) == ("strength", [10.0, 100.0, 1000.0])
    assert [score is None for score in choice["scores"]] == [share is None for share in right]
    assert max(s for s in choice["scores"] if s is not None) == choice["scores"][ENTRY.tried.index(chosen)]
    assert (choice["seed"], choice["rows"]) == (1000, "validation")


def test_there_may_be_nothing_to_choose_from(tmp_path: Path) -> None:
    choice = choose(ENTRY, cells(tmp_path, None, None, None))
    assert (choice["chosen"], choice["at_the_edge"]) == (None, False)
