"""Tiny, seeded models with LoRA, and tasks for them: what the tests of every layer share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from retain.hooks import attach
from retain.lora import sites
from retain.method import Method
from retain.task import Task

Settings = dict[str, Any]
VOCABULARY, WIDTH, CLASSES = 48, 32, 3
BODY: Settings = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def seeded(build: Any, seed: int = 0) -> Any:
    """What ``build()`` returns when the global generator starts at ``seed``, which is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def bare_bert(seed: int = 0, **config: Any) -> nn.Module:
    """A sequence classifier of two layers, dropout 0.1, with a feed-forward layer wider than the rest."""
    settings = BODY | {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "num_labels": CLASSES} | config
    return seeded(lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**settings)), seed)


def bare_llama(seed: int = 0, **config: Any) -> nn.Module:
    """A causal language model of two layers with grouped queries: its key and value projections are not square."""
    settings = BODY | {"vocab_size": VOCABULARY, "num_key_value_heads": 1, "pad_token_id": 0} | config
    return seeded(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)), seed)


def bare_gpt2(seed: int = 0, **config: Any) -> nn.Module:
    """A causal language model of two layers whose linear maps are ``Conv1D``: weights (in, out)."""
    settings: Settings = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
    settings |= {"bos_token_id": None, "eos_token_id": None} | config
    return seeded(lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)), seed)


def bare_t5(seed: int = 0, **config: Any) -> nn.Module:
    """An encoder-decoder of a layer each, dropout 0.1."""
    settings: Settings = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 16, "d_ff": 48, "num_layers": 1}
    settings |= {"num_heads": 2, "decoder_start_token_id": 0} | config
    return seeded(lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**settings)), seed)


def bare_llava(seed: int = 0, **config: Any) -> nn.Module:
    """A language model of two layers that reads pictures of 8 by 8 pixels, a token for each of four patches."""
    text = BODY | {"vocab_size": VOCABULARY, "pad_token_id": 0} | config
    vision = BODY | {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1}
    settings = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_id=text["vocab_size"] - 1,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    return seeded(lambda: transformers.LlavaForConditionalGeneration(settings), seed)


def bare_vit(seed: int = 0, **config: Any) -> nn.Module:
    """An image classifier of two layers on 8 by 8 pixels, three colours, patches of 4."""
    settings = BODY | {"image_size": 8, "patch_size": 4, "num_labels": CLASSES} | config
    return seeded(lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**settings)), seed)


def bare_patchtst(seed: int = 0, **config: Any) -> nn.Module:
    """A forecaster of one layer with batch norms: 6 steps after 24, which it reads in patches of 6."""
    settings: Settings = {"context_length": 24, "prediction_length": 6, "patch_length": 6, "patch_stride": 6}
    settings |= {
        "d_model": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_input_channels": 3,
    }
    return seeded(lambda: transformers.PatchTSTForPrediction(transformers.PatchTSTConfig(**settings | config)), seed)


def adapted(base: nn.Module, seed: int = 0, **lora: Any) -> PeftModel:
    """``base`` under a fresh, seeded LoRA of rank 4 and scale 2; ``lora`` are keywords of ``LoraConfig``."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | lora)
    return seeded(lambda: get_peft_model(base, config), seed)


def tiny_bert(seed: int = 0, **lora: Any) -> PeftModel:
    """``bare_bert`` with LoRA on queries, values and the wide layer, and a trainable head."""
    targets = ["query", "value", "intermediate.dense"]
    return adapted(bare_bert(seed), seed, **{"task_type": "SEQ_CLS", "target_modules": targets} | lora)


def tiny_llama(seed: int = 0, **lora: Any) -> PeftModel:
    """``bare_llama`` with LoRA on queries, values and the down projection."""
    targets = ["q_proj", "v_proj", "down_proj"]
    return adapted(bare_llama(seed), seed, **{"task_type": "CAUSAL_LM", "target_modules": targets} | lora)


def tiny_gpt2(seed: int = 0, **lora: Any) -> PeftModel:
    """``bare_gpt2`` with LoRA on attention inputs and the wide layer."""
    fixed = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    return adapted(bare_gpt2(seed), seed, **fixed | lora)


def tiny_vit(seed: int = 0, **lora: Any) -> PeftModel:
    """``bare_vit`` with LoRA on every linear map of its blocks, and a trainable head."""
    fixed = {"target_modules": "all-linear", "exclude_modules": ["classifier"], "modules_to_save": ["classifier"]}
    return adapted(bare_vit(seed), seed, **fixed | lora)


class MLP(nn.Sequential):
    """4 -> 6 -> 5 -> classes, with a smooth bend between."""

    def __init__(self, seed: int = 0, classes: int = CLASSES) -> None:
        layers = seeded(lambda: [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, classes)], seed)
        super().__init__(*layers)


class Twice(nn.Module):
    """One linear map met twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(x).tanh()).tanh())


