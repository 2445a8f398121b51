"""What methods are compared by: accuracies, scores of several metrics, or losses in nats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from retain import scores, tokenwise
from retain.sections import IN_NATS, LANGUAGE

Score = Callable[[scores.Array], float]
GUARD = "guard_rise"


@dataclass(frozen=True)
class Shown:
    """A score in the table: its name, its title, and that of its difference to another method, if that is shown."""

    name: str
    title: str
    versus: str = ""
    signed: bool = True


@dataclass(frozen=True)
class Plane:
    """The axes on which a figure sets what is kept against what is learned: names of scores, and labels."""

    learned: str
    kept: str
    learned_label: str
    kept_label: str


@dataclass(frozen=True, eq=False)
class Measure:
    """What a comparison is of.

    Attributes:
        key: where ``results.json`` has it.
        unit: what a score matrix holds.
        lower: whether lower is better.
        decides: the score by which methods are told apart, and knobs are tuned; in words ``final``.
        compared: scores of which methods differ.
        beside: scores that are reported.
        lacks: what intransigence is, in words.
        shown: groups of columns.
        plane: of a figure.
        curve: file, title and label of the figure of the tasks learned so far.
    """

    key: str
    unit: str
    lower: bool
    decides: str
    final: str
    compared: Mapping[str, Score]
    lacks: str
    shown: tuple[tuple[Shown, ...], ...]
    plane: Plane
    curve: tuple[str, str, str]
    beside: Mapping[str, Score] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, str]:
        """Titles of the figures by file."""
        file, title, _ = self.curve
        return {
            file: title,
            "stability.png": "What is kept of earlier tasks, against how well each is learned",
            "bytes.png": "Bytes kept, adapter included",
        }


def _level(name: str) -> Score:
    return lambda matrix: tokenwise.levels(matrix)[name]


ACCURACY = Measure(
    key="accuracy",
    unit="accuracy",
    lower=False,
    decides="average_accuracy",
    final="final average accuracy",
    compared={
        "average_accuracy": scores.average_accuracy,
        "average_incremental_accuracy": scores.average_incremental_accuracy,
        "forgetting": scores.forgetting,
        "learning_accuracy": scores.learning_accuracy,
    },
    beside={"stability": scores.stability},
    lacks="what learning accuracy lacks of the accuracy of",
    shown=(
        (Shown("average_accuracy", "final accuracy", "vs", signed=False),),
        (
            Shown("average_incremental_accuracy", "AIA", signed=False),
            Shown("forgetting", "forgetting", "forgetting vs"),
        ),
        (Shown("learning_accuracy", "learning accuracy", signed=False), Shown("intransigence", "intransigence")),
    ),
    plane=Plane(
        "learning_accuracy",
        "stability",
        "plasticity: accuracy on each task just learned",
        "stability: share of it kept to the end",
    ),
    curve=("accuracy.png", "Average accuracy on the tasks learned so far", "accuracy on the tasks learned so far"),
)
SCORE = replace(
    ACCURACY,
    key="score",
    unit="score",
    final="final average score",
    lacks="what the score right after learning lacks of that of",
    shown=(
        (Shown("average_accuracy", "final score", "vs", signed=False),),
        (Shown("forgetting", "forgetting", "forgetting vs"),),
        (Shown("learning_accuracy", "just learned", signed=False), Shown("intransigence", "intransigence")),
    ),
    plane=Plane(
        "learning_accuracy",
        "forgetting",
        "plasticity: score of each task just learned",
        "forgetting: what of it is lost to the end",
    ),
    curve=("score.png", "Average score on the tasks learned so far", "score on the tasks learned so far"),
)


def _in(key: str) -> Measure:
    """Of losses, which ``results.json`` has under ``key``."""
    unit = tokenwise.UNITS[key]
    return Measure(
        key=key,
        unit=unit,
        lower=True,
        decides="final",
        final=f"final {unit}, lower is better",
        compared={name: _level(name) for name in ("final", "forgetting", "just_learned", "gained")},
        lacks="how much higher a task is when it was learned than under",
        shown=(
            (Shown("final", f"final {unit}", "vs", signed=False),),
            (Shown("forgetting", "forgetting", "forgetting vs"),),
            (
                Shown("just_learned", "just learned", "just learned vs", signed=False),
                Shown("intransigence", "intransigence"),
            ),
        ),
        plane=Plane(
            "gained",
            "forgetting",
            f"plasticity: {unit} that learning a task gains",
            f"forgetting: {unit} lost to the end",
        ),
        curve=("nats.png", f"{unit.capitalize()} on the tasks learned so far", f"{unit} on the tasks learned so far"),
    )


NATS, PER_EXAMPLE = map(_in, tokenwise.UNITS)


def measure_of(kind: str, metrics: Iterable[str | None]) -> Measure:
    """The measure of streams of models of ``kind``, whose tasks have these ``metrics``."""
    if kind in IN_NATS:
        return NATS if kind in LANGUAGE else PER_EXAMPLE
    return SCORE if {*metrics} - {None, "accuracy"} else ACCURACY


def measure_in(unit: str) -> Measure:
    """The measure of that unit."""
    return {by.unit: by for by in (NATS, PER_EXAMPLE, SCORE)}.get(unit, ACCURACY)
