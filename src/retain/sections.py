"""The sections of a run's YAML file: their keys, and what each may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from retain.formats import Format, Learned
from retain.metrics import ERRORS, OF_NUMBERS, Metric
from retain.mistakes import Within, check_names, check_task_name, check_types
from retain.wording import Metric as Wording

OURS = {  # keywords of TrainingArguments that a run sets itself
    "output_dir": "a run trains under its own `output`",
    "seed": "write `seed` at the top level: one seed rules the whole run",
    "data_seed": "write `seed` at the top level: one seed rules the whole run",
    "remove_unused_columns": "the data are already reduced to what the model takes",
    "label_names": "the labels of a task are always called labels",
    "save_only_model": "a training could not continue from such checkpoints",
    "label_smoothing_factor": "the loss is the task's own likelihood, which the Fisher information is of",
}
OF_THE_RUN = {"report_to", "run_name"}  # and not of one of its tasks

LANGUAGE = ("causal-lm", "seq2seq-lm", "image-text-to-text")  # kinds of models that write texts
DRAWS = "text-to-image"
IN_NATS = (*LANGUAGE, DRAWS)  # kinds whose tasks have no classes, and are scored by their loss
LEARNS = {  # what those learn that have no section `language`
    "seq2seq-lm": "reads up to the last answer, and learns that",
    "image-text-to-text": "learns every answer",
    "time-series": "forecasts numbers",
    DRAWS: "learns to draw pictures",
}
TARGETS = {DRAWS: {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}}  # of LoRA, where a kind has its own

Count = Annotated[int, Strict(), Field(ge=1)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
Text = Annotated[str, Strict(), Field(min_length=1)]
Label = Annotated[str, Strict()] | Annotated[int, Strict()] | Annotated[bool, Strict()]
Files = Text | list[Text] | dict[str, Text | list[Text]]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The pretrained model: a hub name or a folder, and how it is loaded.

    ``quantization`` has bitsandbytes keep the linear maps of a language model in so many bits (nf4, or int8), which
    nothing ever writes. ``resolution`` is a side, in pixels, of pictures that it learns to draw; its own if not said.
    """

    path: Text
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    kind: Literal["text", "image", "causal-lm", "seq2seq-lm", "image-text-to-text", "time-series", "text-to-image"] = (
        "text"
    )
    resolution: Count | None = None

    @model_validator(mode="after")
    def _quantised(self) -> Self:
        if self.resolution is not None and self.kind != DRAWS:
            raise Within("resolution", f"{self.resolution} is not allowed with model.kind {self.kind!r}")
        if self.quantization is not None and self.kind == DRAWS:
            raise Within("quantization", f"{self.quantization!r} is not allowed with model.kind {self.kind!r}")
        if self.quantization is not None and not self.writes:
            raise Within(
                "quantization",
                f"{self.quantization!r} is not allowed with model.kind {self.kind!r}: few bits are for language "
                "models, and a new head is trained as a whole, which they cannot be",
            )
        return self

    @property
    def writes(self) -> bool:
        """Whether it is a language model, which has no classes: its answers are texts."""
        return self.kind in LANGUAGE

    @property
    def in_nats(self) -> bool:
        """Whether tasks have no classes, and are scored by their loss."""
        return self.kind in IN_NATS


class LanguageConfig(Section):
    """What a causal language model learns of its rows; only with ``model.kind: causal-lm``.

    ``loss``: of a row's tokens "completion" learns those of its answers, "last" those of the last answer, "all" every
    one. Plain texts are learned whole. ``packing``: the rows of a training batch stand end to end, without padding;
    they see nothing of each other.
    """

    loss: Learned = "completion"
    packing: Annotated[bool, Strict()] = False


class HeadsConfig(Section):
    """The classifier heads; without a learning rate of their own they take the adapter's."""

    learning_rate: float | None = Field(default=None, gt=0)


