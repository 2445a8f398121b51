"""What a language model answers on test rows: the texts that it writes, and the options that it finds likely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import GenerationConfig

from retain.batches import Padded
from retain.task import IGNORED, CrossEntropy, Task, evaluating, forward, has_decoder, on_device
from retain.wording import METRICS, Metric

OPTIONS = "option_accuracy"
TOKEN = 1 / 8  # of a forward of a whole row is what a token that is written takes, about


@dataclass(frozen=True, eq=False)
class Apart:
    """What calibrates the gauge where that is not what is scored.

    Attributes:
        tasks: those of the stream and its guard, by name, with other test rows.
        asked: of tasks by name, what a language model is asked on these rows.
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a model on the test rows of a task.

    Attributes:
        rows: with the columns ``prompt`` (ids) and ``answer`` (text); for options also ``options`` (the ids of each)
            and ``right``, the number of the one that is the answer.
        metrics: of ``wording.METRICS``, for the texts that the model writes.
        tokenizer: of the model.
        max_new_tokens: that it writes at most.
        options: whether it is to choose among them, too.
        pixels: what a model of pictures takes of those of rows, which have an ``image`` then.
    """

    rows: datasets.Dataset
    metrics: Sequence[Metric]
    tokenizer: Any
    max_new_tokens: int
    options: bool = False
    pixels: Callable[[Sequence[Any]], dict[str, Tensor]] | None = None

    def pictures(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What the model takes of the pictures of rows; nothing, if it takes none."""
        return {} if self.pixels is None else self.pixels(self.rows.select(numbers)["image"])

    @property
    def work(self) -> float:
        """What all of it takes, about, in forwards of a row."""
        writing = 1 + TOKEN * self.max_new_tokens if self.metrics else 0
        return len(self.rows) * writing + (sum(map(len, self.rows["options"])) if self.options else 0)


@torch.no_grad()
def answers(
    model: Any, asked: Asked, *, batch_size: int = 8, advance: Callable[[float], None] = lambda work: None
) -> dict[str, Tensor]:
    """How good the answers of ``model`` are: values (n,) in [0, 1] of every row, by metric; higher is better.

    Texts are written greedily, from the prompt alone, up to an end of text or turn. The option that is chosen has the
    highest log-likelihood, summed over its tokens and the end after it.

    Args:
        model: that writes, with the coefficients to test in place.
        asked: rows and metrics.
        batch_size: rows, or options, at a time.
        advance: told of every bit of ``asked.work`` that is done.
    """
    found = dict[str, Tensor]()
    with evaluating(model):
        if asked.metrics:
            pairs = list(zip(_written(model, asked, batch_size, advance), asked.rows["answer"], strict=True))
            for name in asked.metrics:
                found[name] = torch.tensor([METRICS[name](mine, wanted) for mine, wanted in pairs])
        if asked.options:
            right = torch.tensor(asked.rows["right"])
            found[OPTIONS] = (_chosen(model, asked, batch_size, advance) == right).float()
    return found


def _written(model: Any, asked: Asked, batch_size: int, advance: Callable[[float], None]) -> list[str]:
    """What ``model`` writes after every prompt; those of like length are run together.

    They are padded on the side on which nothing is written: of an encoder-decoder, which begins anew, on the right.
    """
    base, prompts = getattr(model, "get_base_model", lambda: model)(), asked.rows["prompt"]
    ends, device = _ends(base, asked.tokenizer), next(base.parameters()).device
    padding = asked.tokenizer.pad_token_id
    apart = has_decoder(base)
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=asked.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=padding,
        decoder_start_token_id=base.config.decoder_start_token_id if apart else None,
    )
    order, texts = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [""] * len(prompts)
    with _plain(base):
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            length = max(len(prompts[i]) for i in chunk)
            ids = torch.tensor([_filled(prompts[i], length, padding, apart) for i in chunk])
            mask = torch.tensor([_filled([1] * len(prompts[i]), length, 0, apart) for i in chunk])
            batch = {"input_ids": ids, "attention_mask": mask} | asked.pictures(chunk)
            found = base.generate(**{k: v.to(device) for k, v in batch.items()}, generation_config=greedy)
            for i, row in zip(chunk, found[:, 1 if apart else length :].cpu(), strict=True):
                texts[i] = asked.tokenizer.decode(row, skip_special_tokens=True).strip()
            advance(len(chunk) * (1 + TOKEN * asked.max_new_tokens))
    return texts


def _filled(tokens: list[int], length: int, padding: int, right: bool) -> list[int]:
    """``tokens`` with ``padding`` up to ``length``, on the ``right`` or on the left."""
    fill = [padding] * (length - len(tokens))
    return tokens + fill if right else fill + tokens


def _ends(base: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the checkpoint's generation config names."""
    named = getattr(base.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return list(dict.fromkeys(token for token in found if token is not None))


@contextmanager
def _plain(base: Any) -> Iterator[None]:
    """The block generates without what a checkpoint has of penalties, temperatures and forced tokens."""
    kept, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = kept


def _chosen(model: Any, asked: Asked, batch_size: int, advance: Callable[[float], None]) -> Tensor:
    """The number (n,) of the likeliest option of every row."""
    collate, device = Padded(asked.tokenizer.pad_token_id), next(model.parameters()).device
    counts, apart = [len(options) for options in asked.rows["options"]], has_decoder(model)
    numbers = [row for row, count in enumerate(counts) for _ in range(count)]
    rows = [
        {"input_ids": prompt, "labels": option}
        if apart
        else {"input_ids": [*prompt, *option], "labels": [IGNORED] * len(prompt) + option}
        for prompt, options in zip(asked.rows["prompt"], asked.rows["options"], strict=True)
        for option in options
    ]
    order, losses = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"])), torch.empty(len(rows))
    for start in range(0, len(rows), batch_size):
        chunk = order[start : start + batch_size]
        batch = on_device(collate([rows[i] for i in chunk]) | asked.pictures([numbers[i] for i in chunk]), device)
        losses[chunk] = CrossEntropy().nll(*forward(model, batch)).float().cpu()
        advance(len(chunk))
    return torch.tensor([int(each.argmin()) for each in losses.split(counts)])
