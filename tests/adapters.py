"""Adapted models of every kind that ``retain.lora`` supports, a past for them, and their dense twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import models
from retain.lora import sites
from retain.task import evaluating

# Of the random factors: large enough for the past to show in every model's logits.
SIZE = 0.3
PATTERNS = {"r": 4, "rank_pattern": {"query": 2, "1.intermediate.dense": 6}, "alpha_pattern": {"value": 3}}


def bare_resnet(seed: int = 0, **config: Any) -> nn.Module:
    """An image classifier of convolutions: 7 by 7, 3 by 3 and 1 by 1, with strides 1 and 2, and batch norms."""
    settings = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "num_labels": models.CLASSES}
    settings |= {"layer_type": "basic"} | config
    return models.seeded(lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(**settings)), seed)


def tiny_resnet(seed: int = 0, **lora: Any) -> PeftModel:
    """``bare_resnet`` with LoRA on every convolution, and a trainable head."""
    fixed = {"lora_alpha": 1, "target_modules": ["convolution"], "modules_to_save": ["classifier.1"]}
    return models.adapted(bare_resnet(seed), seed, **fixed | lora)


@dataclass(frozen=True)
class Case:
    """A model without an adapter, how it gets one, and what it reads."""

    bare: Callable[[], Any]
    adapted: Callable[..., PeftModel]
    task: Callable
    lora: dict[str, Any] = field(default_factory=dict)

    def model(self, **lora: Any) -> PeftModel:
        """A fresh model with random factors instead of B = 0."""
        return models.filled(self.adapted(**self.lora | lora), size=SIZE)

    @property
    def batch(self) -> Any:
        return self.task(sizes=(4,)).train[0]


CASES = {
    "bert": Case(models.bare_bert, models.tiny_bert, models.texts),
    "llama": Case(models.bare_llama, models.tiny_llama, models.prompts),
    "gpt2": Case(models.bare_gpt2, models.tiny_gpt2, models.prompts),
    "vit": Case(models.bare_vit, models.tiny_vit, models.images),
    "resnet": Case(bare_resnet, tiny_resnet, models.images),
    "patterns": Case(models.bare_bert, models.tiny_bert, models.texts, PATTERNS),
    "rslora": Case(models.bare_bert, models.tiny_bert, models.texts, PATTERNS | {"use_rslora": True}),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_past(model: PeftModel, folds: int = 1, rank: int | None = None) -> PeftModel:
    """``model`` with its random factors folded and new random factors, ``folds`` times."""
    for seed in range(folds):
        for site in sites(model).values():
            site.fold(generator(), rank)
        models.filled(model, seed=10 + seed, size=SIZE)
    return model


@torch.no_grad()
def outputs(model: nn.Module, batch: Any, **kwargs: Any) -> Tensor:
    """Logits of ``batch`` in eval mode."""
    with evaluating(model):
        if not isinstance(batch, Mapping):
            return model(batch[0], **kwargs)
        return model(**{k: v for k, v in batch.items() if k != "labels"}, **kwargs).logits


@torch.no_grad()
def twin(case: Case, changes: Mapping[str, Tensor]) -> nn.Module:
    """The model without an adapter whose weights were changed by the dense ``changes`` (out, in), by module name."""
    bare = case.bare()
    for name, change in changes.items():
        layer = bare.get_submodule(name)
        layer.weight += (change.T if isinstance(layer, Conv1D) else change).reshape(layer.weight.shape)
    return bare


def changes(model: PeftModel, present: bool = True) -> dict[str, Tensor]:
    """The dense weight change of every site, with or without the present adapter, from the raw tensors."""
    found = {}
    for name, site in sites(model).items():
        B, A = site.past
        found[name] = site.scale * (B @ A + (site.B @ site.A).detach() * present)
    return found


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
