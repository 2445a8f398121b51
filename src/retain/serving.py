"""Many tasks in one batch: every row under the weight change of its own task, from bases that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from retain.bases import Bases
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
        self.refresh()

    def refresh(self) -> None:
        """Serve the tasks that the bases have now."""
        self.numbers = {task: i for i, task in enumerate(next(iter(self.bases.values())).cores)}
        if not self.numbers:
            raise ValueError("no task has been learned or added yet")
        self.cores: dict[str, tuple[Tensor, Tensor]] = {}
        for name, bases in self.bases.items():
            cores = bases.cores.values()
            m = max(core.left.shape[1] for core in cores)
            lefts = torch.stack([pad(core.left, (0, m - core.left.shape[1])) for core in cores])
            rights = torch.stack([pad(core.right, (0, 0, 0, m - len(core.right))) for core in cores])
            self.cores[name] = lefts, rights
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
        device = next(iter(self.cores.values()))[0].device
        self.rows = torch.tensor([self.numbers[name] for name in names], device=device)

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
            x, rows = args[0], self.rows
            if len(rows) not in (1, len(x)):
                raise ValueError(f"tasks were selected for {len(rows)} rows, and the batch has {len(x)}; see select()")
            bases, (lefts, rights) = self.bases[name], self.cores[name]
            seen = x.to(bases.V.dtype).flatten(1, -2) if x.dim() > 2 else x.to(bases.V.dtype)[:, None]
            inner = (seen @ bases.V) @ rights[rows].mT @ lefts[rows].mT
            change = site.scale * inner @ bases.U.T
            return output + change.reshape(output.shape).to(output.dtype)

        return hook
