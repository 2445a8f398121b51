"""The sequence: score the untouched model, then begin, fit, end, score every task and save, task after task.

A stage whose ``done`` file exists is never done again; a run that was stopped anywhere continues behind its last
finished stage and ends with the same results.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers import TrainingArguments

from retain import config as configuration
from retain import store
from retain.config import RunConfig
from retain.data import Stream, load_stream
from retain.evaluate import Score, evaluate, evaluate_unsaid
from retain.heads import heads_of
from retain.hf import fit, load_model, load_processor
from retain.lora import adapter_parameters
from retain.method import Method
from retain.progress import StepBar, WorkBar
from retain.results import calibrate, doubts, headline, record, results, row_losses
from retain.task import Task, joined

MODEL, METHOD, LOSSES = "state/model.safetensors", "state/method.safetensors", "state/losses.safetensors"


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
        """Row passes of the training."""
        if self.task is None or self.arguments is None:
            return 0.0
        rows = self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps
        steps = max(self.arguments.max_steps, 0)
        return 3.0 * (steps * rows or self.arguments.num_train_epochs * len(self.task.train))


@dataclass(frozen=True)
class Workshop:
    """All that a run works with: the stream, the adapted model, the method beside it."""

    config: RunConfig
    stream: Stream
    model: Any
    method: Method

    def stages(self) -> list[Stage]:
        """The untouched model, then every training: one a task, or one of all tasks for a cumulative method.

        Raises:
            ValueError: a training argument that does not hold.
        """
        folder, tasks = Path(self.config.output), self.stream.tasks
        trainings = list(enumerate(tasks))
        if self.method.cumulative:
            trainings = [(len(tasks) - 1, joined(tasks))]
        stages = [Stage(-1, "the untouched model", folder / "base")]
        for i, task in trainings:
            own = folder / "tasks" / f"{i:02d}-{task.name}"
            arguments = configuration.training_arguments(self.config, i, task.name, own / "trainer")
            stages.append(Stage(i, task.name, own, task, arguments))
        return stages

    def names(self) -> list[str]:
        """The tasks by name."""
        return [task.name for task in self.stream.tasks]

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter in place as a stock LoRA."""
        labels, first = {}, 0
        for task, names in zip(self.names(), self.stream.labels, strict=True):
            labels[task] = {"first_output": first, "labels": names}
            first += 0 if self.config.scenario == "domain" else len(names)
        store.write_adapter(folder, self.model, labels)


def prepare(config: RunConfig) -> Workshop:
    """Load data, model and method of ``config``; nothing is written."""
    path, kind, domain = config.model.path, config.model.kind, config.scenario == "domain"
    processor = load_processor(path, kind)
    stream = load_stream(config, processor)
    model = load_model(
        path,
        kind,
        [len(labels) for labels in (stream.labels[:1] if domain else stream.labels)],
        config.lora,
        own_heads=not domain,
        dtype=config.model.dtype,
        seed=config.seed,
    )
    if kind == "text":
        model.config.pad_token_id = processor.pad_token_id
    if torch.cuda.is_available():
        model.to("cuda")
    return Workshop(config, stream, model, configuration.make_method(config, model))


def run(config: RunConfig, console: Console | None = None) -> dict[str, Any]:
    """Run ``config`` from where it stands; returns what its ``results.json`` holds.

    Raises:
        StoreError: the output folder belongs to another configuration, or holds a damaged file.
    """
    console, output = console or Console(), Path(config.output)
    check_folder(config)
    with console.status("loading the model and the data"):
        shop = prepare(config)
    stages = shop.stages()
    store.write(output / "config.yaml", configuration.dump(config))
    store.sweep(output)
    finished = list(takewhile(lambda stage: store.is_closed(stage.folder), stages))
    left = stages[len(finished) :]
    _read(finished)
    if left and finished and finished[-1].task is not None:
        restore(shop, finished[-1].folder)
    if left and shop.method.keeps_rows:
        console.print(f"[yellow]{config.method['name']} keeps training rows of every task in the run's state[/]")
    elif left and shop.method.growth:
        console.print(f"[yellow]{config.method['name']} keeps more with every task[/] (docs/methods.md says how much)")
    rows = sum(len(task.test) for task in shop.stream.tasks)
    with WorkBar(console, sum(stage.work for stage in left) + rows * len(left)) as bar:
        for i, stage in enumerate(left, len(finished)):
            _work(shop, stage, stages[max(i - 1, 0)].folder, bar)
            for previous in stages[:i]:
                shutil.rmtree(previous.folder / "state", ignore_errors=True)
            records = _read(stages[: i + 1])
            console.print(headline(stage.name, records, config.scenario))
            for warning in records[-1]["warnings"]:
                console.print(f"  [yellow]{escape(warning)}[/]", highlight=False)
    store.verify(stages[-1].folder, "adapter")
    store.copy_folder(stages[-1].folder / "adapter", output / "adapter")
    summary = results(config, shop.stream, _read(stages))
    store.write_json(output / "results.json", summary)
    return summary


