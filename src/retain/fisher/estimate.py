"""The Fisher information, one example's score at a time, averaged over examples.

F = (1/N) sum_n E_y[ g_n g_n' ], g_n = d log p(y | x_n) / d w, y from the model (Kirkpatrick et al. 2017, arXiv
1612.00796). Not the squared gradient of a batch mean, which is about 1/batch of it. An example is a row: for sequences
its log-likelihood is summed over tokens.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from retain import ranks
from retain.fisher.forms import FORMS, Collector, Form
from retain.fisher.gather import (
    Factors,
    OneByOne,
    Sites,
    Unkept,
    WeightAndBias,
    Worth,
    squared_slope,
    trace,
    unmeasured,
)
from retain.fisher.sampling import Tally
from retain.fisher.sweep import Sweep
from retain.mistakes import check_names
from retain.nearest import did_you_mean
from retain.task import Task

Squares = dict[str, Tensor]
OPTIONS = [field.name for field in fields(Sweep)][2:]


@dataclass(frozen=True)
class Importance:
    """What was measured: a form for each site, in nats per example, and how well it is known.

    ``rows`` were looked at, ``examples`` of them ran backward. ``error`` is the relative standard error of the
    quadratic form along the ``directions`` that were given (summed over sites, without their cross terms), or of the
    trace: how far it may be from that of all rows with all their labels. Infinite where too little was found to say.
    """

    forms: dict[str, Form]
    rows: int
    examples: int
    error: float


def measure(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    task: Task,
    *,
    form: str | type[Form],
    directions: Mapping[str, Factors] | None = None,
    **options: Any,
) -> Importance:
    """The Fisher information of each linear module's weight (out, in), mean over examples, in the ``form`` asked for.

    For a LoRA layer this is the Fisher of its whole update dW = s B A, since d/dW = d/d(dW). Costs a forward and a
    backward without parameter gradients for every example, what the form does with it, and a forward for every row
    that is only looked at. Under torch.distributed every process calls it with the same rows and does its share.

    Args:
        model: put into eval mode for the pass, and back.
        modules: what to measure, by name: linear maps from the first argument's last dimension.
        task: its ``train`` rows are read, and its ``loss`` says what p(y | x) is.
        form: a name in ``FORMS``, or one of its classes.
        directions: (B (out, r), A (r, in)) by module name, in units of one another: along B A the ``error`` is
            measured. None: of the trace.
        **options: of the form, and of the pass:
            ``labels``: "mixture" (one random-sign mixture of the classes' scores, unbiased), "sample" (y from the
            model, one a target, unbiased), "exact" (all classes), "data" (the empirical Fisher), "predicted".
            ``temperature``: 1 is the Fisher; above, p(y | x) is that of the outputs divided by it.
            ``samples``: how many examples; None for all rows; "auto" (the default) for as many as it takes until the
            error is below ``error`` (0.1), 64 or more. If a few rows hold most of the squared scores, they are drawn
            in proportion to them, and the others less often.
            ``batch_size``: on which nothing depends but speed and memory.
            ``dtype``: "bfloat16" runs the model under autocast, and long sequences' products; sums stay float32.
            ``seed``: of rows and labels.
            ``progress``: called with the examples done and to do, batch by batch.

    Raises:
        RuntimeError: the Fisher is zero everywhere, so a penalty on it would protect nothing.
    """
    if isinstance(form, str) and form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}{did_you_mean(form, FORMS)}")
    for name in directions or ():
        if name not in modules:
            raise ValueError(
                f"directions: no module {name!r}; known: {', '.join(modules)}{did_you_mean(name, modules)}"
            )
    worth = trace if directions is None else squared_slope(directions)
    kind = FORMS[form] if isinstance(form, str) else form
    forms, tally = _forms(model, modules, task, kind, worth, {"samples": "auto"} | options)
    return Importance(forms, tally.looked, tally.examples, tally.error)


def form_options(form: type[Form]) -> list[str]:
    """The names of a form's own options."""
    parameters = inspect.signature(form.collector).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def weight_fisher(model: nn.Module, modules: Mapping[str, nn.Module], task: Task, **options: Any) -> Squares:
    """Diagonal Fisher (out, in) of each linear module's weight, mean over examples, fp32 (fp64 for fp64 models).

    Options of the pass and errors as for ``measure``, but all rows unless ``samples`` says otherwise.
    """
    check_names(options, OPTIONS, "weight_fisher")
    worth = trace if options.get("samples") == "auto" else unmeasured
    forms, _ = _forms(model, modules, task, FORMS["diagonal"], worth, options)
    return {name: form.state_dict()["fisher"] for name, form in forms.items()}


