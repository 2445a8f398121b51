"""What a continual-learning method is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from retain.gauge import Factor
from retain.lora import Site, is_adapted, sites
from retain.newhead import check_head
from retain.task import Task

# One adapter trained on and on, or a fresh one for every task on top of the folded past.
Mode = Literal["shared", "merge"]


class Method:
    """Sits beside a user's optimizer, as an optimizer sits beside a model: it never owns backward, step or zero_grad.

    Boundaries: ``begin_task`` before the optimizer is built, ``end_task`` after training. Steps: ``extra_loss``
    once per optimizer step, ``before_step`` and ``after_step`` around it (see ``attach``). Every hook does nothing by
    default: sequential LoRA.

    Attributes:
        STATE: names of the attributes kept from task to task: (nested) dicts of tensors.
        needs_adapter: whether the model must come from peft, or may be any module.
        separate: whether every task has coefficients of its own, which ``activate`` puts in place.
        cumulative: whether it trains once on all tasks' rows instead of task after task (the joint upper bound).
        keeps_rows: whether its state holds training rows of finished tasks.
        guards: whether ``end_task`` without a training protects what the model can do as it is (``learn_base``).
        knob: the keyword that trades stability against plasticity, with values to try in ascending order, the default
            among them; None if there is none.
        late: keywords that have no part in anything before the second task: until then, runs that differ in them alone
            are the same.
        learned: the number of each finished task, by name; -1 is what the untouched model could do (``learn_base``).
        boundary: what the last ``end_task`` measured, by name, for the record of the run.
        strength: what a nat of the total of ``predicted_rise`` weighs in ``extra_loss``.
        first_number: of the first task; ``learn_base`` starts at -1.
        trained: the names of what the latest task trained beside the adapter.
        steps: optimizer steps of the present task, for methods that draw rows in each. Whoever continues in the middle
            of a task sets it after ``begin_task``; ``ContinualCallback`` does.
        extra_rows: rows whose training costs as much as an ``extra_loss`` and its gradient, from the second task on.
    """

    STATE: ClassVar[tuple[str, ...]] = ()
    needs_adapter: ClassVar[bool] = True
    separate: ClassVar[bool] = False
    cumulative: ClassVar[bool] = False
    keeps_rows: ClassVar[bool] = False
    guards: ClassVar[bool] = False
    knob: ClassVar[tuple[str, tuple[float, ...]] | None] = None
    late: ClassVar[tuple[str, ...]] = ()
    strength: float = 0.0
    extra_rows: float = 0.0
    first_number: int = 0

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        self.model, self.seed = model, seed
        self.sites: dict[str, Site] = sites(model) if self.needs_adapter or is_adapted(model) else {}
        if is_adapted(model):
            check_head(model)
        self.learned: dict[str, Tensor] = {}
        self.boundary: dict[str, float] = {}
        self.trained: dict[str, Tensor] = {}
        self.steps = 0

    @classmethod
    def check(cls, **keywords: Any) -> None:
        """Refuse ``keywords`` of the constructor, all of them, if they are wrong whatever the model.

        Raises:
            ValueError: what came and what is allowed, in one line.
        """

    @property
    def growth(self) -> int:
        """Bytes that every task adds to ``state_dict``, at most, beyond a number or two."""
        return 0

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapter's factors."""
        return sum(x.nbytes for site in self.sites.values() for x in (site.B, site.A))

    def begin_task(self, task: Task) -> None:
        """Choose what trains and where it starts. Call before the optimizer is built."""

    def param_groups(self) -> list[dict[str, Any]]:
        """What to optimise: the adapter's factors, then everything else that is trainable (heads)."""
        factors = [p for s in self.sites.values() for p in s.parameters if p.requires_grad]
        return [{"params": group} for group in (factors, list(self.beside().values())) if group]

    def beside(self) -> dict[str, nn.Parameter]:
        """What trains beside the adapter's factors, by name: heads, and whatever else the user left trainable."""
        factors = {id(p) for s in self.sites.values() for p in s.parameters}
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in factors}

    def linear_beside(self) -> dict[str, nn.Parameter]:
        """Of these, what belongs to linear layers, such as a head that all tasks share (one head a task is none)."""
        owner = self.model.get_submodule
        return {n: p for n, p in self.beside().items() if type(owner(n.rpartition(".")[0])) is nn.Linear}

    def extra_loss(self) -> Tensor | float:
        """What to add to the loss, once per optimizer step, in nats per example."""
        return 0.0

    def predicted_rise(self) -> dict[str, float]:
        """How much training since the last boundary has raised the loss on earlier tasks, as the method foresees it.

        "total", in nats per example, sums over the finished tasks, each counted as in ``remembered``; a method that
        can tell tasks apart gives the rise of each under its name, too. Empty where nothing is foreseen.
        """
        return {}

    def reading(self) -> dict[str, float]:
        """What trackers are told of the rise that is foreseen just now, by name; empty where nothing is foreseen."""
        return {}

    @property
    def limit(self) -> str | None:
        """The budget that finds its ``strength``, in words; None without one."""
        return None

    @property
    def factor(self) -> Factor | None:
        """How many measured nats a foreseen one stands for; None where nothing is foreseen."""
        return None

    def calibrate(
        self, task: str, foreseen: float, measured: float, error: float, share: tuple[float, float] | None = None
    ) -> None:
        """Take note of what learning ``task`` has cost the earlier ones, for what is foreseen from now on.

        Args:
            task: the one just learned.
            foreseen: the total of ``predicted_rise`` before ``end_task``.
            measured: the rise of the earlier tasks' loss over the same training, each counted as in ``remembered``.
            error: the standard error of ``measured``.
            share: of the earlier tasks' score that the same training has cost, and its standard error; None if there is
                no score.
        """

    @property
    def remembered(self) -> dict[str, float]:
        """How much each finished task counts in the total of ``predicted_rise``, by name; 1 is fully."""
        return faded(self.learned, 1.0)

    def before_step(self) -> None:
        """Called when gradients are final: unscaled and clipped."""

    def after_step(self) -> None:
        """Called when the optimizer has moved the parameters."""

    def finish(self) -> None:
        """Training has taken its last step; nothing has read the weights yet. ``ContinualCallback`` calls it."""

    def end_task(self, task: Task) -> None:
        """Measure, consolidate, remember. The function that was trained stays what it is."""
        self.trained = {name: torch.tensor(True) for name in self.beside()}
        self.learned[task.name] = torch.tensor(self.number)

    def warn_unprotected(self, protected: Iterable[str] = ()) -> None:
        """Warn if what the latest task trained beside the adapter goes on training, and is not ``protected``."""
        if bare := self.trained.keys() & self.beside().keys() - set(protected):
            warnings.warn(f"trained for more than one task, but not protected: {', '.join(sorted(bare))}", stacklevel=3)

    def activate(self, task: str | None) -> None:
        """Use the coefficients of ``task`` for inference, where a method keeps some; None: the latest."""

    @property
    def routes(self) -> bool:
        """Whether ``guess`` knows which task a row belongs to."""
        return False

    def guess(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """The task of each row of ``inputs`` (of the model, without labels), where nobody says it.

        Raises:
            ValueError: this method cannot tell.
        """
        raise ValueError(f"{type(self).__name__} cannot tell which task a row belongs to")

    def generator(self) -> torch.Generator:
        """Randomness of the boundary at hand: a function of ``boundary_seed``, and of nothing else."""
        return torch.Generator().manual_seed(self.boundary_seed)

    @property
    def boundary_seed(self) -> int:
        """A function of the seed and the number of the task at hand."""
        return hash((self.seed, self.number)) % 2**63

    @property
    def number(self) -> int:
        """Of the task at hand: how many were trained before it."""
        return max((int(n) + 1 for n in self.learned.values()), default=self.first_number)

    def drawn(self, count: int, size: int) -> Tensor:
        """``size`` of the numbers below ``count`` in ascending order, or all: a function of boundary and step."""
        generator = torch.Generator().manual_seed(hash((self.boundary_seed, self.steps)) % 2**63)
        return torch.randperm(count, generator=generator)[:size].sort().values

    def fold(self, rank: int | None) -> None:
        """Fold every site (see ``Site.fold``) but an untrained one, and report the largest relative error of a cut."""
        generator, trained = self.generator(), self.number >= 0 or any(site.B.any() for site in self.sites.values())
        errors = [site.fold(generator, rank) for site in self.sites.values() if trained]
        self.boundary["fold_error"] = max(errors, default=0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything kept between tasks but the present adapter, flat: the past of every site and what ``STATE`` names.

        Its bytes are the storage that a method costs beyond its adapter.
        """
        state = {
            f"past/{name}/{x}": t
            for name, s in self.sites.items()
            for x, t in zip("BA", s.past, strict=True)
            if t.numel()
        }
        for attribute in ("learned", *self.STATE):
            state |= dict(_flat(attribute, getattr(self, attribute)))
        return {key: tensor.detach() for key, tensor in state.items()}

    def progress(self) -> dict[str, Tensor]:
        """What training has changed beside the weights since ``begin_task``, flat; empty if nothing.

        Beside a checkpoint of the weights it lets a training that was stopped in its middle go on as if it had not.
        """
        return {}

    def load_progress(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``progress`` gave, after ``begin_task``.

        Raises:
            ValueError: it is of another method, or of other keywords.
        """
        if state:
            raise ValueError(f"{type(self).__name__} changes nothing while a task trains: no place for {min(state)!r}")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave.

        Raises:
            ValueError: an entry that this method or this model does not have, by name.
        """
        kept: dict[str, Any] = {attribute: {} for attribute in ("learned", *self.STATE)}
        past: dict[str, dict[str, Tensor]] = {}
        device = next(self.model.parameters()).device
        tasks = {key.removeprefix("learned/") for key in state if key.startswith("learned/")}
        here = {*self.sites, *dict(self.model.named_parameters()), *tasks}
        for key, tensor in state.items():
            root, *path = key.split("/")
            if root == "past" and len(path) == 2 and path[0] in self.sites:
                past.setdefault(path[0], {})[path[1]] = tensor
            elif root in kept and here.intersection(path):
                _nest(kept[root], path, tensor.to(device, copy=True))
            else:
                raise ValueError(f"state entry {key!r} does not belong to {type(self).__name__} on this model")
        for attribute, value in kept.items():
            if missing := self.sites.keys() - value.keys() if self.sites.keys() & value.keys() else set():
                raise ValueError(f"the state has no {attribute} of {min(missing)}")
        for attribute in (*self.STATE, "learned"):
            setattr(self, attribute, kept[attribute])
        for name, site in self.sites.items():
            empty = {"B": site.B[:, :0], "A": site.A[:0]}
            site.set_past(**past.get(name, empty))


def faded(learned: Mapping[str, Tensor], decay: float) -> dict[str, float]:
    """decay^age of every finished task by name, in the order that they were learned; the latest has age 0."""
    order = sorted(learned, key=lambda name: int(learned[name]))
    return {name: decay ** (len(order) - 1 - i) for i, name in enumerate(order)}


def check_mode(mode: str, rank: int | None) -> Mode:
    """Refuse a mode that does not exist, or a cap on a past that does not."""
    if mode not in get_args(Mode):
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(get_args(Mode))}")
    if rank is not None and (mode != "merge" or rank < 1):
        raise ValueError(
            f"rank={rank} caps the folded past: it must be at least 1, and needs mode='merge' (here {mode!r})"
        )
    return cast(Mode, mode)


def _flat(prefix: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flat(f"{prefix}/{key}", inner)]


def _nest(root: dict[str, Any], path: list[str], tensor: Tensor) -> None:
    *parents, leaf = path
    for key in parents:
        root = root.setdefault(key, {})
    root[leaf] = tensor
