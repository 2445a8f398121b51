"""The command line: ``retain --help``."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Fine-tune one LoRA adapter on task after task without losing the earlier ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

share = typer.Typer(
    help="Keep many adapters of one model on shared bases: stock LoRAs go in and come out, no data needed.",
    no_args_is_help=True,
)
app.add_typer(share, name="share")

Collection = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Of a collection, or of a run of the method share.", show_default=False),
]
Components = Annotated[int, typer.Option(help="The most columns of a basis.", min=1)]

ConfigFile = Annotated[Path, typer.Argument(help="A YAML file: see docs/cli.md.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="[cyan]section.key=value[/], values as in YAML.", show_default=False)
]


@app.command()
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
    """
    from retain.commands.demo import demo as command

    if not command(output, quick=quick, seed=seed, console=Console()):
        raise typer.Exit(1)


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None) -> None:
    """Say what a run would take before anything is loaded: bytes, steps, seconds, for every form of the Fisher.

    Needs the model's config.json alone, and counts the rows of data that lie
    here. Seconds come from the rate of matrix products, measured in passing.

    Example: [cyan]retain plan bot.yaml lora.r=64 method.fisher.form=kronecker[/]
    """
    from retain.commands.plan import plan as command
    from retain.config import load

    command(load(config, overrides or ()), Console())


@app.command()
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train on the tasks of a YAML file, one after the other; run again after a crash: it continues.

    Example: [cyan]retain run bot.yaml method.strength=30 training.learning_rate=1e-4[/]
    """
    from retain.commands.table import print_scores
    from retain.config import load
    from retain.run import run as command

    console = Console()
    settings = load(config, overrides or ())
    results = command(settings, console)
    print_scores(console, results)
    output = Path(settings.output)
    console.print(f"adapter: {output / 'adapter'}   results: {output / 'results.json'}", soft_wrap=True)


class Listing(typer.core.TyperCommand):
    """Takes ``--methods a b`` for ``--methods a --methods b``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, listed(args, "--methods"))


def listed(arguments: Sequence[str], option: str) -> list[str]:
    """``arguments`` with ``option`` before each value that follows it, up to another option, an override or a file."""
    found, taking = list[str](), False
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments) and not arguments[i + 1].startswith("-"):
            taking = True
            continue
        override = re.match(r"[^:]*=", argument)
        taking = taking and not argument.startswith("-") and not argument.endswith((".yaml", ".yml")) and not override
        found += [option, argument] if taking else [argument]
    return found


@app.command(cls=Listing)
def compare(
    config: ConfigFile,
    overrides: Overrides = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Names, and variants such as [cyan]ewc-lora:mode=merge,rank=8[/]; [cyan]all[/] if not given.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many, from the file's on.", min=1)] = 3,
    budget: Annotated[
        str, typer.Option(help="[cyan]full[/]: all rows, 5 values of a knob; [cyan]small[/]: 40 rows a task, 3 values.")
    ] = "full",
    tries: Annotated[
        int | None, typer.Option(help="Values of every knob instead; 1 tunes nothing.", min=1, show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Whom differences are taken to; sequential if it is there.", show_default=False)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at a time; as many as cores and memory allow if not given.", min=1, show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder; the file's `output` and -compare if not given.", show_default=False)
    ] = None,
) -> None:
    """Run methods side by side on the stream of a YAML file: one table, three figures; run again, it continues.

    Every run is a [cyan]retain run[/] in OUTPUT/METHOD/seed-N. Before them,
    each method's knob (strength, energy, ...) is set on validation rows, by the
    same number of tries for all; no test row is used for that. Differences to
    one method have 95 % intervals, paired by seed and test row.

    Examples: [cyan]retain compare bot.yaml --methods sequential ewc-lora --seeds 1[/]
    [cyan]retain compare bot.yaml --budget small training.num_train_epochs=1[/]
    """
    from retain.commands.compare import compare as command
    from retain.config import load

    options: dict[str, Any] = {"seeds": seeds, "budget": budget, "tries": tries, "against": against, "jobs": jobs}
    if not command(load(config, overrides or ()), methods or ["all"], **options, output=output, console=Console()):
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[
        Path | None, typer.Option(help="Where to write; RUN/export if not given.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Whose coefficients, for methods that keep some a task.")] = None,
) -> None:
    """Write a run's adapter as a stock PEFT LoRA and print the largest logit difference that a clean process sees."""
    from retain.commands.export import export as command

    command(folder, to, task, Console())


@share.command("add-adapter")
def add_adapter(
    folder: Collection,
    adapters: Annotated[
        list[Path], typer.Argument(help="Folders of stock PEFT LoRAs, of any rank.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the task; its folder's if not given.", show_default=False)
    ] = None,
    components: Components = 64,
    max_residual: Annotated[
        float | None,
        typer.Option(help="Of a weight change; more columns are kept where it takes them.", min=0, max=1),
    ] = None,
) -> None:
    """Take adapters that were trained elsewhere into a collection, which is made if there is none.

    Bases grow by what they lack of an adapter and are cut to the components;
    all earlier tasks are re-expressed in closed form. The table says what is
    lost of each: unrelated adapters do not fit, and are marked.

    Example: [cyan]retain share add-adapter zoo adapters/* --components 64[/]
    """
    from retain.commands.share import add_adapters

    add_adapters(folder, adapters, name=name, components=components, max_residual=max_residual, console=Console())


@share.command("export")
def export_task(
    folder: Collection,
    task: Annotated[str, typer.Option(help="Which.", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="Where; FOLDER/export/TASK if not given.", show_default=False)] = None,
) -> None:
    """Write one task of a collection as a stock PEFT LoRA."""
    from retain.commands.share import export as command

    command(folder, task, to, Console())


@share.command()
def merge(
    folder: Collection,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Like FOLDER.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The new collection.", show_default=False)],
    components: Components = 64,
) -> None:
    """Make one collection of two, such as those of two sites that have learned apart."""
    from retain.commands.share import merge as command

    command(folder, other, to, components=components, console=Console())


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them: what its keywords mean.", show_default=False)] = None,
) -> None:
    """List the methods and the keywords that their `method:` section takes, with defaults.

    Example: [cyan]retain methods ewc-lora[/]
    """
    from retain.methods import METHODS, method_named

    console = Console()
    if name is not None:
        console.print(inspect.getdoc(method_named(name)), markup=False, highlight=False)
        return
    table = Table("method", "what it does", "keywords")
    for known, method in METHODS.items():
        keywords = [p for p in inspect.signature(method).parameters.values() if p.name != "model"]
        table.add_row(
            known,
            (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " "),
            "\n".join(f"{p.name}: {'null' if p.default is None else p.default}" for p in keywords),
        )
    console.print(table)
    console.print("null: left to the method. retain methods NAME says what its keywords mean.", highlight=False)


def main() -> None:
    """Run the command line; what a user can mend is one line on the error stream, not a traceback."""
    warnings.simplefilter("ignore", FutureWarning)  # of transformers and peft, to whoever builds on them
    try:
        app()
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
