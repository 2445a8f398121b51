"""What a Trainer trains on, read as a task: its rows, how they make a batch, and their likelihood."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from retain.task import IGNORED, CrossEntropy, SquaredError, Task, aligned, evaluating

# The trainers of TRL whose likelihood is known, and everything else that is built on Trainer is not.
KNOWN = ("SFTTrainer", "DPOTrainer", "GRPOTrainer", "Trainer")
DRAWN = 512  # prompts for which completions are drawn


def kind_of(trainer: Any) -> str:
    """The name in ``KNOWN`` that a trainer goes by.

    Raises:
        ValueError: one of TRL's others.
    """
    for cls in type(trainer).__mro__:
        if cls.__name__ in KNOWN:
            return cls.__name__
        if cls.__module__.startswith("trl."):
            break
    raise ValueError(
        f"{type(trainer).__name__} has no likelihood that is known here; known: {', '.join(KNOWN)}. Give retain.learn "
        "a Task, whose loss says it, or use ContinualCallback(method)"
    )


def task_of(trainer: Any, task: str | Task) -> Task:
    """The rows of ``trainer`` as a task of that name; a ``Task`` is taken as it is.

    Of DPO these are the chosen completions. Of GRPO they are completions that the model, as it is now, draws for
    prompts, ``DRAWN`` of them or all.

    Raises:
        ValueError: rows that cannot be counted, or a loss that does not say what the likelihood is.
    """
    if isinstance(task, Task):
        return task
    kind, loader = kind_of(trainer), trainer.get_train_dataloader()
    rows, collate = loader.dataset, loader.collate_fn
    if kind == "GRPOTrainer":
        return Task(task, _drawn(trainer, rows), collate=_padded(trainer.processing_class.pad_token_id))
    if kind == "DPOTrainer":
        return Task(task, rows, collate=_Chosen(collate))
    if kind == "SFTTrainer":
        if getattr(collate, "padding_free", False):
            rows, collate = Documents(rows), dataclasses.replace(collate, padding_free=False)
        return Task(task, rows, collate=collate)
    return Task(task, rows, collate=collate, loss=_loss_of(trainer, rows, collate))


def target_tokens(model: Any, task: Task) -> float:
    """Target tokens of a row of ``task``, on average over ``DRAWN`` rows or all; 1 where a row has one label."""
    counts = []
    for _, batch in task.batches(16, DRAWN):
        labels = batch["labels"] if isinstance(batch, Mapping) else batch[1]
        if labels.dim() != 2 or labels.is_floating_point():
            return 1.0
        counts.append((aligned(model, labels.unsqueeze(-1), labels)[1] != IGNORED).sum(1))
    return max(float(torch.cat(counts).float().mean()), 1.0)


def _loss_of(trainer: Any, rows: Any, collate: Callable) -> CrossEntropy | SquaredError:
    problem = getattr(getattr(trainer.model, "config", None), "problem_type", None)
    if trainer.compute_loss_func is not None or problem == "multi_label_classification":
        what = f"problem_type={problem!r}" if problem else "a compute_loss_func"
        raise ValueError(
            f"the trainer has {what}, which does not say what the likelihood of a row is: give retain.learn "
            "Task(name, trainer.train_dataset, collate=trainer.data_collator, loss=...)"
        )
    try:
        floats = collate([rows[0]])["labels"].is_floating_point()
    except TypeError as error:
        raise ValueError(
            f"a task needs rows that can be counted and read again; a {type(rows).__name__} cannot"
        ) from error
    return SquaredError() if floats else CrossEntropy()


class Documents:
    """The documents of packed rows, each a row of its own, as they attend to themselves alone."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        lengths = rows["seq_lengths"] if "seq_lengths" in rows.column_names else [[len(x)] for x in rows["input_ids"]]
        self.places = [(i, sum(row[:k]), sum(row[: k + 1])) for i, row in enumerate(lengths) for k in range(len(row))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, start, stop = self.places[number]
        found = self.rows[row]
        return {key: found[key][start:stop] for key in ("input_ids", "labels") if key in found}


class _Chosen:
    """The chosen half of a batch of preferences, with the prompt unlabelled."""

    def __init__(self, collate: Callable) -> None:
        self.collate = collate

    def __call__(self, rows: list) -> dict[str, Tensor]:
        batch, n = self.collate(rows), len(rows)
        tokens, mask, completion = (batch[key][:n] for key in ("input_ids", "attention_mask", "completion_mask"))
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(completion == 0, IGNORED)}


def _drawn(trainer: Any, rows: Any) -> list[dict[str, Tensor]]:
    """A completion of each prompt, drawn as the trainer draws them."""
    tokenizer, device = trainer.processing_class, next(trainer.model.parameters()).device
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(trainer.args.seed))[:DRAWN].sort().values
    size, found = trainer.args.per_device_train_batch_size, []
    with torch.no_grad(), evaluating(trainer.model):
        torch.manual_seed(trainer.args.seed)
        for part in chosen.split(size):
            prompts = _tokens(tokenizer, [rows[int(i)]["prompt"] for i in part]).to(device)
            width = prompts["input_ids"].shape[1]
            out = trainer.model.generate(**prompts, generation_config=trainer.generation_config)
            ends = torch.as_tensor(trainer.generation_config.eos_token_id, device=device).reshape(-1)
            for tokens, mask in zip(out, prompts["attention_mask"], strict=True):
                drawn = tokens[width:]
                over = torch.isin(drawn, ends).cumsum(0)
                drawn = drawn[: int((over == 0).sum()) + 1].cpu()  # the token that ends it belongs to it
                prompt = tokens[:width][mask.bool()].cpu()
                labels = torch.cat([torch.full_like(prompt, IGNORED), drawn])
                found.append({"input_ids": torch.cat([prompt, drawn]), "labels": labels})
    return found


def _tokens(tokenizer: Any, prompts: list) -> Any:
    """Prompts, plain or of messages, padded on the left, where completions do not go."""
    options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    options["return_token_type_ids"] = False
    if isinstance(prompts[0], str):
        return tokenizer(prompts, **options)
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    return tokenizer(texts, add_special_tokens=False, **options)


def _padded(pad: int) -> Callable[[list], dict[str, Tensor]]:
    def collate(rows: list) -> dict[str, Tensor]:
        stack = torch.nn.utils.rnn.pad_sequence
        ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
        return {
            "input_ids": stack(ids, True, pad),
            "attention_mask": stack([torch.ones_like(x) for x in ids], True),
            "labels": stack(labels, True, IGNORED),
        }

    return collate
