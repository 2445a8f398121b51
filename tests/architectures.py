"""Tiny, random models of every architecture that is promised, rows for them, and a plain forward of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor, nn

import adapters
import models
from models import CLASSES, VOCABULARY
from oracles import outputs_of
from retain.task import AmongTexts, CrossEntropy, Draws, Forward, Loss, NoisePrediction, SquaredError, Task, forward

Batch = dict[str, Tensor]
WIDTH, IMAGE = 16, models.VOCABULARY - 1  # IMAGE: the token that stands for a piece of an image
BODY: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WORDS = BODY | {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
DECODER = WORDS | {"num_key_value_heads": 1, "pad_token_id": 0, "head_dim": 8}
PIXELS = BODY | {"image_size": 8, "patch_size": 4}
HEAD = {"target_modules": "all-linear", "exclude_modules": ["classifier"], "modules_to_save": ["classifier"]}
TEXTS = {"input_ids": torch.tensor([[3, 7, 1, IMAGE], [5, 2, 7, IMAGE], [9, 4, 6, IMAGE]])}  # IMAGE ends a text here


@dataclass(frozen=True)
class Case:
    """A model without an adapter, what of it is adapted, a batch of rows, and how outputs come of them."""

    build: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], Batch]
    lora: dict[str, Any] = field(default_factory=lambda: {"target_modules": "all-linear"})
    loss: Loss = field(default_factory=CrossEntropy)
    forward: Forward = forward
    plain: Callable[[Any, Batch], tuple[Tensor, Tensor]] = outputs_of
    one_by_one: bool = False

    def bare(self) -> Any:
        """The model without an adapter, without dropout, its batch norms' statistics fixed."""
        model = models.seeded(self.build)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = 0.0
        return model.eval()

    def model(self) -> PeftModel:
        return models.adapted(self.bare(), **{"r": 2, "lora_alpha": 4} | self.lora)

    def task(self, name: str = "a", seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
        """Five rows in two batches."""
        generator = torch.Generator().manual_seed(seed)
        batches = [self.batch(n, generator) for n in (3, 2)]
        batches = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()} for batch in batches]
        return Task(name, batches, loss=self.loss, forward=self.forward, one_by_one=self.one_by_one)


def tokens(n: int, generator: torch.Generator, length: int = 6) -> Batch:
    """A prompt of two tokens, and no padding."""
    ids = torch.randint(1, IMAGE, (n, length), generator=generator)
    labels = ids.clone()
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def sequences(n: int, generator: torch.Generator) -> Batch:
    """Tokens and a sequence to answer with, of other length, whose end is padding."""
    answer = torch.randint(1, IMAGE, (n, 4), generator=generator)
    answer[0, 3:] = -100
    return tokens(n, generator) | {"labels": answer}


def classified(n: int, generator: torch.Generator) -> Batch:
    return tokens(n, generator) | {"labels": torch.randint(CLASSES, (n,), generator=generator)}


def tagged(n: int, generator: torch.Generator) -> Batch:
    """A class for every token but the first."""
    tags = torch.randint(CLASSES, (n, 6), generator=generator)
    tags[:, 0] = -100
    return tokens(n, generator) | {"labels": tags}


def scored(n: int, generator: torch.Generator) -> Batch:
    return tokens(n, generator) | {"labels": torch.randn(n, generator=generator)}


def images(n: int, generator: torch.Generator) -> Batch:
    pixels = torch.randn(n, 3, 8, 8, generator=generator)
    return {"pixel_values": pixels, "labels": torch.randint(CLASSES, (n,), generator=generator)}


def poses(n: int, generator: torch.Generator) -> Batch:
    """Images, each with three numbers to find."""
    return images(n, generator) | {"labels": torch.randn(n, 3, generator=generator)}


def windows(n: int, generator: torch.Generator) -> Batch:
    """24 steps of a channel, and the 6 after them."""
    rows = torch.randn(n, 30, 1, generator=generator).cumsum(1)
    return {"past_values": rows[:, :24], "labels": rows[:, 24:]}


