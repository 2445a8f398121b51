"""Hugging Face: loading a model with its adapter and heads, and training it through transformers' Trainer."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import logging

from retain.heads import final_classifier, install_heads
from retain.hooks import attach
from retain.lora import adapter_parameters, add_lora
from retain.method import Method
from retain.store import write_tensors
from retain.task import Task, aligned

# kind of stream -> the transformers classes of its model and of what prepares its rows
CLASSES = {
    "text": (transformers.AutoModelForSequenceClassification, transformers.AutoTokenizer),
    "image": (transformers.AutoModelForImageClassification, transformers.AutoImageProcessor),
}

# Beside a checkpoint of Trainer: what parametrised factors are made of, and what the method has measured on the way.
ORIGINALS, PROGRESS = "originals.safetensors", "progress.safetensors"


class ContinualCallback(TrainerCallback):
    """Puts a method beside the optimizer of any transformers Trainer.

    The extra loss is differentiated once per optimizer step, before the first micro-batch, so that accumulation
    does not multiply it, and clipping and the gradient scaler see it with the rest. Call ``method.begin_task``
    before the optimizer is built and ``method.end_task`` after training.

    Trainer's checkpoints hold stock factors. What a parametrised factor is made of does not come back from them to the
    bit, so it is written beside them, and read when Trainer continues. So is what a method measures while it trains.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.handles: list[Any] = []
        self.scaler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        if isinstance(optimizer, AcceleratedOptimizer):
            self.scaler, optimizer = optimizer.scaler, optimizer.optimizer
        self.handles = attach(optimizer, self.method)
        if state is not None and state.global_step:
            restore_originals(self.method, _checkpoint(args, state))
            restore_progress(self.method, _checkpoint(args, state))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for file, found in ((ORIGINALS, originals(self.method)), (PROGRESS, self.method.progress())):
            if found and state.is_world_process_zero:
                write_tensors(_checkpoint(args, state) / file, found)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.method.model.train()  # which Trainer does only before its own forward
        if state is not None:
            self.method.steps = state.global_step
        loss = self.method.extra_loss()
        if isinstance(loss, Tensor):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def originals(method: Method) -> dict[str, nn.Parameter]:
    """The parameters of parametrised factors, by their names in the model."""
    if not method.sites:
        return {}
    return {name: p for name, p in adapter_parameters(method.model).items() if ".parametrizations." in name}


@torch.no_grad()
def restore_originals(method: Method, checkpoint: Path) -> None:
    """Put the parameters of parametrised factors back to the bit, as they were when ``checkpoint`` was written.

    Its stock factors have been loaded. Where the file is missing, or belongs to other factors (Trainer may continue
    from a folder that is not its own), they stay as they are and a warning says so.
    """
    parameters, path = originals(method), checkpoint / ORIGINALS
    if not parameters:
        return
    loaded = {name: site.B.detach().clone() for name, site in method.sites.items()}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    kept = load_file(path) if path.exists() else {}
    if kept.keys() == parameters.keys():
        for name, p in parameters.items():
            p.copy_(kept[name])
        if all(torch.allclose(site.B, loaded[name], rtol=1e-4, atol=1e-7) for name, site in method.sites.items()):
            return
        for name, p in parameters.items():
            p.copy_(before[name])
    warnings.warn(
        f"{path} is missing or of another training: it continues, but not to the bit, with factors made of stock ones",
        stacklevel=2,
    )


def restore_progress(method: Method, checkpoint: Path) -> None:
    """Give back what ``method`` had measured when ``checkpoint`` was written; warn if that is lost."""
    if not method.progress():
        return
    if (path := checkpoint / PROGRESS).exists():
        method.load_progress(load_file(path))
    else:
        warnings.warn(f"{path} is missing: what the method measured before is lost, and it measures on", stacklevel=2)


def load_processor(path: str, kind: str) -> Any:
    """The tokenizer or image processor of a model."""
    return _found(path, kind, CLASSES[kind][1].from_pretrained)


def load_model(
    path: str,
    kind: str,
    sizes: Sequence[int],
    lora: dict[str, Any],
    *,
    own_heads: bool = True,
    dtype: str | None = None,
    seed: int = 0,
) -> Any:
    """A classification model with LoRA and, with ``own_heads``, one block of head rows for each entry of ``sizes``.

    The final classifier and layers that the checkpoint does not hold (its hidden layer) are saved with the adapter.
    """
    transformers.set_seed(seed)
    base, report = _found(
        path,
        kind,
        CLASSES[kind][0].from_pretrained,
        num_labels=sum(sizes),
        dtype=dtype or "auto",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    trained = {key.rpartition(".")[0] for key in report["missing_keys"]}
    trained.add(install_heads(base, sizes, seed) if own_heads else final_classifier(base, sum(sizes)))
    lora = {**lora, "modules_to_save": sorted(trained | set(lora.get("modules_to_save") or ()))}
    return add_lora(base, **lora)


def fit(
    model: nn.Module,
    task: Task,
    method: Method,
    arguments: TrainingArguments,
    *,
    head_learning_rate: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> int:
    """Train ``model`` on ``task`` through Trainer with ``method`` beside the optimizer, between its begin and end.

    The loss is the task's, as a mean over the examples (tokens, for sequences) of a whole optimizer step. A
    checkpoint left in ``arguments.output_dir`` by an interrupted training is continued.

    Returns:
        The optimizer steps that were taken here.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    groups = method.param_groups()
    if head_learning_rate is not None and len(groups) > 1:
        groups[-1]["lr"] = head_learning_rate
    for group in groups:
        group.setdefault("weight_decay", arguments.weight_decay)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=task.train,
        data_collator=task.collate,
        compute_loss_func=_loss_of(model, task),
        optimizers=(cls(groups, **options), None),
        callbacks=[ContinualCallback(method), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = _last_checkpoint(Path(arguments.output_dir))
    before = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    return trainer.train(resume_from_checkpoint=checkpoint).global_step - before


def _checkpoint(arguments: Any, state: Any) -> Path:
    """Where Trainer writes what it has at this step."""
    return Path(arguments.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: Trainer's own state is the last of its files."""
    for unfinished in folder.glob("checkpoint-*"):
        if not (unfinished / TRAINER_STATE_NAME).exists():
            shutil.rmtree(unfinished)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _loss_of(model: nn.Module, task: Task) -> Callable[..., Tensor]:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits, targets = aligned(model, outputs.logits, labels)
        total = task.loss.nll(logits, targets).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss on task {task.name!r} is {total.item()}: lower training.learning_rate, or "
                "train in a wider dtype"
            )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _found(path: str, kind: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    try:
        with _silence():
            return load(path, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        where = "" if Path(path).is_dir() else ", neither as a folder nor on the hub"
        raise ValueError(f"no {kind} model at {path!r}{where}: {' '.join(str(error).split())}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """The block shows no bar and no report: that a classifier is new is what continual learning is about."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
