"""Two real streams of five tasks, as tensors, for benchmarks that train many times.

"text": MiniLM on newsgroup posts, newswire, film reviews, debates and markets. "fashion": Fashion-MNIST, five pairs of
classes with a small ViT that this file trains on MNIST first. A head for each task; the task is known at test.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, ViTConfig, ViTForImageClassification

from retain import CrossEntropy, Task
from retain.commands.corpora import DEMO, VALIDATION, corpus
from retain.commands.demo import minilm
from retain.hf import load_model

CACHE = Path(os.environ.get("RETAIN_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/retain").expanduser()
LORA = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
TEST_ROWS = 2000  # of a task; all there are, if fewer
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Stream:
    """Tasks, a maker of their adapted model (of a seed and LoRA keywords), and the settings of its training.

    ``glance`` is how many test rows of a task suffice where not all of them are needed.
    """

    tasks: list[Task]
    validation: list[Batch]
    model: Callable[..., Any]
    learning_rate: float
    head_learning_rate: float
    epochs: int
    batch_size: int
    glance: int


def text(seed: int, rows: int = 150, held_out: int = 250, length: int = 32) -> Stream:
    """Five tasks of 8, 8, 2, 4 and 13 classes; ``held_out`` validation rows (of the training split)."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    entries = {**DEMO, "markets": VALIDATION["wide"]["markets"]}
    splits, sizes = [], []
    for source, names in entries.values():
        classes, folder = names.split(), corpus(source)
        train, test = (_texts(folder / f"{split}.jsonl", classes) for split in ("train", "test"))
        order = np.random.default_rng(seed).permutation(len(train))
        test_order = np.random.default_rng(0).permutation(len(test))[:TEST_ROWS]
        chosen = (
            [train[i] for i in order[:rows]],
            [train[i] for i in order[rows : rows + held_out]],
            [test[i] for i in test_order],
        )
        encoded = []
        for part in chosen:
            tokens = tokenizer(
                [row for row, _ in part], truncation=True, max_length=length, padding="max_length", return_tensors="pt"
            )
            labels = torch.tensor([label + sum(sizes) for _, label in part])
            encoded.append({**{k: tokens[k] for k in ("input_ids", "attention_mask")}, "labels": labels})
        splits.append(encoded)
        sizes.append(len(classes))
    tasks, validation = _tasks(list(entries), splits, sizes)

    def model(seed: int, **lora: Any) -> Any:
        return load_model(minilm(), "text", sizes, LORA | lora, seed=seed)

    return Stream(tasks, validation, model, 2e-3, 5e-3, 4, 8, 250)


def fashion(seed: int, rows: int = 500, held_out: int = 600) -> Stream:
    """Fashion-MNIST two classes at a time, on a ViT (28 pixels, patches of 7, 4 layers, width 96) that knows MNIST."""
    x, y = images("fashion-mnist", "train")
    x_test, y_test = images("fashion-mnist", "t10k")
    splits, order = [], np.random.default_rng(seed).permutation(len(y))
    for task in range(5):
        mine = torch.from_numpy(order)[torch.isin(y[order], torch.tensor([2 * task, 2 * task + 1]))]
        parts = [(x[i], y[i]) for i in (mine[:rows], mine[rows : rows + held_out])]
        there = torch.isin(y_test, torch.tensor([2 * task, 2 * task + 1])).nonzero()[:, 0][:TEST_ROWS]
        parts.append((x_test[there], y_test[there]))
        splits.append([{"pixel_values": pixels, "labels": labels} for pixels, labels in parts])
    tasks, validation = _tasks([f"fashion-{i}" for i in range(5)], splits, [2] * 5)
    return Stream(tasks, validation, _small_vit(5), 2e-3, 5e-3, 3, 16, 1000)


def pairs(seed: int, count: int = 20, rows: int = 100, tested: int = 100, scored: str = "test") -> Stream:
    """``count`` of the 45 pairs of Fashion-MNIST's classes, in an order that all seeds share; see ``fashion``.

    With ``scored`` "validation" the test rows are ``tested`` more of the training split.
    """
    x, y = images("fashion-mnist", "train")
    x_test, y_test = (x, y) if scored == "validation" else images("fashion-mnist", "t10k")
    every = list(itertools.combinations(range(10), 2))
    chosen = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:count]]
    generator, splits = np.random.default_rng(seed), []
    for pair in chosen:
        there = [(labels[:, None] == torch.tensor(pair)).any(1).nonzero()[:, 0].numpy() for labels in (y, y_test)]
        mine = generator.permutation(there[0])
        test = mine[rows:] if scored == "validation" else np.random.default_rng(0).permutation(there[1])
        parts = [(x, y, mine[:rows]), (x, y, mine[rows : 2 * rows]), (x_test, y_test, test[:tested])]
        splits.append([{"pixel_values": px[i], "labels": (ls[i] == pair[1]).long()} for px, ls, i in parts])
    for number, split in enumerate(splits):
        for part in split:
            part["labels"] += 2 * number
    tasks, validation = _tasks([f"{a}-{b}" for a, b in chosen], splits, [2] * count)
    return Stream(tasks, validation, _small_vit(count), 2e-3, 5e-3, 3, 16, tested)


def _small_vit(tasks: int) -> Callable[..., Any]:
    folder = vit("small-vit-mnist", 4, 96, 4, rows=5000, epochs=6, batch_size=64, learning_rate=1e-3)

    def model(seed: int, **lora: Any) -> Any:
        return load_model(str(folder), "image", [2] * tasks, LORA | lora, seed=seed)

    return model


STREAMS = {"text": text, "fashion": fashion}


def _tasks(names: list[str], splits: list[list[Batch]], sizes: list[int]) -> tuple[list[Task], list[Batch]]:
    loss = CrossEntropy(groups=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)))
    tasks = [Task(name, [train], [test], loss) for name, (train, _, test) in zip(names, splits, strict=True)]
    return tasks, [validation for _, validation, _ in splits]


def _texts(path: Path, classes: list[str]) -> list[tuple[str, int]]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text"], classes.index(row["label"])) for row in rows if row["label"] in classes]


def images(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, 1, 28, 28) about 0 and labels (N,), from IDX files (scripts/fetch_optional_data.sh)."""

    def array(kind: str) -> np.ndarray:
        content = gzip.decompress((CACHE / name / f"{split}-{kind}-ubyte.gz").read_bytes())
        shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy()

    images, labels = torch.from_numpy(array("images-idx3")), torch.from_numpy(array("labels-idx1"))
    return images[:, None].float() / 127.5 - 1, labels.long()


def vit(
    name: str, layers: int, width: int, heads: int, *, rows: int, epochs: int, batch_size: int, learning_rate: float
) -> Path:
    """The folder of a ViT (28 pixels, patches of 7), trained on ``rows`` MNIST digits the first time."""
    folder = CACHE / name
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    shape = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10}
    size = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    model = ViTForImageClassification(ViTConfig(**shape, **size))
    x, y = images("mnist", "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for batch in [b for _ in range(epochs) for b in torch.randperm(rows).split(batch_size)]:
        model(pixel_values=x[batch], labels=y[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        found = float(
            (model(pixel_values=x[rows : rows + 2000]).logits.argmax(1) == y[rows : rows + 2000]).float().mean()
        )
    print(f"{name}: {found:.3f} of 2000 other MNIST digits", flush=True)
    model.save_pretrained(folder)
    return folder