def tiny_mlp(seed: int = 0, **lora: Any) -> PeftModel:
    """``MLP`` with LoRA of rank 2 on its first two layers, and a trainable head."""
    return adapted(MLP(seed), seed, **{"r": 2, "target_modules": ["0", "2"], "modules_to_save": ["4"]} | lora)


def filled(model: PeftModel, seed: int = 1, size: float = 0.2) -> PeftModel:
    """``model`` with random factors instead of B = 0, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def layers(model: PeftModel) -> dict[str, nn.Module]:
    """The adapted layers by the names of their sites."""
    return {name: site.layer for name, site in sites(model).items()}


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name."""
    return dict(model.named_parameters())


def vectors(name: str = "vectors", sizes: Sequence[int] = (4, 4, 3), seed: int = 0, **task: Any) -> Task:
    """Batches of ``sizes`` rows of (4,) with labels that depend on them, as pairs for ``MLP``."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(4, CLASSES, generator=generator)
    rows = [torch.randn(n, 4, generator=generator) for n in sizes]
    return Task(name, [(x, (x @ turn).argmax(1)) for x in rows], **task)


def texts(name: str = "texts", sizes: Sequence[int] = (4, 4, 3), seed: int = 0, length: int = 7, **task: Any) -> Task:
    """Batches of token rows of mixed length, padded on the right, with a class that depends on the first token."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for n in sizes:
        tokens, mask = _ragged(n, length, generator)
        batches.append({"input_ids": tokens, "attention_mask": mask, "labels": (tokens[:, 0] + seed) % CLASSES})
    return Task(name, batches, **task)


def prompts(
    name: str = "prompts", sizes: Sequence[int] = (4, 4, 3), seed: int = 0, length: int = 7, **task: Any
) -> Task:
    """Batches for a causal model: padding and the first two tokens (the prompt) are labelled -100."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for n in sizes:
        tokens, mask = _ragged(n, length, generator)
        labels = tokens.masked_fill(mask == 0, -100)
        labels[:, :2] = -100
        batches.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return Task(name, batches, **task)


def images(name: str = "images", sizes: Sequence[int] = (4, 4, 3), seed: int = 0, **task: Any) -> Task:
    """Batches of images (3, 8, 8) with a class that depends on which colour is brightest."""
    generator = torch.Generator().manual_seed(seed)
    pixels = [torch.randn(n, 3, 8, 8, generator=generator) for n in sizes]
    return Task(name, [{"pixel_values": x, "labels": x.mean((2, 3)).argmax(1)} for x in pixels], **task)


def fit(method: Method, task: Task, learning_rate: float = 0.02, epochs: int = 1) -> None:
    """``method`` from boundary to boundary."""
    train(method, task, learning_rate, epochs)
    method.end_task(task)


def train(method: Method, task: Task, learning_rate: float = 0.02, epochs: int = 1) -> None:
    """``method`` up to the end of ``task``, beside AdamW in a plain loop over its batches."""
    method.begin_task(task)
    optimizer = torch.optim.AdamW(method.param_groups(), lr=learning_rate)
    handles = attach(optimizer, method)
    method.model.train()
    for batch in [*task.train] * epochs:
        loss = task.loss.nll(*task.forward(method.model, batch)).mean() + method.extra_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()


def _ragged(n: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (n, length) in [1, VOCABULARY) and their mask; each row has 4 to ``length`` of them, then padding 0."""
    tokens = torch.randint(1, VOCABULARY, (n, length), generator=generator)
    used = torch.randint(4, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < used).long()
    return tokens * mask, mask
