"""``retain plan``: bytes, steps and seconds of a run before anything is loaded or trained."""

from __future__ import annotations

import inspect
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retain.commands.costs import Cost, Machine, cost, machine
from retain.commands.outlines import Outline, outline
from retain.commands.table import MISSING
from retain.commands.trainings import Task, Training, mean_tokens, tasks_of, tokenizer_of, trainings_of
from retain.config import RunConfig, make_method
from retain.data import MAX_LENGTH, check_classes
from retain.fisher.forms import FORMS
from retain.fisher.sampling import LOOKS
from retain.lora import sites
from retain.method import Method
from retain.methods.ewc_lora import EWCLoRA
from retain.methods.replay import Replay
from retain.regressions import check_shared
from retain.units import human, human_time

# What is shown of each form, beside what is configured: these options on top of its defaults.
SHOWN: dict[str, list[dict[str, Any]]] = {
    "diagonal": [{"storage": "float32"}, {"storage": "bfloat16"}, {"storage": "uint8"}],
    "kronecker": [{}, {"rank": None}],
}
ROWS, CLASSES = 1000, 2  # of a task whose data are not at hand
MUCH = 0.1  # of a training step


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it begins.

    Attributes:
        costs: of forms, by name and options.
        configured: which of them the method keeps; None if it keeps none.
        looked: rows that a boundary runs forward, at most, to see how their scores are spread.
        examples: that it then runs forward, and backward for each of so many ``labels``.
        growth: bytes that every task adds, at most.
        guard: its name and training rows, if there is one.
    """

    config: RunConfig
    method: Method
    found: Outline
    here: Machine
    tasks: list[Training]
    costs: dict[str, Cost]
    configured: str | None
    looked: int
    examples: int
    labels: int
    growth: int
    guard: Task | None = None

    @property
    def batch(self) -> int:
        """Rows of a training step."""
        return max(task.batch for task in self.tasks)

    @property
    def trained(self) -> float:
        """Bytes of what trains, its gradients and AdamW's two moments."""
        return 4 * (self.found.bytes_of("adapter") + self.found.bytes_of("heads"))

    def step(self, batch: float) -> float:
        """Seconds of a training step, penalty aside: forward, and backward without gradients of frozen weights."""
        return self.here.seconds(2 * batch * self.found.flops, self.found.dtype)

    def training(self, number: int) -> float | None:
        """Seconds of the training of a task, as far as its steps are known."""
        task = self.tasks[number]
        rows = task.batch + (self.method.extra_rows if number else 0)
        longer = task.tokens / self.found.tokens if task.tokens else 1
        return None if task.steps is None else task.steps * self.step(rows * longer)

    def boundary(self, cost: Cost) -> float:
        """Seconds of a boundary."""
        passes = self.looked + self.examples * (1 + self.labels)
        products = self.here.seconds(self.examples * self.labels * cost.measuring)
        return self.here.seconds(passes * self.found.flops, self.found.dtype) + products + cost.making


def plan(config: RunConfig, console: Console | None = None) -> Plan:
    """Print what a run of ``config`` would take; no weights are loaded, and of data only what lies here is counted.

    Raises:
        ValueError: what a run would stop at: its model, adapter, method, or data.
    """
    console = console or Console()
    with console.status("counting"):
        made = make(config)
    for part in (_print_model, _print_forms, _print_tasks):
        part(made, console)
    for warning in warnings(made):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    return made


