"""``results.json`` as it is read back: held against the shape that a run writes, whoever has written it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from retain.files import StoreError
from retain.intake import read_section
from retain.metrics import Metric
from retain.mistakes import check_task_name

Number = float
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]
Unknown = Annotated[list[None], Field(min_length=2, max_length=2)]  # of a score that is none


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


Name = Annotated[str, AfterValidator(check_task_name)]  # which a terminal does not read as markup


class _Method(_Part):
    name: Name


class _Scored(_Part):
    """A score matrix (T+1, T), and what follows from it."""

    matrix: list[list[Number | None]]
    scores: dict[str, Number | None]
    intervals_95: dict[str, Interval | Unknown]

    @model_validator(mode="after")
    def _intervals(self) -> _Scored:
        known = {name for name, pair in self.intervals_95.items() if None not in pair}
        if bare := {name for name, value in self.scores.items() if value is not None} & SHOWN - known:
            raise ValueError(f"no interval of {min(bare)}")
        return self


class _Rise(_Part):
    foreseen: Number | None
    measured: Number | None
    standard_error: Number | None
    ratio: Number | None


class _Boundary(_Part):
    after: int = Field(ge=1)
    tasks: dict[Name, _Rise] = Field(min_length=1)
    total: _Rise


class _Guard(_Part):
    name: Name
    rise: Number
    interval_95: Interval
    held: bool
    nats_per_token: list[Number | None]


class _Results(_Part):
    tasks: list[Name] = Field(min_length=1)
    method: _Method
    scenario: Literal["task", "class", "domain"]
    rows: Literal["test", "validation"]
    calibration: list[_Boundary]
    warnings: dict[str, list[str]]
    bytes: dict[str, Any]
    seconds: dict[str, Number]
    accuracy: _Scored | None = None
    score: _Scored | None = None
    metric: dict[Name, Metric] = {}
    nats_per_token: _Scored | None = None
    nats_per_example: _Scored | None = None
    metrics: dict[Name, _Scored] = {}
    guard: _Guard | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Results:
        count = len(self.tasks)
        every = (self.accuracy, self.score, self.nats_per_token, self.nats_per_example)
        own = [part for part in every if part is not None]
        scored = [*own, *self.metrics.values()]
        if len(own) != 1:
            raise ValueError("one of accuracy, score, nats_per_token, nats_per_example")
        if self.score is not None and self.metric.keys() != {*self.tasks}:
            raise ValueError("a score has the metric of every task")
        if any(len(part.matrix) != count + 1 or {len(row) for row in part.matrix} != {count} for part in scored):
            raise ValueError(f"a score matrix of {count} tasks has {count + 1} rows of {count}")
        for part in scored:
            needed = OF_ACCURACY if part in (self.accuracy, self.score) else OF_LEVELS
            if missing := needed - part.scores.keys():
                raise ValueError(f"no score {min(missing)}")
        if any(boundary.after > count for boundary in self.calibration):
            raise ValueError(f"a boundary after more than {count} tasks")
        if self.guard is not None and len(self.guard.nats_per_token) != count + 1:
            raise ValueError(f"a guard of {count} tasks is measured {count + 1} times")
        return self


OF_ACCURACY = {"average_accuracy", "learning_accuracy", "forgetting", "backward_transfer"}
OF_LEVELS = {"untouched", "just_learned", "gained", "forgetting", "final"}
SHOWN = OF_ACCURACY | OF_LEVELS


def read_results(path: Path) -> dict[str, Any]:
    """What a run has come to.

    Raises:
        StoreError: missing, damaged, or not what a run writes, by the first place.
    """
    found = read_section(path)
    try:
        _Results.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: damaged: {where + ': ' if where else ''}{first['msg']}") from None
    return found