def speech(n: int, generator: torch.Generator) -> Batch:
    answer = torch.randint(1, IMAGE, (n, 4), generator=generator)
    return {"input_features": torch.randn(n, 4, 16, generator=generator), "labels": answer}


def captioned(n: int, generator: torch.Generator) -> Batch:
    """Four pieces of an image, then text."""
    rows = tokens(n, generator)
    pieces = torch.full((n, 4), IMAGE)
    ids, labels = (torch.cat(x, 1) for x in ([pieces, rows["input_ids"]], [0 * pieces - 100, rows["labels"]]))
    pixels = torch.randn(n, 3, 8, 8, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def digits(n: int, generator: torch.Generator) -> Batch:
    """Small pictures by number; the batches of a task have 3 and 2."""
    first = 0 if n == 3 else 3
    return {"sample": torch.randn(n, 1, 8, 8, generator=generator), "row": torch.arange(first, first + n)}


def labelled_digits(n: int, generator: torch.Generator) -> Batch:
    return digits(n, generator) | {"class_labels": torch.randint(CLASSES, (n,), generator=generator)}


def unshifted(model: Any, row: Batch) -> tuple[Tensor, Tensor]:
    return model(**{key: v for key, v in row.items() if key != "labels"}).logits, row["labels"]


def forecast(model: Any, row: Batch) -> tuple[Tensor, Tensor]:
    return model(past_values=row["past_values"]).prediction_outputs, row["labels"]


def regressed(model: Any, row: Batch) -> tuple[Tensor, Tensor]:
    logits, targets = unshifted(model, row)
    return logits[:, 0], targets


def answered(model: Any, row: Batch) -> tuple[Tensor, Tensor]:
    """The decoder reads the start token and all labels but the last, padding for what is left out."""
    start = torch.full_like(row["labels"][:, :1], model.config.decoder_start_token_id)
    read = torch.cat([start, row["labels"][:, :-1]], 1)
    read[read == -100] = model.config.pad_token_id
    return unshifted(model, row | {"decoder_input_ids": read})


def compared(model: Any, row: Batch) -> tuple[Tensor, Tensor]:
    return model(pixel_values=row["pixel_values"], **TEXTS).logits_per_image, row["labels"]


def denoised(model: Any, row: Batch) -> tuple[Tensor, Tensor]:
    """sqrt(a) x + sqrt(1 - a) noise, the noise and its time drawn by the row's number."""
    clean, one = row["sample"], torch.ones(1, dtype=torch.bool)
    time = (Draws(row["row"], 0).uniform(one) * 50).long()
    noise = Draws(row["row"], 1).normal(torch.ones_like(clean, dtype=torch.bool), clean).view_as(clean)
    a = scheduler().alphas_cumprod[time].to(clean).view(-1, 1, 1, 1)
    named = {key: v for key, v in row.items() if key not in ("sample", "row")}
    return model(a.sqrt() * clean + (1 - a).sqrt() * noise, time, **named).sample[:, :1], noise


@cache
def scheduler() -> Any:
    import diffusers  # which takes seconds: not before a test asks for it

    return diffusers.DDPMScheduler(num_train_timesteps=50)


def denoising(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    return NoisePrediction(scheduler())(model, batch)


def of(model: type, config: type, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: model(config(**settings))


def llava() -> nn.Module:
    text, vision = hf.LlamaConfig(**DECODER), hf.CLIPVisionConfig(**PIXELS)
    config = hf.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-1, image_seq_length=4
    )
    return hf.LlavaForConditionalGeneration(config)


def unet() -> nn.Module:
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def dit() -> nn.Module:
    import diffusers

    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,  # a learned variance, too
        num_layers=1,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
        norm_num_groups=4,
    )


T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
WHISPER = {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
WHISPER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 4, "max_source_positions": 8}
WHISPER |= {"max_target_positions": 16, "pad_token_id": 0, "decoder_start_token_id": 1, "vocab_size": VOCABULARY}
CLIP = {"text_config": WORDS | {"eos_token_id": IMAGE}, "vision_config": PIXELS, "projection_dim": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
KINDS = {"num_labels": CLASSES}
DIFFUSION: dict[str, Any] = {"loss": SquaredError(), "forward": denoising, "plain": denoised}

CASES = {
    "llama": Case(of(hf.LlamaForCausalLM, hf.LlamaConfig, **DECODER), tokens),
    "mistral": Case(of(hf.MistralForCausalLM, hf.MistralConfig, **DECODER), tokens),
    "gemma": Case(of(hf.GemmaForCausalLM, hf.GemmaConfig, **DECODER), tokens),
    "qwen2": Case(of(hf.Qwen2ForCausalLM, hf.Qwen2Config, **DECODER), tokens),
    "qwen3": Case(of(hf.Qwen3ForCausalLM, hf.Qwen3Config, **DECODER), tokens),
    "gpt2": Case(
        of(hf.GPT2LMHeadModel, hf.GPT2Config, **GPT2, bos_token_id=None, eos_token_id=None),
        tokens,
        {"target_modules": "all-linear", "fan_in_fan_out": True},
    ),
    "t5": Case(of(hf.T5ForConditionalGeneration, hf.T5Config, vocab_size=VOCABULARY, **T5), sequences, plain=answered),
    "whisper": Case(of(hf.WhisperForConditionalGeneration, hf.WhisperConfig, **WHISPER), speech, plain=answered),
    "bert": Case(of(hf.BertForSequenceClassification, hf.BertConfig, **WORDS, **KINDS), classified, HEAD),
    "roberta": Case(
        of(hf.RobertaForSequenceClassification, hf.RobertaConfig, **WORDS, **KINDS),
        classified,
        {"target_modules": ["query", "key", "value"], "modules_to_save": ["classifier"]},
    ),
    "albert, one layer met twice": Case(
        of(hf.AlbertForSequenceClassification, hf.AlbertConfig, **WORDS, **KINDS, embedding_size=8), classified, HEAD
    ),
    "bert, token classification": Case(
        of(hf.BertForTokenClassification, hf.BertConfig, **WORDS, **KINDS), tagged, HEAD, plain=unshifted
    ),
    "bert, regression": Case(
        of(hf.BertForSequenceClassification, hf.BertConfig, **WORDS, num_labels=1),
        scored,
        HEAD,
        loss=SquaredError(),
        plain=regressed,
    ),
    "vit": Case(of(hf.ViTForImageClassification, hf.ViTConfig, **PIXELS, **KINDS), images, HEAD),
    "dinov2": Case(of(hf.Dinov2ForImageClassification, hf.Dinov2Config, **PIXELS, **KINDS), images, HEAD),
    "resnet": Case(
        adapters.bare_resnet,
        images,
        {"target_modules": ["convolution"], "modules_to_save": ["classifier.1"]},
    ),
    "vit, poses": Case(
        of(hf.ViTForImageClassification, hf.ViTConfig, **PIXELS, **KINDS),
        poses,
        HEAD,
        loss=SquaredError(),
        plain=unshifted,
    ),
    "patchtst": Case(lambda: models.bare_patchtst(num_input_channels=1), windows, loss=SquaredError(), plain=forecast),
    "clip": Case(
        of(hf.CLIPModel, hf.CLIPConfig, **CLIP), images, forward=AmongTexts(TEXTS), plain=compared, one_by_one=True
    ),
    "llava": Case(llava, captioned),
    "unet": Case(unet, digits, {"target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]}, **DIFFUSION),
    "dit": Case(
        dit,
        labelled_digits,
        {"target_modules": ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]},
        **DIFFUSION,
    ),
}