def check_folder(config: RunConfig) -> None:
    """See that the output folder is free for ``config``, or already its own.

    Raises:
        StoreError: the folder belongs to another configuration, or holds something that is no run.
    """
    folder = Path(config.output)
    path = folder / "config.yaml"
    if path.exists():
        try:
            difference = configuration.difference(path.read_text(encoding="utf-8"), configuration.dump(config))
        except ValueError as error:
            raise store.StoreError(f"{path}: damaged: {error}") from error
        if difference:
            raise store.StoreError(
                f"{folder} holds a run of another configuration: {difference}; choose another `output`"
            )
    elif folder.exists() and not (folder.is_dir() and all(p.suffix == store.PARTIAL for p in folder.iterdir())):
        raise store.StoreError(f"{folder} is not empty and holds no run; choose another `output`")


def restore(shop: Workshop, folder: Path) -> None:
    """Put model and method back to the end of the finished stage in ``folder``.

    Raises:
        StoreError: a file of the state is missing, damaged, or of another model.
    """
    store.verify(folder, MODEL, METHOD, LOSSES)
    tensors, parameters = store.read_tensors(folder / MODEL), adapter_parameters(shop.model)
    if tensors.keys() != parameters.keys():
        raise store.StoreError(f"{folder / MODEL}: its parameters are not those of this model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    shop.method.load_state_dict(store.read_tensors(folder / METHOD))


def choose_trainable(shop: Workshop, number: int) -> None:
    """With heads per task, only the current one trains, and other new layers only with the first task."""
    heads, everything = heads_of(shop.model), shop.method.cumulative
    if heads is None:
        return
    factors = {id(p) for site in shop.method.sites.values() for p in site.parameters}
    for parameter in adapter_parameters(shop.model).values():
        parameter.requires_grad_(id(parameter) in factors or number == 0 or everything)
    heads.train_only(range(number + 1) if everything else [number])


def _work(shop: Workshop, stage: Stage, last: Path, bar: WorkBar) -> None:
    """One stage from begin to done; ``last`` is the folder of the stage before."""
    clock, warned = _Clock(), list[str]()
    found: dict[str, Any] = {"boundary": {}, "warnings": warned}
    foreseen, remembered = dict[str, float](), dict[str, float]()
    if stage.task is not None:
        found["steps"] = _train(shop, stage.task, stage, bar, warned)
        clock.lap("train")
        bar.show(f"{stage.name}: measuring what it needs")
        foreseen, remembered = shop.method.predicted_rise(), shop.method.remembered
        with _heard(warned):
            shop.method.end_task(stage.task)
        found["boundary"] = shop.method.boundary
        clock.lap("boundary")
    scores = _score(shop, stage, bar)
    if foreseen:
        found["calibration"] = calibrate(foreseen, remembered, store.read_tensors(last / LOSSES), row_losses(scores))
        loss = store.read_json(last / "scores.json")["tasks"][stage.name]["loss"]
        warned += doubts(found["calibration"], shop.method.strength, stage.name, loss)
    clock.lap("evaluate")
    _save(shop, stage, scores, found | {"seconds": clock.seconds})


def _train(shop: Workshop, task: Task, stage: Stage, bar: WorkBar, warned: list[str]) -> int:
    choose_trainable(shop, stage.number)
    bar.show(f"{stage.name}: training")
    with _heard(warned):
        shop.method.begin_task(task)
    rate, bars = shop.config.heads.learning_rate, [StepBar(bar, stage.work)]
    return fit(shop.model, task, shop.method, stage.arguments, head_learning_rate=rate, callbacks=bars)


def _score(shop: Workshop, stage: Stage, bar: WorkBar) -> dict[str, Score]:
    method, scores = shop.method, {}
    how: Any = {"seen": range(stage.number + 1), "batch_size": shop.config.evaluation.batch_size}
    for task in shop.stream.tasks:
        bar.show(f"{stage.name}: scoring {task.name}")
        method.activate(task.name)
        score = evaluate(shop.model, task, **how)
        apart = method.separate and method.learned and score.correct is not None
        scores[task.name] = evaluate_unsaid(method, task, score, **how) if apart else score
        bar.advance(len(task.test))
    method.activate(None)
    return scores


@contextmanager
def _heard(warned: list[str]) -> Iterator[None]:
    """What the block warns a user of joins ``warned``, to be shown and kept with the rest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    warned += [str(warning.message) for warning in caught]


def _save(shop: Workshop, stage: Stage, scores: dict[str, Score], found: dict[str, Any]) -> None:
    found = record(stage.number, scores) | found
    if stage.task is not None:
        shop.write_adapter(stage.folder / "adapter")
        store.write_tensors(stage.folder / MODEL, adapter_parameters(shop.model))
        store.write_tensors(stage.folder / METHOD, state := shop.method.state_dict())
        store.write_tensors(stage.folder / LOSSES, row_losses(scores))
        sizes = {"adapter": store.size(stage.folder / "adapter"), "state": store.size(stage.folder / METHOD)}
        found["bytes"] = sizes | {"kinds": store.by_kind(state)}
        shutil.rmtree(stage.folder / "trainer", ignore_errors=True)
    store.write_json(stage.folder / "scores.json", found)
    store.close(stage.folder)


def _read(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """What finished stages found.

    Raises:
        StoreError: a record that is missing or damaged.
    """
    for stage in stages:
        store.verify(stage.folder, "scores.json")
    return [store.read_json(stage.folder / "scores.json") for stage in stages]


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 3), now
