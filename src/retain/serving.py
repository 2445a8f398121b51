"""Many tasks in one batch: every row under the weight change of its own task, from bases that all share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from retain.bases import Bases, stacked
from retain.lora import Site
from retain.nearest import did_you_mean
from retain.routing import pretrained


class Serving:
    """Within the block row n of a batch sees y = W x + c U C_t V' x, t its task; no factors are copied to switch.

        with Serving(method.sites, method.bases) as server:
            server.select(["reviews", "news", "reviews"])
            logits = model(**batch).logits

    ``select`` costs a lookup, the forward pass x V (in, k), a product (k, m) and (m, k) a row, and U (k, out). The
    first dimension of what enters a layer must be the batch. The adapter in place does nothing meanwhile.

    Args:
        sites: of the model.
        bases: of every site, with the cores of the tasks that are served; a task that joins later, after ``refresh``.

    Raises:
        ValueError: a convolution, whose factors are no matrices.
    """

    def __init__(self, sites: Mapping[str, Site], bases: Mapping[str, Bases]) -> None:
        for name, site in sites.items():
            if site.layer.lora_A[site.adapter].weight.dim() != 2:
                raise ValueError(f"{name}: rows of different tasks are not supported for a convolution")
        self.sites, self.bases = sites, bases
        self.stack = ExitStack()
        self.rows = torch.zeros(0, dtype=torch.long)
        self.away = False
        self.refresh()

    def refresh(self) -> None:
        """Serve the tasks that the bases have now, from what they are now: a boundary meanwhile changes nothing."""
        numbers = {task: i for i, task in enumerate(next(iter(self.bases.values())).cores)}
        if not numbers:
            raise ValueError("no task has been learned or added yet")
        self.numbers = numbers
        self.served = {name: (one.U, one.V, *stacked(one.cores.values())) for name, one in self.bases.items()}
        self.rows = self.rows[:0]

    def select(self, tasks: str | Sequence[str]) -> None:
        """Say which task each row of the next batches belongs to, or all rows.

        Raises:
            ValueError: a task that is not served.
        """
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        for name in names:
            if name not in self.numbers:
                known = ", ".join(self.numbers)
                raise ValueError(f"no task {name!r} is served; known: {known}{did_you_mean(name, self.numbers)}")
        device = next(iter(self.served.values()))[0].device
        self.rows = torch.tensor([self.numbers[name] for name in names], device=device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block the model is the pretrained one, as ``Share.guess`` reads its features."""
        self.away = True
        try:
            yield
        finally:
            self.away = False

    def __enter__(self) -> Self:
        self.stack.enter_context(pretrained(self.sites))
        for name, site in self.sites.items():
            hook = site.layer.register_forward_hook(self._changed(name, site))
            self.stack.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _changed(self, name: str, site: Site) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.away:
                return output
            x, rows = args[0], self.rows
            if len(rows) not in (1, len(x)):
                raise ValueError(f"tasks were selected for {len(rows)} rows, and the batch has {len(x)}; see select()")
            U, V, lefts, rights = self.served[name]
            seen = x.to(V.dtype).flatten(1, -2) if x.dim() > 2 else x.to(V.dtype)[:, None]
            change = site.scale * (seen @ V) @ rights[rows].mT @ lefts[rows].mT @ U.T
            return output + change.reshape(output.shape).to(output.dtype)

        return hook
