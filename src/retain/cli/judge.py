"""Commands that say how good runs and methods are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from retain.cli.arguments import ConfigFile, Jobs, Overrides, Seeds
from retain.cli.stoppable import stoppable


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
    seeds: Seeds = 3,
    budget: Annotated[
        str, typer.Option(help="[cyan]full[/]: all rows, 5 values of a knob; [cyan]small[/]: 40 rows a task, 3 values.")
    ] = "full",
    tries: Annotated[
        int | None, typer.Option(help="Values of every knob instead; 1 tunes nothing.", min=1, show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Whom differences are taken to; sequential if it is there.", show_default=False)
    ] = None,
    jobs: Jobs = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder; the file's `output` and -compare if not given.", show_default=False)
    ] = None,
) -> None:
    """Run methods side by side on the stream of a YAML file: one table, three figures; run again, it continues.

    Every run is a [cyan]retain run[/] in OUTPUT/METHOD/seed-N. Before them,
    each method's knob (strength, energy, ...) is set on validation rows, by the
    same number of tries for all; no test row is used for that. Differences to
    one method have 95 % intervals, paired by seed and test row.

    Left as it is, it takes 84 whole runs: 9 of the 13 methods have a knob, of
    which 5 values are tried, and all 13 run under 3 seeds. Begin with the
    first example, which takes 9 short ones.

    Examples: [cyan]retain compare bot.yaml --methods sequential ewc-lora --budget small[/]
    [cyan]retain compare bot.yaml --budget small training.num_train_epochs=1[/]
    """
    from retain.commands.compare import compare as command
    from retain.config import load

    options: dict[str, Any] = {"seeds": seeds, "budget": budget, "tries": tries, "against": against, "jobs": jobs}
    with stoppable():
        complete = command(
            load(config, overrides or ()), methods or ["all"], **options, output=output, console=Console()
        )
    if not complete:
        raise typer.Exit(1)


def sweep(
    config: ConfigFile,
    overrides: Overrides = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Names, and variants such as [cyan]ewc-lora:strength=auto[/], a point; the file's if not given.",
            show_default=False,
        ),
    ] = None,
    knob: Annotated[
        str | None, typer.Option(help="The keyword to sweep over; each method's own if not given.", show_default=False)
    ] = None,
    limits: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", metavar="LOW HIGH", help="Of its values; the method's own if not given."),
    ] = None,
    points: Annotated[int, typer.Option(help="Values, evenly on a logarithmic scale.", min=1)] = 9,
    search: Annotated[
        int | None,
        typer.Option(help="Values that optuna proposes instead, one after the other.", min=3, show_default=False),
    ] = None,
    seeds: Seeds = 3,
    pick: Annotated[
        str | None,
        typer.Option(
            help="[cyan]budget=0.05[/] (forgetting at most that) or [cyan]knee[/]: export a point's adapter to "
            "OUTPUT/picked.",
            show_default=False,
        ),
    ] = None,
    jobs: Jobs = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder; the file's `output` and -sweep if not given.", show_default=False)
    ] = None,
) -> None:
    """Methods over their knobs: what each value learns against what it forgets; run again, it continues.

    Every point is a [cyan]retain run[/] under each seed in OUTPUT/METHOD/KNOB=VALUE.
    Where the knob has no part in the first task, that is trained once for all
    values. Several processes may work on one folder. A method without a knob,
    or a variant that gives its value, is a single point.

    Examples: [cyan]retain sweep bot.yaml --methods ewc-lora lwf --points 5[/]
    [cyan]retain sweep bot.yaml --pick budget=0.05[/]
    """
    from retain.commands.sweep import sweep as command
    from retain.commands.sweep.pick import Rule
    from retain.config import load

    rule = None if pick is None else Rule.parse(pick)
    options: dict[str, Any] = {
        "knob": knob,
        "limits": limits,
        "points": points,
        "search": search,
        "seeds": seeds,
        "jobs": jobs,
    }
    with stoppable():
        complete = command(
            load(config, overrides or ()), methods or [], **options, rule=rule, output=output, console=Console()
        )
    if not complete:
        raise typer.Exit(1)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.", show_default=False)
    ],
    to: Annotated[
        Path | None, typer.Option(help="The file to write. [dim]default: RUN/report.html; of several, report.html[/]")
    ] = None,
    examples: Annotated[
        int, typer.Option(help="Forgotten test rows of a task to show; 0 keeps everybody's data out.", min=0)
    ] = 20,
) -> None:
    """One self-contained page of what a run came to: verdict, scores, what was forgotten, costs, how to load it.

    Of several runs, the first is compared with the others, and `joint` or
    `per-task` among them appear as bounds.

    Example: [cyan]retain report runs/bot runs/bot-sequential --to bot.html[/]
    """
    from retain.commands.report import report as command

    command(folders, to, examples, Console())


def check(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    max_forgetting: Annotated[
        str | None,
        typer.Option(
            help="Of every task: a share of its score ([cyan]2%[/]), points of it ([cyan]0.02[/]; of a text without "
            "metrics, nats a token), or a rise of its loss in nats an example ([cyan]0.05nats[/]). [dim]default: 2%; "
            "without metrics 0.05[/]",
            show_default=False,
        ),
    ] = None,
    max_guard_rise: Annotated[
        float | None,
        typer.Option(
            help="Of what the untouched model could do (`guard`): nats a token. [dim]default: 0.05, if there is one[/]",
            min=0,
            show_default=False,
        ),
    ] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks of the lm-evaluation-harness ([cyan]retain[eval][/]), as guards: what the model scored before "
            "all training, and what it scores now. Bound by --max-forgetting, or 0.02 points.",
            show_default=False,
        ),
    ] = None,
    lm_eval_include: Annotated[
        Path | None, typer.Option(help="A folder with tasks of your own.", show_default=False)
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(help="Documents of each of them; all if not given.", min=1, show_default=False)
    ] = None,
) -> None:
    """Say of every task of a run whether it was forgotten: exit code 0 if not, 2 if it was, 1 for an error.

    A task is compared with itself right after it was learned, a guard with the untouched model. Too much is lost only
    where the whole 95 % interval over test rows is beyond the bound; where it is on both sides, they cannot tell, and
    the exit code is 0.

    Example: [cyan]retain check runs/bot --max-forgetting 2%[/]
    """
    from retain.commands.check import Bound
    from retain.commands.check import check as command

    bound = None if max_forgetting is None else Bound.parse(max_forgetting)
    fine = command(folder, bound, Console(), guard=max_guard_rise)
    if lm_eval:
        from retain.commands.harness import check as harness

        fine &= harness(folder, lm_eval, bound, Console(), include=lm_eval_include, limit=lm_eval_limit)
    if not fine:
        raise typer.Exit(2)
