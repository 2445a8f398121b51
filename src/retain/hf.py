"""Hugging Face: loading a model with its adapter and heads, and training it through transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_bitsandbytes_available, logging

from retain.batches import check_packing, packed, tokens_of, with_decoder_inputs
from retain.callback import ContinualCallback
from retain.checkpoints import Latest, last_checkpoint
from retain.forecasters import CHANNELS, FORECASTS, check_forecaster, check_learned
from retain.gradients import NotFinite
from retain.heads import final_classifier, install_heads
from retain.lora import add_lora
from retain.method import Method
from retain.pipelines import check_diffusers, load_pipeline, load_unet, quiet, recomputing
from retain.sharding import keep_whole
from retain.silence import silenced
from retain.task import Task, aligned, forward, has_decoder, said_in
from retain.trainer import Forwarding, Saving

# kind of stream -> the transformers classes of its model and of what prepares its rows
CLASSES = {
    "text": (transformers.AutoModelForSequenceClassification, transformers.AutoTokenizer),
    "image": (transformers.AutoModelForImageClassification, transformers.AutoImageProcessor),
    "causal-lm": (transformers.AutoModelForCausalLM, transformers.AutoTokenizer),
    "seq2seq-lm": (transformers.AutoModelForSeq2SeqLM, transformers.AutoTokenizer),
    "image-text-to-text": (transformers.AutoModelForImageTextToText, transformers.AutoProcessor),
    FORECASTS: (transformers.PatchTSTForPrediction, transformers.AutoConfig),
}
DRAWS = "text-to-image"  # of diffusers
A_WEIGHT = {"4bit": 0.5 + 4 / 64, "8bit": 1}  # bytes; of 4 bits each 64 have a number beside them
# peft's names for models without heads
TASK_TYPES = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM", "image-text-to-text": "CAUSAL_LM"}


def load_processor(path: str, kind: str) -> Any:
    """The tokenizer or image processor of a model; of one that forecasts its configuration, which says how far; the
    ``Pipeline`` of one that draws.

    Raises:
        ValueError: there is none, or the model is one of another kind.
    """
    if kind == DRAWS:
        check_diffusers()
        with quiet():
            return _found(path, kind, load_pipeline)
    if kind in TASK_TYPES:
        config = _found(path, kind, transformers.AutoConfig.from_pretrained)
        if config.is_encoder_decoder != (kind == "seq2seq-lm"):
            what, other = ("an encoder-decoder", "seq2seq-lm") if config.is_encoder_decoder else ("none", "causal-lm")
            raise ValueError(
                f"model.kind is {kind!r}, and the {config.model_type} model at {path!r} is {what}: write {other!r}"
            )
    found = _found(path, kind, CLASSES[kind][1].from_pretrained)
    if kind == "image-text-to-text" and getattr(found, "image_token", None) is None:
        raise ValueError(f"model.kind is {kind!r}, and what prepares the rows of {path!r} takes no pictures")
    if kind == FORECASTS:
        check_forecaster(path, found)
    return found


def load_model(
    path: str,
    kind: str,
    sizes: Sequence[int],
    lora: dict[str, Any],
    *,
    own_heads: bool = True,
    dtype: str | None = None,
    quantization: str | None = None,
    seed: int = 0,
) -> Any:
    """A classification model with LoRA and, with ``own_heads``, one block of head rows for each entry of ``sizes``.

    The final classifier and layers that the checkpoint does not hold (its hidden layer) are saved with the adapter.
    A language model has neither heads nor use for ``sizes``; its base may be in "4bit" or "8bit". Neither has one that
    forecasts, or draws: of that it is the UNet.

    Raises:
        ValueError: no such model, or bitsandbytes is missing.
    """
    transformers.set_seed(seed)
    if kind == DRAWS:
        with quiet():
            return add_lora(_found(path, kind, load_unet, dtype=dtype), **lora)
    if kind in TASK_TYPES:
        few = {} if quantization is None else {"quantization_config": _bits(quantization)}
        base = _found(path, kind, CLASSES[kind][0].from_pretrained, dtype=dtype or "auto", **few)
        return add_lora(base, **{"task_type": TASK_TYPES[kind]} | lora)
    wanted = CHANNELS if kind == FORECASTS else {"num_labels": sum(sizes), "ignore_mismatched_sizes": True}
    load = partial(CLASSES[kind][0].from_pretrained, output_loading_info=True)
    base, report = _found(path, kind, load, dtype=dtype or "auto", **wanted)
    hold_batch_norms(base)
    if kind == FORECASTS:
        check_learned(path, report["missing_keys"])
        return add_lora(base, **lora)
    trained = {key.rpartition(".")[0] for key in report["missing_keys"]}
    trained.add(install_heads(base, sizes, seed) if own_heads else final_classifier(base, sum(sizes)))
    lora = {**lora, "modules_to_save": sorted(trained | set(lora.get("modules_to_save") or ()))}
    transformers.set_seed(seed)  # the draws of a head, which grows with tasks that come later, are not those of LoRA
    return add_lora(base, **lora)


def fit(
    model: nn.Module,
    task: Task,
    method: Method,
    arguments: TrainingArguments,
    *,
    head_learning_rate: float | None = None,
    packing: bool = False,
    not_finite: NotFinite = "stop",
    callbacks: Sequence[TrainerCallback] = (),
) -> int:
    """Train ``model`` on ``task`` through Trainer with ``method`` beside the optimizer, between its begin and end.

    The loss is the task's, as a mean over the examples (tokens, for sequences) of a whole optimizer step, whatever the
    number of processes; where the last rows of an epoch are too few for all of them, some rows count twice. A task's
    own ``forward`` is called on batches that are mappings; where these have ``labels``, those that are not -100 are
    what the mean is over. For
    sequences an extra loss in nats per example is divided by the target tokens of an example, on average, so that
    ``strength`` weighs a nat like a nat there too. With ``packing`` the rows of a batch stand end to end. A
    checkpoint left in ``arguments.output_dir`` by an interrupted training is continued.

    Returns:
        The optimizer steps that were taken here.

    Raises:
        FloatingPointError: the loss or a gradient is not finite, unless ``not_finite`` leaves such steps out.
        ValueError: the model lets packed rows see each other.
    """
    if packing:
        check_packing(model, task)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    groups = method.param_groups()
    if head_learning_rate is not None and len(groups) > 1:
        groups[-1]["lr"] = head_learning_rate
    for group in groups:
        group.setdefault("weight_decay", arguments.weight_decay)
    if limit := arguments.save_total_limit:
        arguments, callbacks = copy(arguments), [Latest(limit), *callbacks]
        arguments.save_total_limit = None
    if _all_have_rows(len(task.train), arguments):
        arguments.accelerator_config.even_batches = False
    arguments = recomputing(model, arguments)
    kind = Saving if task.forward is forward else partial(Forwarding, task.forward)
    trainer = kind(
        model,
        arguments,
        train_dataset=task.train,
        data_collator=packed if packing else _collate_of(model, task),
        compute_loss_func=_loss_of(model, task, not_finite),
        optimizer_cls_and_kwargs=(cls, {"params": groups, **options}),  # under FSDP it takes no optimizer
        callbacks=[beside := ContinualCallback(method, tokens_of(model, task), not_finite=not_finite), *callbacks],
    )
    beside.lead(trainer)
    keep_whole(trainer.accelerator, model)
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(Path(arguments.output_dir))
    before = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    steps = trainer.train(resume_from_checkpoint=checkpoint).global_step - before
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # of autocast: what follows sees what is saved
    return int(steps)


def _collate_of(model: nn.Module, task: Task) -> Callable[[list], Any] | None:
    """What makes batches of rows for Trainer, which keeps labels from a model whose own loss it does not take."""
    collate: Callable[[list], Any] | None = task.collate
    if collate is None or not has_decoder(model):
        return collate
    return lambda rows: with_decoder_inputs(model, collate(rows))


def _all_have_rows(rows: int, arguments: TrainingArguments) -> bool:
    """Whether each process finds some of ``rows`` in the last batch of an epoch, so that none need be repeated."""
    last = rows % (arguments.train_batch_size * arguments.world_size)
    return last > arguments.train_batch_size * (arguments.world_size - 1)


def _loss_of(model: nn.Module, task: Task, not_finite: NotFinite) -> Callable[..., Tensor]:
    def loss(outputs: Any, targets: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if task.forward is forward:
            outputs, targets = aligned(model, said_in(outputs), targets)
        total = task.loss.nll(outputs, targets).sum()
        if not_finite == "stop" and not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss on task {task.name!r} is {total.item()}: lower training.learning_rate, or "
                "train in a wider dtype"
            )
        if num_items_in_batch is None:
            return total / len(targets)
        # Trainer counts the numbers of a row, which is one example.
        each = targets[0].numel() if task.forward is forward and targets.is_floating_point() else 1
        return total / (num_items_in_batch / each)

    return loss


def hold_batch_norms(base: nn.Module) -> None:
    """Have the batch norms of ``base`` take the statistics of its checkpoint in training, too, and keep them.

    They are in no adapter: a model whose batch norms went on averaging would not be the one that is exported.
    """
    for module in base.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.register_forward_pre_hook(_hold)


def _hold(module: nn.Module, inputs: Any) -> None:
    module.training = False


def _bits(quantization: str) -> transformers.BitsAndBytesConfig:
    if not is_bitsandbytes_available():
        raise ValueError(f"model.quantization {quantization!r} needs bitsandbytes: pip install 'retain[quantization]'")
    if quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def spared_by(base: Any, quantization: str | None) -> float:
    """Bytes that the linear maps of ``base``, but for the one of its outputs, do not take in few bits."""
    if quantization is None:
        return 0
    maps = [m for m in base.modules() if isinstance(m, nn.Linear) and m is not base.get_output_embeddings()]
    return float(sum(m.weight.nbytes - m.weight.numel() * A_WEIGHT[quantization] for m in maps))


def _found(path: str, kind: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    try:
        with silenced(logging):
            return load(path, trust_remote_code=False, **kwargs)  # left out, transformers asks whoever sits there
    except (OSError, ValueError, ImportError) as error:
        where = "" if Path(path).is_dir() else ", neither as a folder nor on the hub"
        raise ValueError(f"no {kind} model at {path!r}{where}: {' '.join(str(error).split())}") from error
