"""A run's YAML file, checked at the door: a mistake is one line that names the section, the key and what is allowed."""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from retain import yamls
from retain.intake import read_text
from retain.kinds import check_guard, check_method, check_section, check_task_kind, settled
from retain.ledger import LEDGER
from retain.mistakes import Within, one_line
from retain.sections import (
    TARGETS,
    EvaluationConfig,
    GuardConfig,
    HeadsConfig,
    LanguageConfig,
    ModelConfig,
    Section,
    Seed,
    TaskConfig,
    Text,
    check_keywords,
    check_metrics,
    check_scored,
    checked_training,
)

LORA = {"r": 8, "target_modules": "all-linear"}
METHOD = {"name": "ewc-lora"}
QUIET = {"report_to": "none", "save_strategy": "no", "logging_steps": 0.05, "disable_tqdm": True}


class ConfigError(ValueError):
    """A mistake in a configuration, told in one line."""


class RunConfig(Section):
    """A whole run: ``lora``, ``training``, ``method`` are keywords of LoraConfig, TrainingArguments, the method."""

    model: ModelConfig
    lora: dict[str, Any] = LORA
    heads: HeadsConfig = HeadsConfig()
    method: dict[str, Any] = METHOD
    training: dict[str, Any] = {}
    language: LanguageConfig = LanguageConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tasks: Annotated[list[TaskConfig], Field(min_length=1)]
    guard: GuardConfig | None = None
    not_finite: Literal["stop", "skip"] | None = None
    scenario: Literal["task", "class", "domain"] = Field(default="task", validate_default=True)
    state: Text | None = None
    output: Text = "runs/run"
    seed: Seed = 0
    split_seed: Seed | None = None

    @property
    def scored_at_once(self) -> int:
        """Rows of a batch that is scored."""
        return self.evaluation.batch_size or (8 if self.model.in_nats else 64)

    @property
    def rows_seed(self) -> int:
        """The seed of subsets and of rows that are held out."""
        return self.seed if self.split_seed is None else self.split_seed

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, document: Any) -> Any:
        """A section written down without content means its defaults, and some kinds of models leave no choice."""
        if not isinstance(document, dict):
            return document
        return settled({k: v for k, v in document.items() if v is not None or k not in cls.model_fields})

    @field_validator("lora")
    @classmethod
    def _lora(cls, lora: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        from retain.lora import LoraConfig, lora_config_fields

        check_keywords(lora, lora_config_fields(), get_type_hints(LoraConfig), "peft.LoraConfig")
        return LORA | (TARGETS.get(info.data["model"].kind, {}) if "model" in info.data else {}) | lora

    @field_validator("method")
    @classmethod
    def _method(cls, method: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        from retain.methods import method_named

        name = method.get("name", METHOD["name"])
        maker = method_named(name)
        keywords = {p.name: p.default for p in list(inspect.signature(maker).parameters.values())[1:]}
        check_keywords(method, ["name", *keywords], get_type_hints(maker.__init__), f"the method {name!r}")
        maker.check(**keywords | {key: value for key, value in method.items() if key != "name"})
        check_method(info.data.get("model"), name, keeps_rows=maker.keeps_rows)
        return METHOD | method

    @field_validator("heads", "scenario", "language")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        model, name = info.data.get("model"), str(info.field_name)
        if model is not None:
            check_section(name, value, cls.model_fields[name].default, model.kind)
        return value

    @field_validator("scenario")
    @classmethod
    def _of_its_metrics(cls, scenario: str, info: ValidationInfo) -> str:
        from retain.methods import method_named

        if {"tasks", "method"} <= info.data.keys():
            check_metrics(scenario, info.data["tasks"], cumulative=method_named(info.data["method"]["name"]).cumulative)
        return scenario

    @field_validator("tasks")
    @classmethod
    def _of_one_kind(cls, tasks: list[TaskConfig], info: ValidationInfo) -> list[TaskConfig]:
        for number, task in enumerate(tasks if "model" in info.data else []):
            try:
                check_task_kind(task, info.data["model"].kind)
            except ValueError as error:
                raise Within(str(number), error) from None
        if "model" in info.data:
            check_scored(info.data.get("method", {}).get("strength"), tasks, info.data["model"].kind)
        return tasks

    @field_validator("guard")
    @classmethod
    def _guard(cls, guard: GuardConfig | None, info: ValidationInfo) -> GuardConfig | None:
        if guard is not None and {"model", "tasks"} <= info.data.keys():
            check_guard(guard, info.data["model"].kind, [task.name for task in info.data["tasks"]])
        return guard

    @field_validator("training")
    @classmethod
    def _training(cls, training: dict[str, Any]) -> dict[str, Any]:
        return checked_training(training)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML file ``path``, apply ``overrides`` of the form ``section.key=value``, and check the whole.

    Files that it names are looked for in its own folder, then in the working one; that of a run has them found already.

    Raises:
        ConfigError: the first mistake, in one line.
    """
    try:
        document = yamls.read(read_text(Path(path)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {reason}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{str(path)!r} holds no sections; a configuration starts with `model:`")
    try:
        for override, after in zip(overrides, [*overrides[1:], ""], strict=False):
            yamls.override(document, override, after)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    document["output"] = document.get("output") or f"runs/{Path(path).stem}"
    folder, config = os.path.dirname(path), parse(document)
    return config if os.path.exists(os.path.join(folder, LEDGER)) else _beside(folder, config)


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


def _beside(folder: str, config: RunConfig) -> RunConfig:
    """``config`` with the files that lie beside it named from the working folder."""

    def found(given: Any) -> Any:
        if isinstance(given, list):
            return [found(item) for item in given]
        if isinstance(given, dict):
            return {key: found(item) for key, item in given.items()}
        here = os.path.join(folder, given)
        return here if os.path.exists(here) or glob.glob(here, recursive=True) else given

    def moved(entry: TaskConfig) -> TaskConfig:
        named = ["data_files", "data_dir"] if entry.data_files or entry.data_dir else ["path"]
        return entry.model_copy(update={k: found(v) for k in named if (v := getattr(entry, k)) is not None})

    update: dict[str, Any] = {"tasks": [moved(task) for task in config.tasks]}
    update["model"] = config.model.model_copy(update={"path": found(config.model.path)})
    if config.state is not None:
        update["state"] = found(config.state)
    if config.guard is not None:
        update["guard"] = moved(config.guard)
    return config.model_copy(update=update)


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

    defaults = QUIET | {"dataloader_pin_memory": torch.cuda.is_available()}
    fixed = {
        "output_dir": str(folder),
        "seed": hash((config.seed, number)) % 2**31,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",  # a Trainer would end them with its task: see tracker_arguments
    }
    return _arguments(defaults | training_of(config, task) | fixed)


def tracker_arguments(config: RunConfig) -> Any:
    """``TrainingArguments`` of a whole run, for the trackers that they name.

    Raises:
        ValueError: an argument that does not hold.
    """
    return _arguments(QUIET | config.training | {"output_dir": config.output})


def _arguments(keywords: dict[str, Any]) -> Any:
    """``TrainingArguments``, of which those before transformers 5 call ``warmup_steps`` that are a share otherwise."""
    from transformers import TrainingArguments

    if 0 < keywords.get("warmup_steps", 0) < 1 and get_type_hints(TrainingArguments)["warmup_steps"] is int:
        keywords["warmup_ratio"] = keywords.pop("warmup_steps")
    return TrainingArguments(**keywords)


def make_method(config: RunConfig, model: Any) -> Any:
    """The method of ``config`` beside ``model``; the run's seed is its seed unless it has one of its own."""
    from retain.methods import METHODS

    keywords = {key: value for key, value in config.method.items() if key != "name"}
    return METHODS[config.method["name"]](model, **{"seed": config.seed} | keywords)


def method_keywords(config: RunConfig) -> dict[str, Any]:
    """The keywords of the method of ``config``, those that were left out with their defaults, but for its seed."""
    from retain.methods import METHODS

    parameters = list(inspect.signature(METHODS[config.method["name"]]).parameters.values())[1:]
    keywords = {p.name: p.default for p in parameters} | config.method
    return {key: value for key, value in keywords.items() if key not in ("name", "seed")}


def cumulative(config: RunConfig) -> bool:
    """Whether the method of ``config`` trains on the rows of all tasks at once."""
    from retain.methods import METHODS

    return METHODS[config.method["name"]].cumulative


def added(text: str, config: RunConfig) -> int:
    """How many tasks ``config`` has behind those of the dumped configuration ``text``."""
    there = yamls.read(text)
    tasks = there.get("tasks") if isinstance(there, dict) else None
    return max(0, len(config.tasks) - len(tasks)) if isinstance(tasks, list) and tasks else 0


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
