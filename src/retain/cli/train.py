"""Commands that train, or say what training would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from retain.cli.arguments import ConfigFile, Overrides
from retain.cli.stoppable import stoppable


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of five: two tasks, two methods.")] = False,
    output: Annotated[Path, typer.Option(help="Where the runs go; run again to continue.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of data subsets, initialisation and training.")] = 0,
) -> None:
    """Forget, and not forget: a real model on a stream of real text tasks, with and without protection.

    MiniLM learns to sort newsgroup posts, newswire, film reviews and debates,
    one after the other, with one LoRA adapter: by plain sequential fine-tuning,
    with EWC-LoRA, and on all tasks at once. The data are fetched once, into
    your cache folder.

    Example: [cyan]retain demo --quick[/]
    """
    from retain.commands.demo import demo as command

    with stoppable() as stop:
        passed = command(output, quick=quick, seed=seed, console=Console(), stop=stop)
    if not passed:
        raise typer.Exit(1)


def init(
    config: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The file to write.", show_default=False)],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Files (.jsonl, .csv, .tsv, .parquet), folders of images, or hub names.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="A hub name or a folder.", show_default=False)],
    method: Annotated[str, typer.Option(help="As [cyan]retain methods[/] lists them.")] = "ewc-lora",
) -> None:
    """Write a configuration to begin with: a task for each file, columns and kind of model guessed, and said.

    Example: [cyan]retain init bot.yaml --model Qwen/Qwen3-0.6B faq.jsonl sql.jsonl[/]
    """
    from retain.commands.init import init as command

    command(config, sources, model, method, Console())


def add_task(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|FILE.yaml", help="A run's folder, or its file.", show_default=False)
    ],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="As of [cyan]retain init[/]: a task for each.", show_default=False),
    ],
    name: Annotated[str | None, typer.Option(help="Of the task, if it is one.", show_default=False)] = None,
) -> None:
    """Add next week's data behind the tasks of a run or a file; the run goes on with them.

    Nothing that is finished is done again: it ends with the adapter that it
    would have ended with, had the tasks been there from the start. Columns are
    guessed, and said.

    Example: [cyan]retain add-task runs/bot new.jsonl[/], then [cyan]retain run runs/bot/config.yaml[/]
    """
    from retain.commands.add_task import add_task as command

    command(target, sources, name, Console())


def plan(config: ConfigFile, overrides: Overrides = None) -> None:
    """Say what a run would take before anything is loaded: bytes, steps, seconds, for every form of the Fisher.

    Needs the model's config.json and tokenizer, and counts the rows of data
    that lie here, and their tokens. Seconds come from the rate of matrix products, measured in passing.

    Example: [cyan]retain plan bot.yaml lora.r=64 method.fisher.form=kronecker[/]
    """
    from retain.commands.plan import plan as command
    from retain.config import load

    command(load(config, overrides or ()), Console())


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after N more tasks; run again to continue.", metavar="N", min=1)
    ] = None,
    from_state: Annotated[
        Path | None, typer.Option(help="A state that another run has left: as [cyan]state:[/] in the file.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file alone; nothing is loaded.")] = False,
) -> None:
    """Train on the tasks of a YAML file, one after the other; run again after a crash: it continues.

    Ctrl-C, or SIGTERM, lets the step at hand finish, and saves it (exit code
    130, or 143); a second one ends at once.

    Example: [cyan]retain run bot.yaml method.strength=30 training.learning_rate=1e-4[/]
    """
    from retain.commands.table import print_scores
    from retain.config import load
    from retain.run import run as command

    console = Console(quiet=quiet)
    begins = [] if from_state is None else [f"state={json.dumps(str(from_state))}"]
    settings = load(config, [*(overrides or ()), *begins])
    output = Path(settings.output)
    if dry_run:
        named = ", ".join(task.name for task in settings.tasks)
        method, model = settings.method["name"], settings.model.path
        console.print(
            f"{config} is sound: {method} on {model}, tasks {named}; data and model were not opened", soft_wrap=True
        )
        return
    with stoppable() as stop:
        results = command(settings, console, stop_after, stop)
    if not results:
        console.print(f"tasks learned: {stop_after}; run again without --stop-after, {output} goes on", soft_wrap=True)
        return
    print_scores(console, results)
    console.print(f"adapter: {output / 'adapter'}   results: {output / 'results.json'}", soft_wrap=True)
