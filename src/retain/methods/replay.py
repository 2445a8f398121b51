"""Experience replay: rows of finished tasks are trained on again (Chaudhry et al. 2019, arXiv 1902.10486).

With ``match`` it is DER++ (Buzzega et al. 2020, arXiv 2004.07211).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain.buffer import (
    Rows,
    as_batch,
    chosen,
    classes_in,
    classes_of,
    first_targets,
    keys,
    padding_of,
    read,
    stacked,
    targets_of,
    widened,
)
from retain.method import Method
from retain.task import IGNORED, CrossEntropy, SquaredError, Task, evaluating, forward, on_device, precise


class Replay(Method):
    """Keep rows of every finished task and train on a few of them again in every step: it keeps old data.

    The loss of a step gains ``weight`` times the mean loss of ``batch_size`` kept rows, drawn anew: a mean over
    examples or, for sequences, over target tokens, as in Trainer. Each counts under its own task's loss or, with
    ``seen``, among the classes of all. From the second task on every step costs a forward and backward of them more.

    Rows are kept as they enter the model: tokens or pixels, after any augmentation, padded like the longest of their
    task. They are in the state, with their numbers among the training rows of their task, and go where it goes.

    Args:
        model: a model from ``peft.get_peft_model``, or any module.
        share: of a task's rows to keep, but at least one (of each class, if ``balanced``). Bytes grow with every task.
        rows: how many to keep of all tasks together, instead of ``share``: earlier tasks make room for later ones.
        balanced: as many rows of every class, and with ``rows`` of every task; otherwise every row ever seen is as
            likely to be kept (reservoir sampling). Sequences have no classes.
        weight: of the loss on kept rows; beta of DER++.
        match: weight of the mean square of what the outputs of kept rows, those of their own task's classes, have
            changed by since it ended; alpha of DER++. 0 is plain replay and keeps no outputs. Not for sequences.
        batch_size: rows drawn for a step; all, if fewer are kept.
        seen: whether a replayed row's class competes with those of all tasks so far, while new rows compete within
            their task (ER-ACE, Caccia et al. 2022, arXiv 2104.05025). The rows that will be kept of the present task
            are replayed with the others: nothing else compares its classes with earlier ones. None: where the task is
            not known at test.
        seed: of what is kept and drawn.
    """

    STATE = ("numbers", "inputs", "outputs", "groups")
    guards = True
    needs_adapter = False
    keeps_rows = True
    knob = ("weight", (0.1, 0.3, 1.0, 3.0, 10.0))
    late = ("weight",)

    def __init__(
        self,
        model: nn.Module,
        *,
        share: float = 0.01,
        rows: int | None = None,
        balanced: bool = True,
        weight: float = 1.0,
        match: float = 0.0,
        batch_size: int = 8,
        seen: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        self.check(share=share, rows=rows, weight=weight, match=match, batch_size=batch_size)
        self.share, self.rows, self.balanced = share, rows, balanced
        self.weight, self.match, self.batch_size, self.seen = weight, match, batch_size, seen
        self.extra_rows = batch_size
        self.numbers: dict[str, Tensor] = {}
        self.inputs: dict[str, dict[str, Tensor]] = {}
        self.outputs: dict[str, Tensor] = {}
        self.groups: dict[str, Tensor] = {}
        self._among: CrossEntropy | None = None
        self._present: dict[str, Rows] = {}

    @classmethod
    def check(cls, **keywords: Any) -> None:
        if not 0 < keywords["share"] <= 1:
            raise ValueError(f"share must lie in (0, 1], got {keywords['share']}")
        for key in ("weight", "match"):
            if not 0 <= keywords[key] < math.inf:
                raise ValueError(f"{key} must be at least 0 and finite, got {keywords[key]}")
        if not keywords["weight"] and not keywords["match"]:
            raise ValueError("weight and match are both 0: rows would be kept and never used; sequential does as much")
        for key in ("rows", "batch_size"):
            if keywords[key] is not None and keywords[key] < 1:
                raise ValueError(f"{key} must be at least 1, got {keywords[key]}")

    @property
    def growth(self) -> int:
        """That of the task which added most so far; before the first boundary see ``growth_for``."""
        if self.rows is not None:
            return max((groups.nbytes for groups in self.groups.values()), default=0)
        return max(map(self._bytes_of, self.numbers), default=0)

    def growth_for(self, rows: int, row_bytes: int, classes: int, outputs: int) -> int:
        """``growth``, at most, for a task of so many rows of so many bytes each, before there is one to look at.

        Args:
            rows: that it trains on.
            row_bytes: of one, inputs and targets.
            classes: that it has.
            outputs: of the model, for all tasks.
        """
        more = 0 if self.rows is not None else min(rows, self._fair(rows, classes))
        return more * (row_bytes + 8 + 4 * outputs * bool(self.match)) + 8 * outputs

    def begin_task(self, task: Task) -> None:
        self.steps = 0
        _check_loss(task, bool(self.match))
        if (now := getattr(task.loss, "groups", None)) is not None:  # classes may have come later
            self.groups = {name: now.cpu().clone() for name in self.groups}
            self.outputs = {name: widened(z, len(now)) for name, z in self.outputs.items()}
        self._among = self._all_so_far(task) if self.seen or (self.seen is None and not task.known) else None
        self._present = {}
        if self._among is not None and self.numbers:
            self._present = {task.name: read(task, self._chosen_of(task, self.number), padding_of(self.model))}

    def extra_loss(self) -> Tensor | float:
        if not self.numbers:
            return 0.0
        rows = {name: self.inputs[name] for name in self._names} | self._present
        sizes = {name: len(targets_of(mine)) for name, mine in rows.items()}
        drawn, start, places = self.drawn(sum(sizes.values()), self.batch_size), 0, {}
        for name, size in sizes.items():
            if len(mine := drawn[(drawn >= start) & (drawn < start + size)] - start):
                places[name] = mine
            start += size
        return self._loss_at(rows, places)

    def after_step(self) -> None:
        self.steps += 1

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self._keep(task)
        if self.rows is not None:
            self._make_room(self.rows)
        if self.match and task.name in self.numbers:
            self.outputs[task.name] = self._outputs(task.name)
        self.boundary = {"kept": len(self.numbers.get(task.name, ())), "rows": self._kept}
        self.boundary["bytes"] = sum(map(self._bytes_of, self.numbers))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self.match and (missing := self.numbers.keys() - self.outputs.keys()):
            raise ValueError(f"the state has no outputs of {min(missing)!r}: it was written with match=0")
        self.numbers, self.outputs, self.groups = (
            {name: x.cpu() for name, x in kept.items()} for kept in (self.numbers, self.outputs, self.groups)
        )
        self.inputs = {name: {key: x.cpu() for key, x in rows.items()} for name, rows in self.inputs.items()}

    @property
    def _names(self) -> list[str]:
        """The tasks of which there are rows, in the order that they were learned, whatever the order in a file."""
        return sorted(self.numbers, key=lambda name: int(self.learned[name]))

    @property
    def _kept(self) -> int:
        return sum(map(len, self.numbers.values()))

    def _bytes_of(self, name: str) -> int:
        others = (kept[name].nbytes for kept in (self.numbers, self.outputs, self.groups) if name in kept)
        return sum(others) + sum(x.nbytes for x in self.inputs[name].values())

    def _fair(self, rows: int, classes: int) -> int:
        return max(round(self.share * rows), classes if self.balanced else 1)

    def _keys(self, name: str) -> Tensor:
        return keys(self.numbers[name], hash((self.seed, int(self.learned[name]))))

    def _loss(self, name: str) -> CrossEntropy | SquaredError:
        floats, groups = targets_of(self.inputs[name]).is_floating_point(), self.groups.get(name)
        return SquaredError(groups, int(self.learned[name])) if floats else CrossEntropy(groups)

    def _all_so_far(self, task: Task) -> CrossEntropy | None:
        """The loss under which the classes of all tasks with kept rows compete, and those of ``task``."""
        if not isinstance(task.loss, CrossEntropy) or task.loss.groups is None:
            return None
        groups, targets = task.loss.groups.cpu(), [first_targets(task), *map(targets_of, self.inputs.values())]
        there = torch.cat([y.cpu().flatten() for y in targets if not y.is_floating_point()])
        return CrossEntropy(torch.isin(groups, groups[there[there != IGNORED]]).long())

    def _loss_at(self, rows: Mapping[str, Rows], places: Mapping[str, Tensor]) -> Tensor:
        """The loss of those of ``rows`` that stand at ``places`` (n_i,) of each task."""
        names, device = list(places), next(self.model.parameters()).device
        pieces = [{key: x[places[name]] for key, x in rows[name].items()} for name in names]
        losses, targets, squares = [], 0, []
        for group, batch in stacked(pieces, padding_of(self.model)):
            found = forward(self.model, on_device(as_batch(batch), device))
            sizes = [len(places[names[i]]) for i in group]
            for i, z, y in zip(group, *(x.split(sizes) for x in found), strict=True):
                among = None if y.is_floating_point() else self._among
                losses.append((among or self._loss(names[i])).nll(z, y).sum())
                targets += len(y) if y.is_floating_point() else int((y != IGNORED).sum())
                if self.match and names[i] not in self._present:
                    before = self.outputs[names[i]][places[names[i]]].to(device)
                    squares.append((precise(z) - before)[before.isfinite()].square())
        loss = self.weight * torch.stack(losses).sum() / max(targets, 1)
        return loss + self.match * torch.cat(squares).mean() if squares else loss

    def _keep(self, task: Task) -> None:
        """Keep rows of ``task``, as if of all tasks it were the only one."""
        name, classes = task.name, classes_in(task)
        count, kinds = len(classes), len(classes.unique())
        if self.rows is None and (fair := round(self.share * count)) < self._fair(count, kinds):
            warnings.warn(
                f"a share of {self.share:g} of the {count} rows of {name!r} is {fair}; {self._fair(count, kinds)} are "
                "kept, and replay of so few protects little. Raise method.share",
                stacklevel=3,
            )
        self._present = {}
        self.numbers[name] = self._chosen_of(task, int(self.learned[name]))
        self.inputs[name] = read(task, self.numbers[name], padding_of(self.model))
        self.outputs.pop(name, None)
        self.groups.pop(name, None)
        if (groups := getattr(task.loss, "groups", None)) is not None:
            self.groups[name] = groups.cpu().clone()

    def _chosen_of(self, task: Task, number: int) -> Tensor:
        """Which rows of ``task``, the ``number``-th, are kept."""
        classes = classes_in(task)
        kinds = len(classes.unique())
        cells = classes if self.balanced else torch.zeros_like(classes)
        most = self._fair(len(classes), kinds) if self.rows is None else max(self.rows, kinds)
        return chosen(keys(torch.arange(len(classes)), hash((self.seed, number))), cells, most)

    def _make_room(self, count: int) -> None:
        """Keep ``count`` of all rows that are kept."""
        names = self._names
        tasks = torch.arange(len(names)).repeat_interleave(torch.tensor([len(self.numbers[n]) for n in names]))
        classes = torch.cat([classes_of(targets_of(self.inputs[name])) for name in names])
        cells = torch.stack([tasks, classes]).unique(dim=1, return_inverse=True)[1] * int(self.balanced)
        if (needed := int(cells.max()) + 1) > count:
            warnings.warn(
                f"method.rows is {count}, and the finished tasks have {needed} classes: of some nothing is kept",
                stacklevel=3,
            )
        kept = chosen(torch.cat([self._keys(name) for name in names]), cells, count)
        for number, name in enumerate(names):
            self._keep_only(name, kept[tasks[kept] == number] - int((tasks < number).sum()))

    def _keep_only(self, name: str, places: Tensor) -> None:
        """Of the kept rows of a task keep those at ``places`` (n,), and nothing of it if there are none."""
        self.numbers[name] = self.numbers[name][places]
        self.inputs[name] = {key: x[places] for key, x in self.inputs[name].items()}
        if name in self.outputs:
            self.outputs[name] = self.outputs[name][places]
        if not len(places):
            del self.numbers[name], self.inputs[name]
            self.outputs.pop(name, None)
            self.groups.pop(name, None)

    @torch.no_grad()
    def _outputs(self, name: str) -> Tensor:
        """What the model gives for the kept rows of a task (n, ...); -inf for classes that do not compete there."""
        loss, device, found = self._loss(name), next(self.model.parameters()).device, []
        with evaluating(self.model):
            for part in torch.arange(len(self.numbers[name])).split(self.batch_size):
                rows = as_batch({key: x[part] for key, x in self.inputs[name].items()})
                z, y = forward(self.model, on_device(rows, device))
                found.append(precise(loss.restrict(z, y)).cpu())
        return torch.cat(found)


def _check_loss(task: Task, match: bool) -> None:
    """Refuse a loss or a forward that no state can hold, and sequences whose outputs would be kept."""
    if task.forward is not forward:
        raise ValueError(f"task {task.name!r} has a forward of its own, which no state can hold: it cannot be replayed")
    targets = first_targets(task)
    expected = SquaredError if targets.is_floating_point() else CrossEntropy
    if type(task.loss) is not expected:
        raise ValueError(
            f"task {task.name!r}: rows with targets in {str(targets.dtype)[6:]} can be replayed under "
            f"{expected.__name__} alone, which a state can hold; its loss is {type(task.loss).__name__}"
        )
    if match and expected is CrossEntropy and targets.dim() > 1:
        raise ValueError(
            f"task {task.name!r}: match keeps all outputs of a kept row, which for a sequence are tokens x vocabulary; "
            "use match=0"
        )
