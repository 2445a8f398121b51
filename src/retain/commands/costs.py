"""What a run would take, before there are weights: shapes, bytes and flops of a model and of the forms of its Fisher.

Everything is asked of the code that will run, on tensors without content (torch's meta device): the model is built
from its config.json, the adapter is added, a forward is counted, every form collects and is differentiated.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from retain.config import ModelConfig
from retain.fisher.forms import FORMS, Collector, Form
from retain.fisher.forms.kronecker import is_low
from retain.heads import final_classifier
from retain.hf import CLASSES, TASK_TYPES, spared_by
from retain.lora import add_lora, sites
from retain.task import has_decoder

META = torch.device("meta")
PIXELS = 224  # a side of an image, where the model's configuration does not say
SAMPLE, PLACES, RANK = {"cpu": 768, "cuda": 4096}, 128, 16  # of a layer whose form is made to see how long it takes
PATIENCE = 0.15  # seconds to measure a rate


@dataclass(frozen=True)
class Outline:
    """An adapted model without weights, and one example's way through it.

    Attributes:
        model: a peft model on the meta device.
        longest: tokens that the model has positions for, where it says so.
        example: what one example is: so many tokens or pixels.
        tokens: how many; 0 for images.
        row: bytes of the longest example's inputs as they enter the model.
        flops: of one forward of one example.
        places: where one example meets each site: its tokens, or positions of a convolution.
        spared: bytes that ``model.quantization`` spares of the base's weights.
    """

    model: Any
    longest: int | None
    example: str
    tokens: int
    row: int
    flops: int
    places: dict[str, int]
    spared: float = 0

    @property
    def base_bytes(self) -> float:
        """Of the base model as it is loaded."""
        return self.bytes_of("base") - self.spared

    @property
    def shapes(self) -> Counter[tuple[int, int, int, int]]:
        """How many sites there are of each (out, in, rank, places)."""
        here = sites(self.model)
        return Counter((len(s.B), s.A.shape[1], len(s.A), self.places.get(name, 1)) for name, s in here.items())

    @property
    def dtype(self) -> torch.dtype:
        """Of the base model's weights."""
        return next(p.dtype for p in self.model.get_base_model().parameters())

    def bytes_of(self, kind: str) -> int:
        """Bytes of the "base" model, of the "adapter", or of the "heads" that train beside it."""
        factors = {id(p) for s in sites(self.model).values() for p in s.parameters}
        parameters = {
            "adapter": [p for p in self.model.parameters() if id(p) in factors],
            "heads": [p for p in self.model.parameters() if p.requires_grad and id(p) not in factors],
            "base": [p for n, p in self.model.named_parameters() if not p.requires_grad and "original_module" not in n],
        }
        return sum(p.nbytes for p in parameters[kind])


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


def outline(
    model: ModelConfig, lora: Mapping[str, Any], classes: int, length: int, usual: float | None = None
) -> Outline:
    """The adapted model that a run would train, of ``classes`` if any, and an example of at most ``length`` tokens.

    An example has ``usual`` tokens, or as many as it may have.

    Raises:
        ValueError: no configuration of a model, or what ``add_lora`` refuses.
    """
    try:
        config = AutoConfig.from_pretrained(model.path, num_labels=classes, trust_remote_code=False)
        dtype = config.dtype or "float32" if model.dtype in (None, "auto") else model.dtype
        with META:
            base = CLASSES[model.kind][0].from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"no configuration of a {model.kind} model at {model.path!r}: {reason}") from error
    longest = getattr(config, "max_position_embeddings", None)
    if model.kind in TASK_TYPES:
        spared = spared_by(base, model.quantization)
        with META:
            adapted = add_lora(base, **{"task_type": TASK_TYPES[model.kind], **lora})
        return replace(_of_tokens(adapted, longest, length, usual), spared=spared)
    with META:
        # What stands behind the backbone is new to most checkpoints, and is then saved with the adapter.
        inside = f"{base.base_model_prefix}."
        new = {n.rpartition(".")[0] for n, _ in base.named_parameters() if not n.startswith(inside)}
        new |= {final_classifier(base, classes), *(lora.get("modules_to_save") or ())}
        adapted = add_lora(base, **{**lora, "modules_to_save": sorted(new)})
    if model.kind == "text":
        return _of_tokens(adapted, longest, length, usual)
    size = getattr(config, "image_size", PIXELS)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(1, getattr(config, "num_channels", 3), height, width)
    example = f"{height} x {width} pixels"
    return Outline(adapted, longest, example, 0, pixels.nbytes, *_way(adapted, pixel_values=pixels))


def _of_tokens(adapted: Any, longest: int | None, length: int, usual: float | None) -> Outline:
    """The outline of a model that reads tokens; of an encoder-decoder, half of them are taken to be written."""
    most = min(length, longest or length)
    tokens = min(most, round(usual or most))
    row = 3 * 8 * most  # with token_type_ids and attention_mask
    ids = torch.zeros(1, tokens).long()
    example = {"input_ids": ids}
    if has_decoder(adapted):
        example = {"input_ids": ids[:, tokens // 2 :], "decoder_input_ids": ids[:, : max(tokens // 2, 1)]}
    return Outline(adapted, longest, f"{tokens} tokens", tokens, row, *_way(adapted, **example))


def _way(model: Any, **example: Tensor) -> tuple[int, dict[str, int]]:
    """Flops of a forward, and the places of every site."""
    places: dict[str, int] = {}

    def count(name: str, out: int) -> Any:
        return lambda _module, _inputs, output: places.update({name: places.get(name, 0) + output.numel() // out})

    handles = [s.layer.register_forward_hook(count(name, len(s.B))) for name, s in sites(model).items()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**{key: value.to(META) for key, value in example.items()})
    for handle in handles:
        handle.remove()
    return counter.get_total_flops(), places


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
