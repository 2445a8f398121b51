"""DWD, Dynamic Weight Decoupling: Online EWC with a running Fisher, a strength for each group of weights, a task graph.

After three ideas of a blog post. There is no paper and no code; what it leaves open is ours (docs/methods/dwd.md).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from retain.fisher.choice import choose
from retain.fisher.estimate import check_traces
from retain.fisher.forms import FORMS
from retain.fisher.forms.form import check_count
from retain.fisher.running import Running, part_of, probes
from retain.fisher.springs import Protect, Springs, seeing
from retain.grouping import Assign, Units, group_factors, signatures, spectral_groups
from retain.method import faded
from retain.mistakes import Within
from retain.nearest import did_you_mean
from retain.protection import Protection, Strength, check_strength, check_temperature
from retain.task import Task
from retain.taskgraph import edges, fisher_overlaps, layer_features, linear_cka

Graph = Literal["fisher", "features"]
Node = dict[str, dict[str, Tensor]]
STRENGTHS = {"factors": 1e3, "update": 1e4}  # of `ewc`, and of `ewc-lora` with a diagonal
CHOICES: dict[str, Any] = {"protect": get_args(Protect), "assign": get_args(Assign), "graph": (None, *get_args(Graph))}
ESTIMATE, PROBE, CLUSTER, EDGE = range(4)  # what randomness is for


class DWD(Protection):
    """Online EWC in which weights are protected group by group: strength/2 sum_j c_j F_j (theta_j - theta*_j)^2.

    Three parts, each of which can be left out. Without any of them it is Online EWC.

    - Running Fisher: while a task trains, its F is averaged over short passes of its own (``running``, ``every``).
    - Groups: units of weights (the rank indices of A and B, or blocks of rows of dW) whose importance moves together
      over mini-batches are clustered after every task; c_j = (mean F of its group / mean F)^exponent, at most 10 and
      at least a tenth, scaled so that sum c_j F_j = sum F_j.
    - Task graph: a pull towards the weights of earlier tasks, as strong for each as it is like the new one:
      strength/2 attraction mean(F) sum_i w_i ||theta - theta*_i||^2, collapsed to one parabola.

    F <- decay F + F_t after every task, and the anchor theta* is where the last task ended.

    Args:
        model: a model from ``peft.get_peft_model``.
        strength: lambda, "auto" or a budget, as for ``ewc-lora``. None: 1e3 on factors and 1e4 on the update.
        decay: of Online EWC, in [0, 1].
        protect: theta is the LoRA "factors", or the "update" dW = s B A, which depends on no gauge and whose F is as
            large as the adapted weights. Linear layers beside the adapter belong to either.
        running: gamma of the average over estimates, in [0, 1); 0.9 to 0.95 in the source. None: F_t is measured by one
            pass at the end of a task, and so it is where a task has no estimate.
        every: optimizer steps from estimate to estimate.
        groups: K; "auto" takes the widest eigengap, up to 8; 1 is none.
        exponent: 0 gives all groups one strength.
        assign: clusters of the spectral embedding by "k-means", or by a Gaussian "mixture" (the source's advice).
        units: how many are clustered, at most; where there would be more, several rows make one.
        probes: mini-batches on which units are compared; as many rows of a new task tell what it is like.
        rows: of a mini-batch of that kind, and of an estimate.
        graph: likeness by the overlap of "fisher" information, or by linear CKA of "features", the outputs of the last
            adapted layer; None: no graph. It keeps the weights of every task, and with "fisher" their F.
        attraction: mu, in units of strength x mean(F).
        at_once: tensors whose F is measured in one pass. 1 caps what a boundary holds beside what is kept by the
            largest tensor, and costs a pass a tensor. None: all.
        fisher: keywords of the Fisher pass, as for ``ewc``; ``samples`` and ``error`` are of the pass at the end.
        seed: of rows, labels and clusters.
    """

    STATE = ("fisher", "anchor", "members", "factors", "nodes", "trained", *Protection.STATE)
    guards = True
    FISHER: dict[str, Any] = {"form": "diagonal", "samples": 1000}
    knob = ("strength", (1e1, 1e2, 1e3, 1e4, 1e5))

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: Strength | None = None,
        decay: float = 1.0,
        protect: Protect = "factors",
        running: float | None = 0.9,
        every: int = 10,
        groups: int | Literal["auto"] = 4,
        exponent: float = 0.5,
        assign: Assign = "k-means",
        units: int = 1024,
        probes: int = 32,
        rows: int = 16,
        graph: Graph | None = None,
        attraction: float = 0.01,
        at_once: int | None = None,
        fisher: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        numbers = {"every": every, "units": units, "probes": probes, "rows": rows, "groups": groups, "at_once": at_once}
        scales = {"exponent": exponent, "attraction": attraction}
        names = {"protect": protect, "assign": assign, "graph": graph}
        self.check(**numbers, **names, strength=strength, decay=decay, running=running, fisher=fisher, **scales)
        super().__init__(model, strength=strength, default=STRENGTHS[protect], seed=seed)
        self.decay, self.running, self.every = decay, running, every
        self.groups, self.exponent, self.assign, self.units = groups, exponent, assign, units
        self.probes, self.rows, self.graph, self.attraction, self.at_once = probes, rows, graph, attraction, at_once
        self.choice = choose(fisher, self.FISHER)
        self.springs = Springs(model, self.sites, self.linear_beside(), protect)
        self._units = Units(self.springs.rows, units)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.members: dict[str, Tensor] = {}
        self.factors: dict[str, Tensor] = {}
        self.nodes: dict[str, Node] = {}
        self.edges: dict[str, float] = {}
        self._start: dict[str, Tensor] = {}
        self._task: Task | None = None
        self._running: Running | None = None
        self._steps = 0
        self._pull: Callable[[], Tensor] | None = None

    @classmethod
    def check(cls, **keywords: Any) -> None:
        check_strength(keywords["strength"], keywords["decay"])
        for key, known in CHOICES.items():
            if (value := keywords[key]) not in known:
                named = ", ".join(map(str, known))
                raise ValueError(f"unknown {key} {value!r}; known: {named}{did_you_mean(value, map(str, known))}")
        if isinstance(groups := keywords["groups"], str) and groups != "auto":
            raise Within("groups", f"{groups!r} is not allowed; expected a whole number of at least 1, or 'auto'")
        for key in ("every", "units", "probes", "rows", "groups", "at_once"):
            if (key, keywords[key]) not in (("groups", "auto"), ("at_once", None)):
                check_count(key, keywords[key])
        for key in ("exponent", "attraction"):
            if not 0 <= keywords[key] < math.inf:
                raise ValueError(f"{key} must be at least 0 and finite, got {keywords[key]}")
        running, fisher = keywords["running"], keywords["fisher"]
        if running is not None and (isinstance(running, bool) or not 0 <= running < 1):
            raise ValueError(f"running must lie in [0, 1), or be None for a pass at the end alone; got {running}")
        form = fisher.get("form") if isinstance(fisher, Mapping) else None
        if form in FORMS and form != "diagonal":
            raise Within("fisher.form", f"{form!r} has no number a weight, and dwd groups those; expected 'diagonal'")
        check_temperature(keywords["strength"], choice := choose(fisher, cls.FISHER))
        for key, value in choice.options.items():
            raise Within(f"fisher.{key}", f"{value!r} cannot be chosen: dwd keeps numbers as they are measured")

    @property
    def growth(self) -> int:
        importance = self.springs.importance_bytes if self.graph == "fisher" else 0
        return self.springs.value_bytes + importance if self.graph else 0

    @property
    def remembered(self) -> dict[str, float]:
        return faded(self.learned, self.decay)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.warn_unprotected(self.springs.anchored)
        self._start, self._task, self._steps, self.edges = self.springs.here(), task, 0, {}
        self._running = None if self.running is None else Running(self.running)
        self._pull = self._tied(task) if self.nodes and self.graph else None

    def extra_loss(self) -> Tensor | float:
        return self.multiplier.weigh(self._rise()) if self.fisher and self.multiplier.given != 0 else 0.0

    @torch.no_grad()
    def predicted_rise(self) -> dict[str, float]:
        """The rise since the last boundary as "total", with the factors of groups and the pull of the task graph.

        The latter's part is below zero where the weights come nearer to those of earlier tasks.
        """
        return {"total": float(self._rise())} if self.fisher else {}

    def after_step(self) -> None:
        """Every so many steps, estimate F here."""
        super().after_step()
        if self._task is None or self._running is None:
            return
        self._steps += 1
        if self._steps % self.every == 0:
            seed = self._seed(ESTIMATE, self._steps)
            self._running.add(self._glance(self._task, self._task.order(seed)[: self.rows], seed))

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        traces, node = {}, Node(anchor=self.springs.here())
        for name, new in self._measured(task):
            traces[name] = float(new.sum())
            self.fisher[name] = self.decay * self.fisher[name] + new if name in self.fisher else new
            if self.graph == "fisher":
                node.setdefault("fisher", {})[name] = new.clone()
        check_traces(traces, [*self.springs.updates, *seeing(self.sites, self.springs.parameters)])
        if self._start:
            self.compare_movement(self.springs.moved(self._start), task)
        self.anchor = self.springs.here()
        self._regroup(task)
        if self.graph:
            self.nodes[task.name] = node
        kept = (t for key, t in self.state_dict().items() if key.startswith(("fisher/", "nodes/")))
        self.boundary["bytes"] = sum(t.nbytes for t in kept)
        self.boundary["trace"] = sum(float(F.sum()) for F in self.fisher.values())
        self._task = self._running = self._pull = None
        super().end_task(task)

    def progress(self) -> dict[str, Tensor]:
        steps = {"steps": torch.tensor(self._steps)}
        return super().progress() | ({} if self._running is None else self._running.state() | steps)

    def load_progress(self, state: Mapping[str, Tensor]) -> None:
        super().load_progress({key: tensor for key, tensor in state.items() if key.startswith("multiplier")})
        if (self._running is None) == ("steps" in state):
            raise ValueError("the progress of a training is of another method, or of another value of `running`")
        if self._running is not None:
            self._running.load(state, self.springs.names, next(self.model.parameters()).device)
            self._steps = int(state["steps"])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As of every method. Also refused is a state that would protect nothing, or that has other keywords."""
        roots = {key.split("/")[0] for key in state}
        if "learned" in roots and "fisher" not in roots:
            raise ValueError("the state has finished tasks and no importance of theirs: nothing would be protected")
        if "nodes" in roots and self.graph is None:
            raise ValueError("the state has a task graph, and graph is not set")
        missing = [name for name in self.springs.names if f"fisher/{name}" not in state]
        if "fisher" in roots and missing:
            raise ValueError(
                f"the state has no importance of {missing[0]}: was it kept with another value of `protect`?"
            )
        super().load_state_dict(state)

    def _measured(self, task: Task) -> Iterator[tuple[str, Tensor]]:
        """F_t, a tensor at a time: of what was estimated on the way, else by a pass over the rows."""
        if self._running is not None and self._running.count:
            examples = self._running.count * len(task.order()[: self.rows])
            self.boundary = {"estimates": self._running.count, "rows": examples, "examples": examples}
            yield from self._running.means()
            return
        yield from self.springs.importance(task, self.at_once, seed=self.boundary_seed, **self.choice.sweep)
        tally = self.springs.tally
        self.boundary = {"rows": tally.looked, "examples": tally.examples}
        if math.isfinite(tally.error):
            self.boundary["error"] = tally.error

    def _glance(self, task: Task, numbers: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
        """F on the rows ``numbers`` (n,) alone."""
        options = self.choice.sweep | {"samples": None}
        return self.springs.importance(part_of(task, numbers, self.rows), self.at_once, seed=seed, **options)

    def _regroup(self, task: Task) -> None:
        """Cluster the units by their importance on mini-batches of ``task``, and give each cluster its strength."""
        self.members, self.factors = {}, {}
        if self.groups == 1 or not self.exponent:
            return
        batches = probes(task, self.probes, self.rows, self._seed(PROBE))
        glances = (self._glance(task, numbers, self._seed(PROBE, i)) for i, numbers in enumerate(batches, 1))
        sums = torch.stack([self._units.sums(glance) for glance in glances], 1)
        totals = self._units.sums(self.fisher.items())
        counts = self._units.sums((name, torch.ones_like(F)) for name, F in self.fisher.items())
        groups = None if self.groups == "auto" else self.groups
        ids = spectral_groups(signatures(sums / counts[:, None]), groups, self.assign, self._seed(CLUSTER))
        factors = group_factors(totals, counts, ids, self.exponent)
        self.boundary["groups"] = int(ids.max()) + 1
        if not ids.any():
            said = f"a single group was found after {task.name!r}: all weights are protected with the same strength"
            warnings.warn(said, stacklevel=4)
            return
        self.members = self._units.by_row(ids)
        self.factors = {name: c.to(self.fisher[name]) for name, c in self._units.by_row(factors).items()}

    def _rise(self) -> Tensor:
        springs = torch.stack(self.springs.rises(self.fisher, self.anchor, self.factors)).sum()
        return springs if self._pull is None else springs + self._pull()

    def _tied(self, task: Task) -> Callable[[], Tensor] | None:
        """What the graph adds to the rise since now, as a function of the present weights."""
        seed = self._seed(EDGE)
        numbers, nodes = task.order(seed)[: self.probes * self.rows], dict(sorted(self.nodes.items()))
        if self.graph == "fisher":
            earlier = {name: node["fisher"] for name, node in nodes.items()}
            likeness = fisher_overlaps(self._glance(task, numbers, seed), earlier)
        else:
            layer, likeness = list(self.sites.values())[-1].layer, {}
            rows = part_of(task, numbers, self.rows).train
            here = layer_features(self.model, layer, rows, task.forward)
            for name, node in nodes.items():
                with self.springs.at(node["anchor"]):
                    likeness[name] = linear_cka(here, layer_features(self.model, layer, rows, task.forward))
        self.edges = edges(likeness)
        if not self.edges:
            warnings.warn(f"no earlier task is like {task.name!r}: the task graph does nothing", stacklevel=3)
            return None
        mean = sum(float(self.fisher[name].sum(dtype=torch.float64)) for name in self.springs.names)
        mean /= sum(F.numel() for F in self.fisher.values())
        pull = self.springs.pull({name: nodes[name]["anchor"] for name in self.edges}, self.edges)
        return lambda: self.attraction * mean * pull()

    def _seed(self, purpose: int, number: int = 0) -> int:
        return hash((self.boundary_seed, purpose, number)) % 2**63
