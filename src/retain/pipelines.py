"""Latent diffusion pipelines of diffusers: the UNet that is trained, and what makes latents and words of its rows.

Known is the form of Stable Diffusion 1 and 2 (arXiv 2112.10752): a folder or a hub name with a file model_index.json
beside the folders of ``PARTS``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retain.silence import silenced

PARTS = {  # what a pipeline must have, by its classes
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "scheduler": None,  # any: trained is under all of its timesteps, as DDPM has them
}
SUBFOLDER = "_subfolder"  # under which a UNet's configuration says where in its pipeline it lies
RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")  # as transformers calls it, and used to
SAMPLED = 1024  # numbers of each tensor, by which weights are told apart


@dataclass(frozen=True, eq=False)
class Pipeline:
    """What is known of a pipeline before its weights are there.

    Attributes:
        path: a folder or a hub name.
        channels: of latents.
        factor: pixels to a side of a latent.
        side: of the pictures that its UNet was trained on, in pixels.
        width: numbers for a token of a text.
        tokenizer: of its text encoder.
        scheduler: how much noise a timestep has, for training.
    """

    path: str
    channels: int
    factor: int
    side: int
    width: int
    tokenizer: Any
    scheduler: Any

    @property
    def tokens(self) -> int:
        """Of every text, padded or cut."""
        return int(self.tokenizer.model_max_length)


def check_diffusers() -> None:
    """
    Raises:
        ValueError: it is not installed.
    """
    if find_spec("diffusers") is None:
        raise ValueError("model.kind 'text-to-image' needs diffusers: pip install 'retain[diffusion]'")


def load_pipeline(path: str, **_: Any) -> Pipeline:
    """The pipeline at ``path``; its weights stay where they are.

    Raises:
        OSError: there is none.
        ValueError: one of another form.
    """
    import diffusers
    from transformers import CLIPTokenizer

    index = diffusers.DiffusionPipeline.load_config(path)
    for name, kind in PARTS.items():
        found = (index.get(name) or [None, None])[1]
        if found is None or kind not in (None, found) or index.get("text_encoder_2"):
            got = f"{index.get('_class_name')} whose {name} is {found}"
            known = ", ".join(f"{part} ({of})" for part, of in PARTS.items() if of)
            raise ValueError(f"{got}: known is the form of Stable Diffusion 1 and 2, {known}, and no other encoder")
    unet = diffusers.UNet2DConditionModel.load_config(path, subfolder="unet")
    vae = diffusers.AutoencoderKL.load_config(path, subfolder="vae")
    if unet["in_channels"] != vae["latent_channels"]:
        raise ValueError(
            f"its UNet takes {unet['in_channels']} channels and latents have {vae['latent_channels']}: it fills in or "
            "changes pictures, and takes more than noise and texts"
        )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return Pipeline(
        path,
        vae["latent_channels"],
        factor,
        factor * unet["sample_size"],
        unet["cross_attention_dim"],
        CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
        diffusers.DDPMScheduler.from_pretrained(path, subfolder="scheduler"),
    )


def load_unet(path: str, dtype: str | None = None, **_: Any) -> Any:
    """The UNet of the pipeline at ``path``, in float32 unless ``dtype`` says otherwise."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(path, subfolder="unet", torch_dtype=_dtype(dtype))
    unet.register_to_config(**{SUBFOLDER: "unet"})
    return unet


def recomputing(model: Any, arguments: Any) -> Any:
    """``arguments`` of a Trainer, which leave it to a model of diffusers to make activations anew in backward.

    Only where it trains: in eval mode a measurement has to see every layer once.
    """
    wanted = [name for name in RECOMPUTING if getattr(arguments, name, False)]
    base = getattr(model, "get_base_model", lambda: model)()
    if wanted and type(base).__module__.partition(".")[0] == "diffusers":
        base.enable_gradient_checkpointing(_in_training)
        arguments = copy(arguments)
        for name in wanted:
            setattr(arguments, name, False)
    return arguments


def _in_training(module: Any, *inputs: Any) -> Any:
    return checkpoint(module, *inputs, use_reentrant=False) if module.training else module(*inputs)


def bare_unet(path: str, dtype: str | None = None) -> Any:
    """The same without weights, on the device that is in use."""
    import diffusers

    unet = diffusers.UNet2DConditionModel
    with quiet():
        return unet.from_config(unet.load_config(path, subfolder="unet")).to(_dtype(dtype))


def _dtype(name: str | None) -> torch.dtype:
    found: torch.dtype = torch.float32 if name in (None, "auto") else getattr(torch, str(name))
    return found


class Encoders:
    """A pipeline's VAE and text encoder, frozen: pictures -> latents, texts -> what the UNet reads of them.

    Args:
        pipeline: of which.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        import diffusers
        from transformers import CLIPTextModel

        self.pipeline, self.device = pipeline, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path, exact = pipeline.path, torch.float32
        with quiet():
            self.vae = diffusers.AutoencoderKL.from_pretrained(path, subfolder="vae", torch_dtype=exact)
            self.text = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", dtype=exact)
        for model in (self.vae, self.text):
            model.to(self.device).requires_grad_(False).eval()

    @torch.no_grad()
    def latents(self, pictures: Sequence[Any], side: int) -> Tensor:
        """``pictures`` in RGB, resized and cut around their middle to ``side`` pixels -> (N, C, h, w) in float32.

        Means of the posterior times the VAE's ``scaling_factor``: no noise is drawn but that of the loss.
        """
        from PIL import ImageOps

        fitted = np.stack([np.asarray(ImageOps.fit(picture, (side, side))) for picture in pictures])
        pixels = torch.tensor(fitted, dtype=torch.float32, device=self.device).permute(0, 3, 1, 2) / 127.5 - 1
        found = self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor
        return found.cpu()

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """The last hidden states (N, tokens, width) of ``texts``, which are padded or cut to one length."""
        how = {"padding": "max_length", "max_length": self.pipeline.tokens, "truncation": True}
        read = self.pipeline.tokenizer(list(texts), return_tensors="pt", **how).to(self.device)
        mask = read.attention_mask if getattr(self.text.config, "use_attention_mask", False) else None
        return self.text(read.input_ids, attention_mask=mask)[0].cpu()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of evenly spaced numbers of all weights, of the words that are known, and of the scale of latents."""
        words = sorted(self.pipeline.tokenizer.get_vocab().items())
        digest = hashlib.sha256(f"{words} {self.vae.config.scaling_factor}".encode())
        for model in (self.vae, self.text):
            for name, p in sorted(model.named_parameters()):
                flat = p.flatten()
                taken = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].cpu().contiguous()
                digest.update(f"{name} {list(p.shape)}".encode() + taken.numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """The block shows no bar and no report."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging

    with silenced(of_diffusers), silenced(logging):
        yield