def parameter_fisher(model: nn.Module, parameters: Mapping[str, nn.Parameter], task: Task, **options: Any) -> Squares:
    """Diagonal Fisher of any parameters by name, each of its parameter's shape; mean over examples.

    Weights and biases of ``nn.Linear`` are measured by hooks as in ``measure``; if anything else is among them, or a
    weight that two modules share, all are measured by one backward an example. Options and errors as for
    ``weight_fisher``.
    """
    return sweep_parameters(model, parameters, task, **options)[0]


def sweep_parameters(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], task: Task, **options: Any
) -> tuple[Squares, Tally]:
    """``parameter_fisher``, and the tally of the examples that it took."""
    fisher, tally = unchecked_parameters(model, parameters, task, **options)
    check_traces({name: float(total.sum()) for name, total in fisher.items()}, parameters)
    return fisher, tally


def unchecked_parameters(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], task: Task, **options: Any
) -> tuple[Squares, Tally]:
    """``sweep_parameters``, whatever is found: for a part of what is protected, or a part of the rows."""
    check_names(options, OPTIONS, "parameter_fisher")
    auto = options.get("samples") == "auto"
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in parameters}
    homes = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    alone = all(homes[id(p)] == 1 for p in parameters.values())
    if alone and all(type(owner) is nn.Linear for owner in owners.values()):
        modules = {name.rpartition(".")[0]: owner for name, owner in owners.items()}
        worth = trace if auto else unmeasured
        sites = Sites(modules, lambda owner, *_: WeightAndBias(parameters, owner), worth)
        tally = Sweep(model, task, **options).run(sites, Sites(modules, Unkept, worth) if auto else None)
        found = {n: total for sums in sites.collected(_device(model)).values() for n, total in sums.totals.items()}
    else:
        single = OneByOne(parameters)
        again = OneByOne(parameters) if auto else None
        tally = Sweep(model, task, **options | {"batch_size": 1}).run(single, again)
        found = {name: ranks.add_up(total) for name, total in single.totals.items()}
    return {name: found[name].div_(tally.draws) for name in parameters if name in found}, tally


def unchecked_weights(
    model: nn.Module, modules: Mapping[str, nn.Module], task: Task, **options: Any
) -> tuple[Squares, Tally]:
    """``weight_fisher``, whatever is found, and the tally of the examples that it took."""
    check_names(options, OPTIONS, "weight_fisher")
    worth = trace if options.get("samples") == "auto" else unmeasured
    forms, tally = _unchecked(model, modules, task, FORMS["diagonal"], worth, options)
    return {name: form.state_dict()["fisher"] for name, form in forms.items()}, tally


def _forms(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    task: Task,
    kind: type[Form],
    worth: Worth,
    options: dict[str, Any],
) -> tuple[dict[str, Form], Tally]:
    """The forms of all modules that have a part in the outputs, and the tally of the values of ``worth``."""
    forms, tally = _unchecked(model, modules, task, kind, worth, options)
    check_traces({name: form.trace for name, form in forms.items()}, modules)
    return forms, tally


def _unchecked(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    task: Task,
    kind: type[Form],
    worth: Worth,
    options: dict[str, Any],
) -> tuple[dict[str, Form], Tally]:
    own = form_options(kind)
    check_names(options, [*OPTIONS, *own], "measure")
    of_form = {name: value for name, value in options.items() if name in own}
    of_pass = {name: value for name, value in options.items() if name not in own}

    samples, rows = of_pass.get("samples"), len(task.order())

    def new(name: str, *shape: Any) -> Collector:
        collector = kind.collector(*shape, **of_form)
        if samples != "auto":
            collector.expected = min(samples or rows, rows)
        return collector

    sites = Sites(modules, new, worth)
    again = None if worth is unmeasured else Sites(modules, Unkept, worth)
    tally = Sweep(model, task, **of_pass).run(sites, again)
    forms = {name: collector.done(tally.draws) for name, collector in sites.collected(_device(model)).items()}
    return {name: forms[name] for name in modules if name in forms}, tally


def check_traces(traces: Mapping[str, float], wanted: Iterable[str]) -> None:
    """Refuse importance that would protect nothing, or that is not a number; warn of a part of what is ``wanted``.

    Raises:
        RuntimeError: every trace is zero, or one, by its name, is not finite.
    """
    wanted = list(wanted)
    silent = [name for name in wanted if not traces.get(name)]
    if len(silent) == len(wanted):
        raise RuntimeError(
            "the Fisher information is zero everywhere: a penalty on it would protect nothing. Does the model's output "
            "depend on the adapted layers, and is the loss not already exactly zero?"
        )
    if bad := [name for name, value in traces.items() if not math.isfinite(value)]:
        raise RuntimeError(f"the Fisher information of {bad[0]} is not finite: the model or its loss overflowed")
    if silent:
        warnings.warn(f"zero Fisher information: nothing protects {', '.join(silent)}", stacklevel=4)


def _device(model: nn.Module) -> Any:
    return next(model.parameters()).device
