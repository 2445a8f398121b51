"""What a run does with the rows of a ``tasks:`` entry: some are learned, some scored, and some may set its gauge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retain.sources import DataError, Rows, Split, read

if TYPE_CHECKING:
    from retain.config import RunConfig, TaskConfig


@dataclass(frozen=True, eq=False)
class Splits:
    """Rows of which none is in two places, and the names of their classes in order.

    Attributes:
        train: to learn.
        test: to score.
        gauge: to calibrate the gauge on; None if that is done on those that are scored.
        classes: of the training rows; [""] without labels.
        scored: what ``test`` is: the "test" or the "validation" rows.
    """

    train: Split
    test: Split
    gauge: Split | None
    classes: list[str]
    scored: Rows = "test"

    @property
    def every(self) -> list[Split]:
        """Those that there are."""
        return [self.train, self.test, *([] if self.gauge is None else [self.gauge])]

    def of(self, task: str, classes: Sequence[str]) -> Splits:
        """The rows of ``classes``, which ``task`` is made of.

        Raises:
            DataError: there is none to score, or none for the gauge.
        """
        train, test, *gauge = (split.of(classes) for split in self.every)
        for kind, split in zip((self.scored, "validation"), (test, *gauge), strict=False):
            if not len(split.names):
                raise DataError(f"task {task!r}: the {kind} split has no row of its classes {', '.join(classes)}")
        return Splits(train, test, gauge[0] if gauge else None, list(classes), self.scored)

    def at_most(self, entry: TaskConfig, seed: int) -> Splits:
        """A subset of as many rows as ``entry`` says."""
        gauge = None if self.gauge is None else self.gauge.at_most(entry.max_test, seed)
        train, test = self.train.at_most(entry.max_train, seed), self.test.at_most(entry.max_test, seed)
        return Splits(train, test, gauge, self.classes, self.scored)


def splits_of(config: RunConfig, entry: TaskConfig, *, labelled: bool, in_order: bool = False) -> Splits:
    """All rows of ``entry``, as the ``evaluation`` of ``config`` wants them; ``in_order`` the last are held out.

    Raises:
        DataError: what is missing, empty, without a label, or labelled with what training never shows.
    """
    scored = config.evaluation.rows or "test"
    seed = None if in_order else config.rows_seed
    train, test, classes = read(entry, seed, scored, labelled=labelled)
    gauge = None
    if config.evaluation.sets_gauge_apart:
        train, gauge, classes = read(entry, seed, "validation", labelled=labelled)
    return Splits(train, test, gauge, classes, scored)