def make(config: RunConfig) -> Plan:
    """The plan of ``config``; errors as for ``plan``."""
    tokenizer = tokenizer_of(config)
    tasks = [task for entry in config.tasks for task in tasks_of(config, entry, tokenizer)]
    guard = None if config.guard is None else next(tasks_of(config, config.guard, tokenizer))
    classes = [task.classes or [f"{task.name}: {i}" for i in range(CLASSES)] for task in tasks]
    if config.scenario == "domain" and config.tasks[0].is_regression:
        check_shared({task.name: task.classes for task in tasks if task.classes and task.rows is not None})
    elif config.scenario == "domain":
        check_classes(" and ".join(task.name for task in tasks), sorted(set().union(*classes)))
    outputs = len(set().union(*classes)) if config.scenario == "domain" else sum(map(len, classes))
    entries = [*config.tasks, *([config.guard] if config.guard else [])]
    length = max(entry.max_length or MAX_LENGTH for entry in entries)
    found = outline(config.model, config.lora, outputs, length, mean_tokens(tasks))
    method, here = make_method(config, found.model), machine([found.dtype, torch.float32])
    own = method.choice if isinstance(method, EWCLoRA) else None
    choice = own or EWCLoRA(found.model).choice
    growth = method.growth
    if isinstance(method, Replay):
        each = ((t.rows or ROWS, found.row + 8, len(t.classes or range(CLASSES)), outputs) for t in tasks)
        growth = max(method.growth_for(*task) for task in each)
    shown = [(form, options) for form in FORMS for options in SHOWN.get(form, [{}])] + [(choice.name, choice.options)]
    costs = {_label(*form): cost(form[0], _complete(*form), found, here.device) for form in shown}
    rows = max(task.rows or ROWS for task in [*tasks, *([guard] if guard else [])])
    samples = choice.sweep.get("samples")
    examples = min(rows, samples) if isinstance(samples, int) else rows
    return Plan(
        config,
        method,
        found,
        here,
        trainings_of(config, tasks, method.cumulative),
        costs,
        configured=_label(choice.name, choice.options) if own else None,
        looked=min(rows, LOOKS * examples) if examples < rows else 0,
        examples=examples,
        labels=outputs if choice.sweep.get("labels") == "exact" else 1,
        growth=growth,
        guard=guard,
    )


