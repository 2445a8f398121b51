"""A task from boundary to boundary through a Trainer that the user already has: transformers' own, or one of TRL's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from retain.callback import ContinualCallback
from retain.checkpoints import boundary, check, last_checkpoint, restore_boundary
from retain.hooks import refuse
from retain.method import Method
from retain.precision import keep_values, widen
from retain.reading import kind_of, target_tokens, task_of
from retain.reference import drop_reference, hold_reference
from retain.sharding import keep_whole
from retain.task import Task

# What TrainingArguments.optim brings along when it wants more than groups of parameters.
OF_ITS_OWN = ("params", "model", "optimizer_dict")


def learn(trainer: Any, method: Method, task: str | Task, *, resume_from_checkpoint: str | bool | None = None) -> Any:
    """``trainer.train()`` with ``method`` beside the optimizer: begin the task, train, end the task.

    The rows, how they make a batch, and their likelihood are the trainer's: of DPO the chosen completions, of GRPO
    completions that the model draws (docs/trainers.md). A reference model that DPO or GRPO takes from the adapter is
    the model as the task begins. The optimizer is the one that ``trainer.args`` name, over the method's groups.

    Args:
        trainer: for one task, and not yet trained.
        method: made for ``trainer.model``.
        task: its name; or a ``Task``, where the trainer's loss does not say what the likelihood is.
        resume_from_checkpoint: a checkpoint, or True for the latest whole one in the trainer's ``output_dir``, if there
            is one. It holds all that is needed, also in a new process: make model and method as they were made first.
            It must be one of this task: give every task an ``output_dir`` of its own.

    Returns:
        What ``trainer.train`` returns.

    Raises:
        ValueError: a trainer, an optimizer or a method that do not go together, by name, with what to do instead; or
            a checkpoint of another task.
    """
    _check(trainer, method)
    keep_whole(trainer.accelerator, method.model)
    widen(method)
    checkpoint, name = resume_from_checkpoint or None, task if isinstance(task, str) else task.name
    if checkpoint is True:
        checkpoint = last_checkpoint(trainer.args.output_dir)
    if checkpoint is not None:
        check(checkpoint)
        restore_boundary(method, checkpoint, name)
    began = boundary(method, name)
    with _undisturbed():
        rows = task_of(trainer, task)
        method.begin_task(rows)
        preferences = kind_of(trainer) in ("DPOTrainer", "GRPOTrainer")
        if preferences:
            hold_reference(trainer, method)
    tokens = 1.0 if preferences else target_tokens(trainer.model, rows)  # preferences are means over rows
    callback = ContinualCallback(method, tokens, began=began, checkpoint=checkpoint)
    trainer.create_optimizer = _Optimizer(trainer, method)
    trainer.add_callback(callback)
    callback.lead(trainer)
    try:
        output = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        callback.detach()
        trainer.remove_callback(callback)
        drop_reference(method)
    with _undisturbed():
        method.end_task(task_of(trainer, task))
    keep_values(method)
    return output


def optimizer_of(arguments: Any, model: nn.Module, method: Method, own: Any = None) -> torch.optim.Optimizer:
    """The optimizer that ``arguments`` name, or ``own`` (class, keywords), over the groups of ``method``.

    Raises:
        ValueError: it wants more than groups of parameters, or its steps cannot be hooked.
    """
    # Trainer's classes are looked up here, so that what does not train is quick to import.
    from transformers import Trainer

    cls, options = own or Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if isinstance(cls, type):
        refuse(cls)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)) or options.keys() & set(OF_ITS_OWN):
        name = getattr(cls, "__name__", str(cls))
        raise ValueError(
            f"{name} chooses by itself what it trains, and a method has groups of its own; use optim='adamw_torch'"
        )
    groups = method.param_groups()
    for group in groups:
        group.setdefault("weight_decay", arguments.weight_decay)
    return cls(groups, **options)


class _Optimizer:
    """Stands for a trainer's ``create_optimizer``: it is made when Trainer has put the model where it will train."""

    def __init__(self, trainer: Any, method: Method) -> None:
        self.trainer, self.method = trainer, method

    def __call__(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.trainer.optimizer is None:
            model = self.trainer.model if model is None else model
            own = self.trainer.optimizer_cls_and_kwargs
            self.trainer.optimizer = optimizer_of(self.trainer.args, model, self.method, own)
        optimizer: torch.optim.Optimizer = self.trainer.optimizer
        return optimizer


def _check(trainer: Any, method: Method) -> None:
    kind = type(method).__name__
    if method.model is not trainer.model:
        raise ValueError(f"{kind} was made for another model than trainer.model; make it {kind}(trainer.model)")
    if method.cumulative:
        raise ValueError(f"{kind} trains once on the rows of all tasks: join them, and train without retain.learn")
    if trainer.optimizer is not None:
        raise ValueError(
            "the trainer has an optimizer already, made before the method chose what trains: make a trainer for every "
            "task and leave `optimizers` out (TrainingArguments.optim, optimizer_cls_and_kwargs), or use "
            "ContinualCallback(method)"
        )
    if trainer.model_init is not None:
        raise ValueError("model_init makes another model when training begins; give the trainer a model")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The block draws nothing from the global generators: training goes on as if it had not been."""
    with torch.random.fork_rng():
        yield
