"""A run's YAML file, checked at the door: a mistake is one line that names the section, the key and what is allowed."""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from retain import yamls
from retain.mistakes import check_names, check_task_name, check_types, one_line

LORA = {"r": 8, "target_modules": "all-linear"}
METHOD = {"name": "ewc-lora"}
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
OURS = {  # keywords of TrainingArguments that a run sets itself
    "output_dir": "a run trains under its own `output`",
    "seed": "write `seed` at the top level: one seed rules the whole run",
    "data_seed": "write `seed` at the top level: one seed rules the whole run",
    "remove_unused_columns": "the data are already reduced to what the model takes",
    "label_names": "the labels of a task are always called labels",
    "label_smoothing_factor": "the loss is the task's own likelihood, which the Fisher information is of",
}

Count = Annotated[int, Strict(), Field(ge=1)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
Text = Annotated[str, Strict(), Field(min_length=1)]
Label = Annotated[str, Strict()] | Annotated[int, Strict()] | Annotated[bool, Strict()]
Files = Text | list[Text] | dict[str, Text | list[Text]]


class ConfigError(ValueError):
    """A mistake in a configuration, told in one line."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """The pretrained model: a hub name or a folder, and how it is loaded."""

    path: Text
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    kind: Literal["text", "image"] = "text"


class HeadsConfig(_Section):
    """The classifier heads; without a learning rate of their own they take the adapter's."""

    learning_rate: float | None = Field(default=None, gt=0)


class EvaluationConfig(_Section):
    """How tasks are scored, and on which rows: "test" if nothing is said."""

    batch_size: Count = 64
    rows: Literal["test", "validation"] | None = None


class TaskConfig(_Section):
    """One entry of ``tasks``: where its rows are, which columns count, and what it trains with.

    ``path``, ``config``, ``data_files`` and ``data_dir`` go to ``datasets.load_dataset``; ``train`` and ``test`` are
    split expressions such as ``train[:200]``; so is ``validation``, which ``evaluation.rows`` may ask for. Without a
    split, ``test_fraction`` of the training rows, stratified by label and chosen by the run's seed, are held out.
    ``split_by_class: n`` makes several tasks of n classes each, in order of label; ``max_train`` and ``max_test`` hold
    for each of them. ``max_length`` is in tokens. ``training`` overrides the run's for this task.
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
    label: Text = "label"
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
        return _checked_training(training)


class RunConfig(_Section):
    """A whole run: ``lora``, ``training``, ``method`` are keywords of LoraConfig, TrainingArguments, the method."""

    model: ModelConfig
    lora: dict[str, Any] = LORA
    heads: HeadsConfig = HeadsConfig()
    method: dict[str, Any] = METHOD
    training: dict[str, Any] = {}
    evaluation: EvaluationConfig = EvaluationConfig()
    tasks: Annotated[list[TaskConfig], Field(min_length=1)]
    scenario: Literal["task", "class", "domain"] = "task"
    output: Text = "runs/run"
    seed: Seed = 0
    split_seed: Seed | None = None

    @property
    def rows_seed(self) -> int:
        """The seed of subsets and of rows that are held out."""
        return self.seed if self.split_seed is None else self.split_seed

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, document: Any) -> Any:
        """A section written down without content means its defaults."""
        if not isinstance(document, dict):
            return document
        return {k: v for k, v in document.items() if v is not None or k not in cls.model_fields}

    @field_validator("lora")
    @classmethod
    def _lora(cls, lora: dict[str, Any]) -> dict[str, Any]:
        from retain.lora import LoraConfig, lora_config_fields

        _check(lora, lora_config_fields(), get_type_hints(LoraConfig), "peft.LoraConfig")
        return LORA | lora

    @field_validator("method")
    @classmethod
    def _method(cls, method: dict[str, Any]) -> dict[str, Any]:
        from retain.methods import method_named

        name = method.get("name", METHOD["name"])
        maker = method_named(name)
        keywords = {p.name: p.default for p in list(inspect.signature(maker).parameters.values())[1:]}
        given = {key: value for key, value in method.items() if key != "name"}
        _check(method, ["name", *keywords], get_type_hints(maker.__init__), f"the method {name!r}")
        maker.check(**keywords | given)
        return METHOD | method

    @field_validator("training")
    @classmethod
    def _training(cls, training: dict[str, Any]) -> dict[str, Any]:
        return _checked_training(training)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML file ``path``, apply ``overrides`` of the form ``section.key=value``, and check the whole.

    Files and folders that it names are looked for in its own folder first, then in the working folder.

    Raises:
        ConfigError: the first mistake, in one line.
    """
    try:
        document = yamls.read(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {reason}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{str(path)!r} holds no sections; a configuration starts with `model:`")
    try:
        for override in overrides:
            yamls.override(document, override)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    document["output"] = document.get("output") or f"runs/{Path(path).stem}"
    return _beside(os.path.dirname(path), parse(document))


def parse(document: dict[str, Any]) -> RunConfig:
    """``document`` (what a YAML file holds) as a checked configuration.

    Raises:
        ConfigError: the first mistake, in one line.
    """
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(one_line(error, document, RunConfig)) from None


def dump(config: RunConfig) -> str:
    """``config`` as YAML, complete but for keys that are not set; ``parse`` and ``load`` read it back."""
    return yamls.write(config.model_dump(exclude_none=True))


def _checked_training(training: dict[str, Any]) -> dict[str, Any]:
    if not training:
        return training
    from transformers import TrainingArguments

    for key in training.keys() & OURS.keys():
        raise ValueError(f"{key!r} cannot be set here: {OURS[key]}")
    known = [field.name for field in fields(TrainingArguments) if field.name not in OURS]
    _check(training, known, get_type_hints(TrainingArguments), "transformers.TrainingArguments")
    return training


def _check(section: dict[str, Any], known: Iterable[str], kinds: Mapping[str, Any], owner: str) -> None:
    check_names(section, known, owner)
    check_types(section, kinds)


def _beside(folder: str, config: RunConfig) -> RunConfig:
    """``config`` with the files that lie beside it named from the working folder."""

    def found(given: Any) -> Any:
        if isinstance(given, list):
            return [found(item) for item in given]
        if isinstance(given, dict):
            return {key: found(item) for key, item in given.items()}
        here = os.path.join(folder, given)
        return here if os.path.exists(here) or glob.glob(here, recursive=True) else given

    tasks = []
    for task in config.tasks:
        named = ["data_files", "data_dir"] if task.data_files or task.data_dir else ["path"]
        tasks.append(task.model_copy(update={k: found(v) for k in named if (v := getattr(task, k)) is not None}))
    model = config.model.model_copy(update={"path": found(config.model.path)})
    return config.model_copy(update={"tasks": tasks, "model": model})


def training_of(config: RunConfig, task: str) -> dict[str, Any]:
    """The run's training arguments with those of ``task`` on top; of a split entry, its parts share the entry's."""
    own = {e.name: e.training for e in config.tasks}
    parts = {e.name: e.training for e in config.tasks if e.split_by_class}
    return config.training | own.get(task, parts.get(task.rpartition("-")[0], {}))


def training_arguments(config: RunConfig, number: int, task: str, folder: Path) -> Any:
    """``TrainingArguments`` of ``task``, under ``folder``; every task's seed is a function of the run's and its number.

    Raises:
        ValueError: an argument that does not hold.
    """
    import torch
    from transformers import TrainingArguments

    defaults = QUIET | {"dataloader_pin_memory": torch.cuda.is_available()}
    fixed = {
        "output_dir": str(folder),
        "seed": hash((config.seed, number)) % 2**31,
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    return TrainingArguments(**defaults | training_of(config, task) | fixed)


def make_method(config: RunConfig, model: Any) -> Any:
    """The method of ``config`` beside ``model``; the run's seed is its seed unless it has one of its own."""
    from retain.methods import METHODS

    keywords = {key: value for key, value in config.method.items() if key != "name"}
    return METHODS[config.method["name"]](model, **{"seed": config.seed} | keywords)


def difference(one: str, other: str) -> str:
    """The first key in which two dumped configurations differ, with both values; empty if they are the same."""
    flat_one, flat_other = (dict(_flat(yamls.read(text))) for text in (one, other))
    for key in sorted(flat_one.keys() | flat_other.keys()):
        if flat_one.get(key) != flat_other.get(key):
            return f"{key} is {flat_one.get(key)!r} there and {flat_other.get(key)!r} here"
    return ""


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
