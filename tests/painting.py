"""A tiny Stable Diffusion pipeline of random weights, and files of pictures for it."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE, TOKENS = 8, 12


def save_pipeline(folder: Path) -> None:
    """Always the same weights. Latents of four channels, 4 by 4, of pictures of 8 by 8 pixels; a letter is a token."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = [*ascii_lowercase, *(f"{c}</w>" for c in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.PNDMScheduler(num_train_timesteps=100, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


class StableDiffusion:
    """What Stable Diffusion 1.5 says of itself, in place of its weights; with one layer a block instead of two."""

    UNET = {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "norm_num_groups": 32,
    }

    def save_pretrained(self, folder: str) -> None:
        save_pipeline(Path(folder))
        vae = {"block_out_channels": [128, 256, 512, 512]}
        for file, more in (
            ("unet/config.json", self.UNET),
            ("vae/config.json", vae),
            ("tokenizer/tokenizer_config.json", {"model_max_length": 77}),
        ):
            path = Path(folder, file)
            path.write_text(json.dumps(json.loads(path.read_text()) | more))


def style(folder: Path, name: str, each: int = 8, **columns: Any) -> str:
    """Rows of one picture each, stripes whose direction is the style; the file's path."""
    rows, image = [], folder / name
    image.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name))
    for i in range(each):
        shade = noise.integers(0, 60, (12, 9, 3)) + 150 * (np.arange(12)[:, None, None] // 3 % 2)
        pixels = shade if name == "lying" else shade.transpose(1, 0, 2)
        Image.fromarray(pixels.astype(np.uint8)).save(image / f"{i}.png")
        rows.append({"image": str(image / f"{i}.png")} | {key: value[i % len(value)] for key, value in columns.items()})
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)
