"""What a run works with: the stages that a configuration means, the data, the model, and the method beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from retain import artefact, store
from retain import config as configuration
from retain.batches import length_of
from retain.config import RunConfig
from retain.data import Stream, load_stream
from retain.files import ours
from retain.heads import heads_of
from retain.hf import load_model, load_processor
from retain.intake import read_text
from retain.lora import adapter_parameters
from retain.method import Method
from retain.task import Task, joined

STATE, LOSSES = "state", "losses.safetensors"
MODEL, METHOD = f"{STATE}/{artefact.MODEL}", f"{STATE}/{artefact.METHOD}"


@dataclass(frozen=True)
class Stage:
    """One training and the scores after it; ``number`` is that of the last task learned, -1 for the untouched model."""

    number: int
    name: str
    folder: Path
    task: Task | None = None
    arguments: TrainingArguments | None = None

    @property
    def work(self) -> float:
        """Of the training, in forwards of a token, or of an image."""
        if self.task is None or self.arguments is None:
            return 0.0
        rows = self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps
        steps = max(self.arguments.max_steps, 0)
        passes = steps * rows or self.arguments.num_train_epochs * len(self.task.train)
        return 3.0 * passes * length_of(self.task.train)


@dataclass(frozen=True)
class Workshop:
    """All that a run works with: the stream, the adapted model and what it was made of, the method beside it."""

    config: RunConfig
    stream: Stream
    model: Any
    method: Method
    base: artefact.Base

    def stages(self) -> list[Stage]:
        """The untouched model, then every training: one a task, or one of all tasks for a cumulative method.

        Raises:
            ValueError: a training argument that does not hold.
        """
        folder, tasks = Path(self.config.output), self.stream.tasks
        trainings = list(enumerate(tasks))
        if self.method.cumulative:
            trainings = [(len(tasks) - 1, joined(tasks))]
        stages = [Stage(-1, "the model of the state" if self.config.state else "the untouched model", folder / "base")]
        for i, task in trainings:
            own = folder / "tasks" / f"{i:02d}-{task.name}"
            number = self.before + i
            arguments = configuration.training_arguments(self.config, number, task.name, own / "trainer")
            stages.append(Stage(i, task.name, own, task, arguments))
        return stages

    @property
    def before(self) -> int:
        """How many tasks were learned before the first of this run."""
        return len(self.stream.before)

    @property
    def measures_base(self) -> bool:
        """Whether the untouched model is measured on a guard, as on a task."""
        return self.stream.guard is not None and not self.before

    def names(self) -> list[str]:
        """The tasks by name."""
        return [task.name for task in self.stream.tasks]

    def scored(self) -> list[Task]:
        """The tasks, and the guard if there is one."""
        return [*self.stream.tasks, *([self.stream.guard] if self.stream.guard else [])]

    def gauging(self, stage: Stage) -> list[Task]:
        """What calibrates the gauge after ``stage``, if not what is scored: tasks learned by then, and the guard."""
        if self.stream.gauge is None or self.method.factor is None:
            return []
        guard = [self.stream.guard] if self.stream.guard else []
        return [self.stream.gauge.tasks[task.name] for task in [*self.stream.tasks[: stage.number + 1], *guard]]

    def scoring(self, stage: Stage) -> float:
        """The work of both after ``stage``, and of what is asked, in forwards of a token, or of an image."""
        gauge, work = self.stream.gauge, 0.0
        for tasks, asked in ((self.scored(), self.stream.asked), (self.gauging(stage), gauge.asked if gauge else {})):
            rows = [(t.test, len(t.test) + (asked[t.name].work if t.name in asked else 0)) for t in tasks]
            work += sum(n * length_of(test) for test, n in rows)
        return work

    def leaves_state(self, stage: Stage) -> bool:
        """Whether ``stage`` has something that the next one goes on from."""
        return stage.task is not None or self.stream.guard is not None or self.config.state is not None

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter in place as a stock LoRA."""
        labels, first = dict[str, Any](), 0
        earlier = artefact.origin(self.config.state, Path(self.config.output))
        tasks = [task.name for task in earlier.blocks] if earlier else []
        for task, names in zip([*tasks, *self.names()], [*self.stream.before, *self.stream.labels], strict=True):
            labels[task] = {"first_output": first, "labels": names}
            first += 0 if self.config.scenario == "domain" else len(names)
        store.write_adapter(folder, self.model, labels if any(self.stream.labels) else {})


def prepare(config: RunConfig) -> Workshop:
    """Load data, model and method of ``config``; nothing is written."""
    path, kind, domain = config.model.path, config.model.kind, config.scenario == "domain"
    processor = load_processor(path, kind)
    stream = load_stream(config, processor)
    model = load_model(
        path,
        kind,
        stream.sizes,
        config.lora,
        own_heads=not domain,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        seed=config.seed,
    )
    if kind == "text":
        model.config.pad_token_id = processor.pad_token_id
    if torch.cuda.is_available() and config.model.quantization is None:  # else it is there, and may not be moved
        model.to("cuda")
    base = artefact.base_of(model, path)  # now, since in training it may be in parts
    return Workshop(config, stream, model, configuration.make_method(config, model), base)


def check_folder(config: RunConfig) -> None:
    """See that the output folder is free for ``config``, or already its own, of all its tasks or the first of them.

    Raises:
        StoreError: the folder belongs to another configuration, holds something that is no run, or a stage in it is a
            link that leads elsewhere.
    """
    folder = Path(config.output)
    path = folder / "config.yaml"
    store.stage_folders(folder)
    if path.exists():
        try:
            text = read_text(path)
            more = configuration.added(text, config)
            known = config.model_copy(update={"tasks": config.tasks[: len(config.tasks) - more]})
            difference = configuration.difference(text, configuration.dump(known))
        except (OSError, ValueError) as error:
            raise store.StoreError(f"{path}: damaged: {error}") from error
        if difference:
            raise store.StoreError(
                f"{folder} holds a run of another configuration: {difference}; choose another `output`"
            )
        if more and configuration.cumulative(config):
            raise store.StoreError(
                f"{folder}: {config.method['name']} trains on the rows of all tasks at once and does not go on; "
                "choose another `output`"
            )
    elif folder.exists() and not (folder.is_dir() and all(ours(p) for p in folder.iterdir())):
        raise store.StoreError(f"{folder} is not empty and holds no run; choose another `output`")


def choose_trainable(shop: Workshop, number: int) -> None:
    """With heads per task, only the current one trains, and other new layers only with the first task."""
    heads, everything = heads_of(shop.model), shop.method.cumulative
    if heads is None:
        return
    factors = {id(p) for site in shop.method.sites.values() for p in site.parameters}
    for parameter in adapter_parameters(shop.model).values():
        parameter.requires_grad_(id(parameter) in factors or number == 0 or everything)
    heads.train_only(range(number + 1) if everything else [number])