class EvaluationConfig(Section):
    """How tasks are scored, so many rows at a time (64, of language models 8), and on which: "test" if not said.

    ``gauge``: the rows on which a method's gauge is calibrated, which sets ``strength: auto`` and budgets; if not said,
    those that are scored.
    """

    batch_size: Count | None = None
    rows: Literal["test", "validation"] | None = None
    gauge: Literal["validation"] | None = None

    @property
    def sets_gauge_apart(self) -> bool:
        """Whether other rows than those that are scored calibrate the gauge."""
        return self.gauge is not None and self.gauge != self.rows


class TaskConfig(Section):
    """One entry of ``tasks``: where its rows are, which columns count, and what it trains with.

    ``path``, ``config``, ``data_files`` and ``data_dir`` go to ``datasets.load_dataset``; ``train`` and ``test`` are
    split expressions such as ``train[:200]``; so is ``validation``, which ``evaluation.rows`` may ask for. Without a
    split, ``test_fraction`` of the training rows, stratified by label and chosen by the run's seed, are held out.
    ``split_by_class: n`` makes several tasks of n classes each, in order of label; ``max_train`` and ``max_test`` hold
    for each of them. ``max_length`` is in tokens. ``training`` overrides the run's for this task.
    ``metric`` is the score of the test rows, accuracy if not said; one of ``metrics.OF_NUMBERS`` makes the task a
    regression, whose labels are numbers, or lists of as many in every row. A distance of ``unit`` in them costs half a
    nat: the model learns labels divided by it, and the metric is of labels.
    ``format`` says what the rows of a language model are, where their columns fit several. ``metrics`` compare what
    the model writes, ``max_new_tokens`` at most, with the answers of the test rows; of ``options`` it chooses one: of
    those in the list, or (true) of the answers that the training rows have.
    ``columns`` are the channels of a time series, all columns of numbers if not said; a row is a window of one, the
    next one begins ``stride`` steps later, and ``test_fraction`` are the last.
    ``prompt`` is what all pictures of a model that learns to draw are called, where no column has texts; of ``classes``
    it draws those that are named.
    """

    name: Text
    path: Text
    data_files: Files | None = None
    data_dir: Text | None = None
    config: Text | None = None
    train: Text | None = None
    test: Text | None = None
    validation: Text | None = None
    text: Text | Annotated[list[Text], Field(min_length=2, max_length=2)] = "text"
    image: Text = "image"
    prompt: Text | None = None
    label: Text = "label"
    format: Format | None = None
    metric: Metric | None = None
    unit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    metrics: Annotated[list[Wording], Field(min_length=1)] | None = None
    options: Literal[True] | Annotated[list[Text], Field(min_length=2)] | None = None
    max_new_tokens: Count | None = None
    columns: Annotated[list[Text], Field(min_length=1)] | None = None
    stride: Count | None = None
    classes: Annotated[list[Label], Field(min_length=1)] | None = None
    split_by_class: Count | None = None
    max_train: Count | None = None
    max_test: Count | None = None
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    max_length: Count | None = None
    training: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_task_name(name)

    @field_validator("training")
    @classmethod
    def _training(cls, training: dict[str, Any]) -> dict[str, Any]:
        for key in training.keys() & OF_THE_RUN:
            raise ValueError(f"{key!r} cannot be set here: trackers follow the whole run; write it in its `training`")
        return checked_training(training)

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return self.metric in OF_NUMBERS

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        for key in ("classes", "split_by_class"):
            if self.is_regression and (value := getattr(self, key)) is not None:
                raise Within(key, f"{value!r} is not allowed with metric {self.metric!r}: labels are numbers")
        if self.unit is not None and not self.is_regression:
            raise Within("unit", f"{self.unit:g} is not allowed without a metric of numbers")
        return self

    @model_validator(mode="after")
    def _asked(self) -> Self:
        if self.max_new_tokens and not self.metrics:
            raise Within("max_new_tokens", f"{self.max_new_tokens} without `metrics`: nothing is written")
        for key in ("metrics", "options"):
            named = getattr(self, key)
            for name in named if isinstance(named, list) else ():
                if named.count(name) > 1:
                    raise Within(key, f"{name!r} is there twice")
        return self


