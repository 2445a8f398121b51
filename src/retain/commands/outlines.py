"""What a run would train, before there are weights: an adapted model on torch's meta device, and a forward through it.

The model is built from its config.json, the adapter is added, and the forward of one example is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from retain.config import ModelConfig
from retain.forecasters import CHANNELS, FORECASTS, check_forecaster
from retain.heads import final_classifier
from retain.hf import CLASSES, TASK_TYPES, load_processor, spared_by
from retain.lora import add_lora, sites
from retain.pipelines import bare_unet
from retain.sections import DRAWS
from retain.task import has_decoder

META = torch.device("meta")
PIXELS = 224  # a side of an image, where the model's configuration does not say


@dataclass(frozen=True)
class Outline:
    """An adapted model without weights, and one example's way through it.

    Attributes:
        model: a peft model on the meta device.
        longest: tokens that the model has positions for, where it says so.
        example: what one example is: so many tokens, pixels or steps.
        tokens: how many; 0 for images and series.
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


def outline(
    model: ModelConfig, lora: Mapping[str, Any], classes: int, length: int, usual: float | None = None
) -> Outline:
    """The adapted model that a run would train, of ``classes`` if any, and an example of at most ``length`` tokens.

    An example has ``usual`` tokens, or as many as it may have.

    Raises:
        ValueError: no configuration of a model, or what ``add_lora`` refuses.
    """
    if model.kind == DRAWS:
        return _of_latents(model, lora)
    try:
        config = AutoConfig.from_pretrained(model.path, num_labels=classes, trust_remote_code=False)
        dtype = config.dtype or "float32" if model.dtype in (None, "auto") else model.dtype
        with META:
            base = _bare(model, config, dtype)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"no configuration of a {model.kind} model at {model.path!r}: {reason}") from error
    if model.kind == FORECASTS:
        with META:
            adapted = add_lora(base, **lora)
        past = torch.zeros(1, config.context_length, 1)
        row, example = past.nbytes + 4 * config.prediction_length, f"{config.context_length} steps of a channel"
        return Outline(adapted, None, example, 0, row, *_way(adapted, past_values=past))
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


def _bare(model: ModelConfig, config: Any, dtype: Any) -> Any:
    """The model of ``config`` in ``dtype``."""
    if model.kind != FORECASTS:
        return CLASSES[model.kind][0].from_config(config, dtype=dtype)
    check_forecaster(model.path, config)
    config.update(CHANNELS)
    return CLASSES[model.kind][0](config).to(getattr(torch, str(dtype).removeprefix("torch.")))


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


def _of_latents(model: ModelConfig, lora: Mapping[str, Any]) -> Outline:
    """The outline of a UNet: an example is one picture's latents, at one timestep."""
    pipeline = load_processor(model.path, model.kind)
    with META:
        adapted = add_lora(bare_unet(model.path, model.dtype), **lora)
    side = model.resolution or pipeline.side
    shape, dtype = (1, pipeline.channels, *[side // pipeline.factor] * 2), next(adapted.parameters()).dtype
    words = torch.zeros(1, pipeline.tokens, pipeline.width, dtype=dtype)
    example: dict[str, Any] = {"sample": torch.zeros(shape, dtype=dtype), "encoder_hidden_states": words}
    row = 4 * sum(x.numel() for x in example.values())
    way = _way(adapted, **example, timestep=torch.zeros(1))
    return Outline(adapted, None, f"{side} x {side} pixels", 0, row, *way)


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
