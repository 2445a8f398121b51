"""Whether vLLM would load an adapter: the rules of its loader, held against a folder. vLLM itself is not run.

They are those of vLLM 0.33.0: ``peft_helper.py``, ``utils.py``, ``lora_model.py`` and ``model_manager.py`` of
``vllm/lora``, and ``vllm/config/lora.py``. Whether it knows the base model, and its layers by these names, is not
checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.adapterfile import read_adapter_config
from retain.intake import shapes as read_shapes
from retain.stock import PREFIX

VERSION = "0.33.0"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be; 16 unless it is said
DEFAULT = 16
HEADS = ("classifier", "score")
FACTOR = re.compile(r"\.lora_(?:[AB]\.weight|embedding_[AB])$")
HEAD = re.compile(rf"(?:^|\.)({'|'.join(HEADS)})\.(?:weight|bias)$")
# Keys of adapter_config.json that change what an adapter means, with the values under which it is a plain LoRA.
PLAIN = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica", "lora_ga"),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "use_bdlora": (None, {}),
    "use_qalora": (False,),
}
MERGE = "serve the merged model (model.merge_and_unload())"

Shapes = Mapping[str, list[int]]


@dataclass(frozen=True)
class Verdict:
    """What stands in the way of an adapter, each with a way around it, and the options of ``vllm serve`` that it needs.

    Attributes:
        obstacles: one line a rule that is broken; none: it would be loaded.
        remarks: what else has to be known.
        options: of ``vllm serve``, beside the base model and ``--lora-modules``.
    """

    obstacles: list[str]
    remarks: list[str]
    options: str


def judge(folder: str | Path) -> Verdict:
    """Hold the adapter in ``folder`` (adapter_config.json, adapter_model.safetensors) against the rules."""
    config = read_adapter_config(Path(folder, "adapter_config.json"))
    shapes = {name: list(shape) for name, shape in read_shapes(Path(folder, "adapter_model.safetensors")).items()}
    rank = max((shape[0] for name, shape in shapes.items() if "lora_A" in name), default=0)
    options = [f"--enable-lora --max-lora-rank {_step(rank)}"] if rank > DEFAULT else ["--enable-lora"]
    heads = {match[1]: shapes[name][0] for name in shapes if (match := HEAD.search(name))}
    if heads:
        options.append(f"--max-lora-cls-labels {max(heads.values())}")
    return Verdict(
        [*_unplain(config), *_encoding(config), *_unknown(config, shapes, heads), *_large(rank)],
        _remarks(config),
        " ".join(options),
    )


def _unplain(config: Mapping[str, Any]) -> list[str]:
    """Kinds of LoRA that vLLM does not have."""
    return [
        f"{key}={config[key]!r}: vLLM loads plain LoRA; train with {key}={plain[0]!r}, or {MERGE}"
        for key, plain in PLAIN.items()
        if key in config and config[key] not in plain
    ]


def _encoding(config: Mapping[str, Any]) -> list[str]:
    """Encoder-decoders of texts, of which ``vllm/model_executor/models/registry.py`` has none."""
    if config.get("task_type") != "SEQ_2_SEQ_LM":
        return []
    return [f"vLLM {VERSION} has no encoder-decoders that read texts (T5, BART): serve it with transformers and peft"]


def _unknown(config: Mapping[str, Any], shapes: Shapes, heads: Mapping[str, int]) -> list[str]:
    """Tensors that are no factors of linear layers."""
    found = []
    others = {_module(name) for name in shapes if not FACTOR.search(name) and not HEAD.search(name)}
    saved = {name for name in config.get("modules_to_save") or () if name not in HEADS}
    if whole := sorted(others | saved):
        found.append(
            f"modules_to_save: vLLM takes a linear `classifier` or `score`, and no other layer that was trained as a "
            f"whole; here {_some(whole)}: leave it out of training, or {MERGE}"
        )
    if len(heads) > 1:
        found.append(f"modules_to_save: vLLM takes one classifier, here are {_some(sorted(heads))}: {MERGE}")
    if maps := [name for name, shape in shapes.items() if FACTOR.search(name) and len(shape) != 2]:
        found.append(
            f"vLLM adapts linear layers, and here convolutions are adapted, {_some([_module(name) for name in maps])}: "
            f"leave them out with lora.exclude_modules, or {MERGE}"
        )
    return found


def _large(rank: int) -> list[str]:
    if rank <= RANKS[-1]:
        return []
    return [
        f"rank {rank}: vLLM takes {RANKS[-1]} at most; cap the past (method.rank), train a lower lora.r, or {MERGE}"
    ]


def _remarks(config: Mapping[str, Any]) -> list[str]:
    if not (config.get("rank_pattern") or config.get("alpha_pattern")):
        return []
    return [
        f"layers differ in rank or scale (rank_pattern, alpha_pattern): vLLM {VERSION} follows that, but 0.10 did not, "
        "and scaled such layers wrongly without a word"
    ]


def _module(tensor: str) -> str:
    """The name that the module of a ``tensor`` has in the base model."""
    return tensor.removeprefix(PREFIX).partition(".lora_")[0].removesuffix(".weight").removesuffix(".bias")


def _step(rank: int) -> int:
    """The least value of --max-lora-rank that has room for ``rank``, or the largest there is."""
    return next((step for step in RANKS if step >= rank), RANKS[-1])


def _some(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
