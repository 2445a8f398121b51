"""The sequence: score the untouched model, then begin, fit, end, score every task and save, task after task.

A stage whose ``done`` file exists is never done again; a run that was stopped anywhere continues behind its last
finished stage and ends with the same results.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from retain import config as configuration
from retain import ranks, store, trained
from retain.artefact import Manifest, keep_origin, origin
from retain.calibration import calibrate, doubts, note, shares_lost
from retain.card import card
from retain.checkpoints import last_checkpoint
from retain.config import RunConfig
from retain.continuing import begin_with, manifest_of, restore, write_state
from retain.evaluate import Score
from retain.files import copy_folder, drop_folder, held, sweep, write
from retain.guard import learn_base
from retain.hf import fit
from retain.ledger import LEDGER, Ledger
from retain.progress import StepBar, WorkBar
from retain.provenance import begun, ended, opened
from retain.results import UNMEASURED, headline, record, results, row_losses, row_scores
from retain.scoring import score, score_gauge
from retain.sharding import reshard
from retain.stopping import Stop
from retain.task import Task
from retain.trackers import Trackers
from retain.workshop import LOSSES, METHOD, STATE, Stage, Workshop, check_folder, choose_trainable, prepare


def run(
    config: RunConfig, console: Console | None = None, tasks: int | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Run ``config`` from where it stands; returns what its ``results.json`` holds.

    Of the processes that ``accelerate launch`` starts the first writes and prints; all read what it has written.

    Args:
        config: what to run.
        console: where to print.
        tasks: it stops after so many of them, to go on when it is run again; where that is before the end there is no
            ``results.json`` yet, and nothing is returned. None: all.
        stop: listens to signals that ask for an end; None: nobody does.

    Raises:
        StoreError: the output folder belongs to another configuration or process, holds a damaged file, or cannot be
            written.
        Stopped: as ``stop`` was asked.
    """
    ranks.join()
    console = console or Console()
    console.quiet |= not ranks.first()
    check_folder(config)
    with held(Path(config.output)) if ranks.first() else nullcontext():
        check_folder(config)
        return _run(config, console, tasks, stop or Stop())


def _run(config: RunConfig, console: Console, tasks: int | None, stop: Stop) -> dict[str, Any]:
    output = Path(config.output)
    with console.status("loading the model and the data"):
        shop = prepare(config)
    every = shop.stages()
    stages = every[: None if tasks is None else 1 + tasks]
    ranks.wait()  # until each has seen the folder as it was
    if ranks.first():
        store.write(output / "config.yaml", configuration.dump(config))
        keep_origin(config.state, output)
        sweep(output)
    ranks.wait()
    finished = list(takewhile(lambda stage: store.is_closed(stage.folder), stages))
    left = stages[len(finished) :]
    if left and ranks.first():
        (output / "results.json").unlink(missing_ok=True)  # of fewer tasks, before others were added
    _read(finished)
    if ranks.first():
        _tidy(finished)
    book = opened(output / LEDGER, shop, finished, left) if ranks.first() else None
    if left and finished and shop.leaves_state(finished[-1]):
        restore(shop, finished[-1].folder)
    elif left and config.state is not None:
        begin_with(shop, Path(config.state))
    if left and shop.method.keeps_rows:
        console.print(f"[yellow]{config.method['name']} keeps training rows of every task in the run's state[/]")
    elif left and shop.method.growth:
        console.print(f"[yellow]{config.method['name']} keeps more with every task[/] (docs/methods.md says how much)")
    work = [stage.work + shop.scoring(stage) for stage in left]
    boundaries = [int(stage.task is not None or shop.measures_base) for stage in left]
    trackers = Trackers(configuration.tracker_arguments(config), shop.model, _read(finished))
    with trackers if left else nullcontext(), WorkBar(console, sum(work), sum(boundaries)) as bar:
        beside = _Beside(bar, book, stop, trackers)
        for i, stage in enumerate(left, len(finished)):
            bar.stage(work[i - len(finished)], boundaries[i - len(finished)])
            if book is not None:
                begun(book, shop, stage)
            _work(shop, stage, stages[max(i - 1, 0)].folder, beside)
            if book is not None:
                ended(book, stage)
                _tidy(stages[: i + 1])
            records = _read(stages[: i + 1])
            trackers.tell(records, config.scenario)
            console.print(headline(stage.name, records, config.scenario))
            for warning in records[-1]["warnings"]:
                console.print(f"  [yellow]{escape(warning)}[/]", highlight=False)
    if len(stages) < len(every):
        return {}
    store.verify(stages[-1].folder, "adapter")
    summary = results(config, shop.stream, _read(stages))
    if ranks.first():
        copy_folder(stages[-1].folder / "adapter", output / "adapter")
        readme = output / "adapter" / "README.md"
        write(readme, card(readme.read_text(encoding="utf-8"), summary))
        store.write_json(output / "results.json", summary)
    ranks.wait()
    return summary


@dataclass(frozen=True)
class _Beside:
    """Whom a sitting tells how it goes; only the first of several processes has a book."""

    bar: WorkBar
    book: Ledger | None
    stop: Stop
    trackers: Trackers