def _complete(form: str, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(FORMS[form].collector).parameters.values()
    return {p.name: options.get(p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _label(form: str, options: Mapping[str, Any]) -> str:
    """A form as a configuration has it: ``kronecker, rank: null``."""
    written = {k: "null" if v is None else v for k, v in _complete(form, options).items() if v != "example"}
    return ", ".join([form, *(f"{key}: {value}" for key, value in written.items())])


def warnings(made: Plan) -> Iterator[str]:
    """What may surprise."""
    config, found, here = made.config, made.found, made.here
    base, mine = found.base_bytes, made.costs[made.configured] if made.configured else Cost()
    if mine.kept > base:
        least = min(made.costs, key=lambda label: made.costs[label].kept)
        yield (
            f"{made.configured} keeps {human(mine.kept)}, more than the base model's {human(base)}; {least} keeps "
            f"{human(made.costs[least].kept)}"
        )
    need = base + made.trained + mine.boundary
    if here.memory is not None and need > here.memory:
        what = "training" if not mine.boundary else "a boundary"
        where = here.name if here.device.type == "cuda" else "this machine"
        yield (
            f"{what} holds {human(need)} without activations (base model {human(base)}, adapter in training "
            f"{human(made.trained)}, Fisher {human(mine.boundary)}), and {where} has {human(here.memory)}"
        )
    if (share := mine.penalty / made.step(made.batch)) > MUCH:
        yield f"the penalty of {made.configured} adds {share:.0%} to every training step of {made.batch} rows"
    if made.configured and made.configured.startswith("factored"):
        most = made.costs[_label("diagonal", {"storage": "uint8"})].kept
        yield f"{made.configured} keeps a byte a weight of maps that its factors do not fit, {human(most)} at most"
    if made.method.keeps_rows:
        yield f"{config.method['name']} keeps training rows of every task in the run's state: old data"
    if extra := made.method.extra_rows:
        yield f"from the second task on a step of {made.batch} rows takes as long as one of {made.batch + extra:g}"
    if made.growth:
        cap = "; method.rank caps the folded past" if config.method.get("mode") == "merge" else ""
        yield f"{config.method['name']} keeps up to {human(made.growth)} more with every task{cap}"
    widest = max(min(out, in_) for out, in_, *_ in found.shapes)
    if (rank := config.method.get("rank")) is not None and rank >= widest:
        yield f"method.rank {rank} cuts nothing: the adapted maps have ranks of at most {widest}"
    if found.longest is not None:
        for entry in (entry for entry in config.tasks if (entry.max_length or 0) > found.longest):
            yield f"task {entry.name!r}: max_length {entry.max_length} is more than the model's {found.longest}"


def _print_model(made: Plan, console: Console) -> None:
    config, found = made.config, made.found
    base, kind = found.bytes_of("base"), type(found.model.get_base_model()).__name__
    few = config.model.quantization
    console.print(
        f"[bold]{escape(os.path.basename(config.model.path))}[/] as {kind}: {_count(base / found.dtype.itemsize)} "
        f"weights, {human(found.base_bytes)} in {str(found.dtype)[6:]}{f' and {few}' if few else ''}\n"
        f"adapter {human(found.bytes_of('adapter'))}, heads {human(found.bytes_of('heads'))}; "
        f"with gradients and AdamW's moments {human(made.trained)}",
        highlight=False,
    )
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for name, site in sites(found.model).items():
        names[f"{len(site.B)} x {site.A.shape[1]}"][name.rpartition(".")[2]] += 1
    table = Table("maps", "out x in", "named")
    for shape, group in names.items():
        table.add_row(str(group.total()), shape, ", ".join(sorted(group)))
    console.print(table)


def _print_forms(made: Plan, console: Console) -> None:
    console.print("[italic]what each form of their Fisher information takes (method.fisher)[/]")
    table = Table("form")
    for title in ("kept", "boundary", "takes", "step"):
        table.add_column(title, justify="right", no_wrap=True)
    for label, form in made.costs.items():
        share = form.penalty / made.step(made.batch)
        cells = human(form.kept), human(form.boundary), human_time(made.boundary(form))
        step = f"+{share:.1%}" if share >= 0.0005 else "<0.1%"
        mark, style = ("▸ ", "bold") if label == made.configured else ("  ", "")
        table.add_row(f"{mark}{label}", *cells, step, style=style)
    console.print(table)
    name = made.config.method["name"]
    mine = f"▸ is what {name} keeps" if made.configured else f"{name} keeps none of them"
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {str(kind)[6:]}" for kind, rate in made.here.rates.items())
    console.print(
        "[dim]kept: from task to task, however many. boundary: at the end of each, the Fisher so far, the sums and "
        f"the new one. step: what the penalty adds to one. {mine}.\n"
        f"Times are estimates: matrix products alone, at the rates of {escape(made.here.name)} just now ({rates}), for "
        f"{made.examples} examples of {made.found.example} at a boundary and {made.batch} in a step. What is no "
        "product comes on top.[/]",
        highlight=False,
    )


def _print_tasks(made: Plan, console: Console) -> None:
    table = Table("task")
    for title in ("rows", "tokens a row", "classes", "steps", "training time"):
        table.add_column(title, justify="right")
    for number, task in enumerate(made.tasks):
        seconds = made.training(number)
        takes = MISSING if seconds is None else human_time(seconds)
        tokens = round(task.tokens) if task.tokens else None
        table.add_row(task.name, *(str(x or MISSING) for x in (task.rows, tokens, task.classes, task.steps)), takes)
    if made.guard:
        tokens = round(made.guard.tokens) if made.guard.tokens else None
        table.add_row(made.guard.name, str(made.guard.rows or MISSING), str(tokens or MISSING), *[MISSING] * 3)
    console.print(table)
    if made.guard and made.method.guards:
        console.print(
            f"[dim]{made.guard.name}: before the first task it takes as much as a boundary[/]", highlight=False
        )
    if made.found.tokens and any(task.tokens is None for task in made.tasks):
        console.print(
            f"[dim]where the tokens of a row are not known, because data or tokenizer are not here, "
            f"{made.found.example} are assumed[/]",
            highlight=False,
        )
    if any(task.rows is None for task in made.tasks):
        console.print(f"[dim]{MISSING} is known once the data are downloaded[/]", highlight=False)


def _count(number: float) -> str:
    """A number of weights: 7.5 B."""
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
