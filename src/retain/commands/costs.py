"""What a run would take, before there are weights: bytes, flops and seconds of the forms of a model's Fisher.

Everything is asked of the code that will run, on tensors without content (torch's meta device): every form collects
and is differentiated.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from retain.commands.outlines import META, Outline
from retain.fisher.forms import FORMS, Collector, Form
from retain.fisher.forms.kronecker import is_low

SAMPLE, PLACES, RANK = {"cpu": 768, "cuda": 4096}, 128, 16  # of a layer whose form is made to see how long it takes
PATIENCE = 0.15  # seconds to measure a rate


@dataclass(frozen=True)
class Cost:
    """What one form of the Fisher takes for a whole model.

    Attributes:
        kept: bytes from task to task, whatever their number.
        sums: bytes of the running sums of a pass.
        made: bytes of the form that is made of them, beyond theirs.
        measuring: flops of an example, beside its forward and backward.
        making: seconds to make the form of the sums and to add it to the earlier one.
        penalty: seconds of its value and gradient, once a training step.
    """

    kept: float = 0
    sums: float = 0
    made: float = 0
    measuring: float = 0
    making: float = 0
    penalty: float = 0

    @property
    def boundary(self) -> float:
        """Bytes at the end of a task: the form so far, the sums, and the new form."""
        return self.kept + self.sums + self.made

    def plus(self, other: Cost, times: int) -> Cost:
        """The cost of this and of ``times`` the other."""
        return Cost(*(a + times * b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Machine:
    """What this machine did when it was asked just now.

    Attributes:
        device: what computes.
        name: what that is.
        memory: bytes that it has; None where the system does not say.
        rates: flops a second of a large matrix product, by dtype.
    """

    device: torch.device
    name: str
    memory: int | None
    rates: Mapping[torch.dtype, float]

    def seconds(self, flops: float, dtype: torch.dtype = torch.float32) -> float:
        """Time for ``flops`` in ``dtype``."""
        return flops / self.rates[dtype]


def cost(form: str, options: Mapping[str, Any], found: Outline, device: torch.device) -> Cost:
    """What ``form`` with ``options`` (all of them) takes for the sites of ``found``, if they are on ``device``.

    Raises:
        ValueError: an option that the form refuses.
    """
    total, speed = Cost(), _speed(form, options, device)
    for shape, times in found.shapes.items():
        total = total.plus(_site_cost(form, options, *shape, *speed), times)
    return total


def _site_cost(
    name: str, options: Mapping[str, Any], out: int, in_: int, rank: int, places: int, making: float, penalty: float
) -> Cost:
    collector = FORMS[name].collector(out, in_, META, torch.float32, **options)
    with FlopCounterMode(display=False) as counter:
        collector.add(torch.empty(1, places, in_, device=META), torch.empty(1, places, out, device=META))
    sums = collector.sums()
    form = _blank(name, options, out, in_, collector)
    made = sum(t.nbytes for t in form.state_dict().values() if not any(t is total for total in sums))
    work = making * sum(t.numel() for t in sums), penalty * rank * form.nbytes
    return Cost(form.nbytes, sum(t.nbytes for t in sums), made, counter.get_total_flops(), *work)


def _blank(name: str, options: Mapping[str, Any], out: int, in_: int, collector: Collector) -> Form:
    """A form without content. Those that look at their sums to be made of them are made of a state instead."""
    if name == "factored":
        m = options["components"]
        state = {"rows": torch.empty(m, out, device=META), "columns": torch.empty(m, in_, device=META)}
        return FORMS[name].from_state_dict(state | {"fit": torch.ones(2, dtype=torch.float64)}, **options)
    if name == "kronecker":
        state = {}
        for side, n in (("left", out), ("right", in_)):
            low = is_low(n, options["rank"])
            state[side] = torch.empty(n, low or n, device=META)
            state |= {f"{side}.rest": torch.empty(n, device=META)} if low else {}
        return FORMS[name].from_state_dict(state, **options)
    return collector.done(1.0)


def _speed(name: str, options: Mapping[str, Any], device: torch.device) -> tuple[float, float]:
    """Seconds to make a form and add it to another, for each number that is summed, and of its penalty with gradients,
    for each byte that is kept and each rank of a LoRA: from a sample."""
    n = SAMPLE[device.type]
    collector = FORMS[name].collector(n, n, device, torch.float32, **options)
    generator = torch.Generator().manual_seed(0)
    x, d, A = (torch.randn(1, PLACES, n, generator=generator).to(device) for _ in range(3))
    collector.add(x, d)
    size, start = sum(t.numel() for t in collector.sums()), time.perf_counter()
    form = collector.done(1.0)
    form.accumulate(form)
    _wait(device)
    making = time.perf_counter() - start
    A = A[0, :RANK].requires_grad_()
    B = A.detach().T.contiguous().requires_grad_()
    often = _often(device, lambda: form.quadratic(B, A, (B.detach(), A.detach())).backward())
    return making / size, 1 / (often * RANK * form.nbytes)


def machine(dtypes: Iterable[torch.dtype]) -> Machine:
    """Measure what computes here, in under a second."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    rates = {dtype: _product_rate(device, dtype) for dtype in dict.fromkeys(dtypes)}
    if gpu:
        found = torch.cuda.get_device_properties(0)
        return Machine(device, found.name, found.total_memory, rates)
    threads = torch.get_num_threads()
    name = f"{threads} CPU thread{'s' * (threads > 1)}"
    memory = None if sys.platform == "win32" else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(device, name, memory, rates)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    return 2 * n**3 * _often(device, lambda: a @ a)


def _often(device: torch.device, work: Any) -> float:
    """How often a second ``work`` gets done: the best of many, since other processes only slow it down."""
    best, end = float("inf"), time.perf_counter() + PATIENCE
    while True:
        start = time.perf_counter()
        work()
        _wait(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return 1 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