def _work(shop: Workshop, stage: Stage, last: Path, beside: _Beside) -> None:
    """One stage from begin to done; ``last`` is the folder of the stage before."""
    bar, book = beside.bar, beside.book
    clock, warned = _Clock(), list[str]()
    found: dict[str, Any] = {"boundary": {}, "warnings": warned}
    foreseen, remembered, strength = dict[str, float](), dict[str, float](), 0.0
    if stage.task is not None:
        found["steps"], found["history"] = _train(shop, stage.task, stage, beside, warned)
        clock.lap("train")
        bar.show(f"{stage.name}: measuring what it needs")
        foreseen, remembered, strength = shop.method.predicted_rise(), shop.method.remembered, shop.method.strength
        with _heard(warned), bar.boundary():
            shop.method.end_task(stage.task)
        found["boundary"] = shop.method.boundary
        clock.lap("boundary")
    elif shop.stream.guard is not None and shop.measures_base:
        bar.show(f"measuring what {stage.name} is good at")
        with _heard(warned), bar.boundary():
            learn_base(shop.method, shop.stream.guard)
        found["boundary"] = shop.method.boundary
        clock.lap("boundary")
    scores, gauge = score(shop, stage, bar), score_gauge(shop, stage, bar)
    measured = scores if gauge is None else gauge
    if foreseen and not remembered.keys() <= measured.keys():
        found["boundary"] |= {"foreseen": foreseen["total"]}  # the rows to measure it on are elsewhere
    elif foreseen:
        compared = calibrate(foreseen, remembered, store.read_tensors(last / LOSSES), row_losses(measured))
        before, now = store.read_json(last / "scores.json"), record(stage.number, measured)["tasks"]
        lost = shares_lost(remembered, row_scores(before.get("gauge", before["tasks"])), row_scores(now))
        compared["total"] |= note(shop.method, stage.name, compared["total"], lost)
        found["calibration"] = compared
        loss = before["tasks"].get(stage.name, UNMEASURED)["loss"]
        warned += doubts(compared, strength, stage.name, loss, shop.method.limit)
    found |= {} if gauge is None else {"gauge": record(stage.number, gauge)["tasks"]}
    clock.lap("evaluate")
    ranks.wait()  # until all have read what belongs to the stage before
    reshard(shop.model)
    if book is not None:
        book.check()
        store.write_tensors(stage.folder / LOSSES, row_losses(measured))
        _save(shop, stage, scores, found | {"seconds": clock.seconds}, last, book.entries[-1]["reads"])
    ranks.wait()


def _train(shop: Workshop, task: Task, stage: Stage, beside: _Beside, warned: list[str]) -> tuple[int, list[Any]]:
    choose_trainable(shop, shop.before + stage.number)
    beside.bar.show(f"{stage.name}: training")
    with _heard(warned):
        shop.method.begin_task(task)
    if (found := trained.take_back(shop, stage)) is None:
        found = _fit(shop, task, stage, beside)
    else:
        beside.bar.advance(stage.work)
    if count := max((entry.get("left_out", 0) for entry in found[1]), default=0):
        warned.append(f"steps that were left out because their gradients were not finite: {count}")
    return found


def _fit(shop: Workshop, task: Task, stage: Stage, beside: _Beside) -> tuple[int, list[Any]]:
    steps, stop = StepBar(beside.bar, stage.name, stage.work), beside.stop
    how: dict[str, Any] = {
        "head_learning_rate": shop.config.heads.learning_rate,
        "packing": shop.config.language.packing,
        "not_finite": shop.config.not_finite or "stop",
        "callbacks": [steps, stop, beside.trackers],
    }
    with stop.stepping(stage.name):
        try:
            taken = fit(shop.model, task, shop.method, stage.arguments, **how)
        except FloatingPointError as error:
            last = last_checkpoint(stage.folder / "trainer") or f"the end of what came before {stage.name!r}"
            raise FloatingPointError(f"{error}. What is saved is good: {last}") from error
        if ranks.first() and not stop.cut:
            trained.keep(shop, stage, taken, steps.history)
    return taken, steps.history


@contextmanager
def _heard(warned: list[str]) -> Iterator[None]:
    """What the block warns a user of joins ``warned``, to be shown and kept with the rest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    warned += [str(warning.message) for warning in caught]


def _save(
    shop: Workshop, stage: Stage, scores: dict[str, Score], found: dict[str, Any], last: Path, reads: list[Any]
) -> None:
    found = record(stage.number, scores, shop.stream.guard) | found
    if "guard" in found:
        found["guard"]["held"] = shop.method.guards
    if stage.task is not None:
        shop.write_adapter(stage.folder / "adapter")
    if shop.leaves_state(stage):
        write_state(shop, stage.folder / STATE, _earlier(shop, stage, last), reads)
        sizes = {"adapter": store.size(stage.folder / "adapter"), "state": store.size(stage.folder / METHOD)}
        found["bytes"] = sizes | {"kinds": store.by_kind(shop.method.state_dict())}
    store.write_json(stage.folder / "scores.json", found)
    store.close(stage.folder, without="trainer")


def _tidy(finished: Sequence[Stage]) -> None:
    """Remove what nobody will need of ``finished`` stages: checkpoints, and all states but the last."""
    for stage in finished:
        drop_folder(stage.folder / "trainer")
    for stage in finished[:-1]:
        drop_folder(stage.folder / "state")


def _earlier(shop: Workshop, stage: Stage, last: Path) -> Manifest | None:
    """The manifest of the state that ``stage`` went on from, if there was one."""
    if (last / STATE).exists() and last != stage.folder:
        return manifest_of(shop, last / STATE)
    return origin(shop.config.state, Path(shop.config.output))


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