class GuardConfig(TaskConfig):
    """``guard``: rows, such as general text, on which the untouched model is good; keys as of a task.

    What it can do on the training rows is measured before the first task, and held by methods that can; the loss on
    the test rows is measured after every task.
    """

    name: Text = "guard"


# Keys of a task that say what its classes are.
OF_CLASSES = ("label", "classes", "split_by_class", "image", "metric", "unit")
OF_SERIES = ("columns", "stride")
OF_LANGUAGE = ("format", "metrics", "options", "max_new_tokens")
ASKED = OF_LANGUAGE[1:]


def check_scored(strength: Any, tasks: Sequence[TaskConfig], kind: str) -> None:
    """Refuse a budget that is a share of a score where tasks of a model of ``kind`` have none, or none but a loss.

    Raises:
        ValueError: what it counts, and where scores come from.
    """
    budget = strength.get("budget") if isinstance(strength, dict) else None
    if isinstance(budget, str) and any(task.metric in ERRORS for task in tasks):
        raise ValueError(f"method.strength.budget is {budget!r}, and an error has no share to lose; expected nats")
    if isinstance(budget, str) and kind == DRAWS:
        raise ValueError(f"method.strength.budget is {budget!r}, and a loss has no share to lose; expected nats")
    if isinstance(budget, str) and kind in LANGUAGE and not all(task.metrics or task.options for task in tasks):
        raise ValueError(
            f"method.strength.budget is {budget!r} of the tasks' scores, which a language model has only where each "
            "task says `metrics` or `options`; expected nats"
        )


def check_metrics(scenario: str, tasks: Sequence[TaskConfig], *, cumulative: bool) -> None:
    """Refuse a ``scenario`` that metrics of ``tasks`` do not allow, or a ``cumulative`` method that does not.

    Raises:
        ValueError: naming a task, its metric, and why not.
    """
    for task in tasks:
        named = f"{scenario!r} is not allowed with metric {task.metric!r} of task {task.name!r}"
        if scenario == "class" and task.metric not in (None, "accuracy"):
            raise ValueError(f"{named}: the task of a row is not known there, and classes of all tasks compete")
        if scenario == "domain" and task.is_regression != tasks[0].is_regression:
            raise ValueError(f"{named}: all tasks share one head, and {tasks[0].name!r} has another kind of labels")
        if scenario != "domain" and cumulative and task.is_regression:
            raise ValueError(
                f"{named} and a method that trains on all rows at once: classes and numbers have no loss in common"
            )


def checked_training(training: dict[str, Any]) -> dict[str, Any]:
    """``training`` if it holds nothing but keywords of ``TrainingArguments`` that a run leaves to its user."""
    if not training:
        return training
    from transformers import TrainingArguments

    for key in training.keys() & OURS.keys():
        raise ValueError(f"{key!r} cannot be set here: {OURS[key]}")
    known = [field.name for field in fields(TrainingArguments) if field.name not in OURS]
    check_keywords(training, known, training_kinds(), "transformers.TrainingArguments")
    return training


def training_kinds() -> dict[str, Any]:
    """The types of the keywords of ``TrainingArguments``, as the documentation of transformers 5 has them."""
    from transformers import TrainingArguments

    kinds = get_type_hints(TrainingArguments)
    return kinds | {"fsdp": kinds["fsdp"] | bool, "warmup_steps": float}


def check_keywords(section: dict[str, Any], known: Iterable[str], kinds: Mapping[str, Any], owner: str) -> None:
    """Refuse a key of ``section`` that ``owner`` does not know, or a value that ``kinds`` does not allow."""
    check_names(section, known, owner)
    check_types(section, kinds)
