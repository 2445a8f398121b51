"""All methods side by side on three real streams: writes their configurations, for `retain compare`.

    python -m benchmarks.comparison
    retain compare runs/comparison/text.yaml --methods all --seeds 3

- text: five tasks of four classes, or two, of 20 Newsgroups, Reuters and film reviews on MiniLM, the task known;
- newsgroups: 20 Newsgroups, five times four classes, on MiniLM, the task unknown (class-incremental);
- fashion: Fashion-MNIST, five times two classes, on DINOv2 ViT-S/14 at 42 pixels, the task unknown. It needs
  `scripts/fetch_optional_data.sh fashion-mnist` and `pip install onnx`;
- ten: ten digits and ten kinds of clothes on the same model, ten times two classes, the task unknown. It needs `mnist`,
  too;
- pictures: fashion in bfloat16 with 1000 rows a task, and each class of two kinds, a digit and a piece of clothing:
  for a GPU. It needs `mnist`, too;
- language: newswire, film reviews and Python on SmolLM2-135M in bfloat16, its replies guarded: for a GPU. It needs
  `smollm2`;
- lines: the first 32 tokens of those texts, without a guard, for a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from benchmarks import dinov2, language
from benchmarks.streams import CACHE, images
from retain import yamls
from retain.commands.corpora import corpus
from retain.commands.demo import minilm, stream

SPLITS = {"train": "train", "test": "t10k"}  # and what the files call them
ROWS = {"max_train": 150, "max_test": 300}
SIDE = 42
KEYS_AND_VALUES = r".*\.(k_proj|v_proj|key|value)"  # by either name that transformers has had for them


FEW = {  # classes of each task, so few that even a small budget has ten rows of each
    "topics": ("newsgroups", "rec.autos sci.crypt sci.med sci.space"),
    "newswire": ("reuters-r8", "acq crude earn trade"),
    "reviews": ("rotten-tomatoes", "fresh rotten"),
    "debates": ("newsgroups", "alt.atheism soc.religion.christian talk.politics.guns talk.politics.mideast"),
    "markets": ("reuters-r52", "coffee cpi gold money-supply"),
}


def text() -> dict[str, Any]:
    """Task-incremental: domains, one after the other."""
    tasks = [
        {"name": name, "path": "json", "data_files": _files(source), "classes": classes.split(), "max_length": 32}
        for name, (source, classes) in FEW.items()
    ]
    training = {"learning_rate": 2e-3, "num_train_epochs": 4, "per_device_train_batch_size": 4}
    return stream() | {"tasks": [task | ROWS for task in tasks], "training": training}


def newsgroups() -> dict[str, Any]:
    """Class-incremental: all of 20 Newsgroups, in the order of its names."""
    every = {"name": "newsgroups", "path": "json", "data_files": _files("newsgroups"), "split_by_class": 4}
    every["max_length"] = 32
    return stream() | {"tasks": [every | ROWS], "scenario": "class", "model": {"path": minilm()}}


def fashion() -> dict[str, Any]:
    """Class-incremental: clothes, in pairs."""
    return stream() | {
        "model": {"path": str(dinov2.folder(SIDE)), "kind": "image"},
        "lora": {"r": 8, "lora_alpha": 8, "target_modules": KEYS_AND_VALUES},
        "training": {"learning_rate": 1e-3, "num_train_epochs": 3, "per_device_train_batch_size": 8},
        "heads": {"learning_rate": 2e-3},
        "tasks": [_pairs("fashion", ["fashion-mnist"], 6000) | ROWS],
        "scenario": "class",
    }


def pictures() -> dict[str, Any]:
    """Class-incremental: class k is the digit k or the k-th kind of clothing, in pairs."""
    small = fashion()
    larger = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "bf16": True}
    return small | {
        "model": small["model"] | {"dtype": "bfloat16"},
        "training": small["training"] | larger,
        "tasks": [_pairs("pictures", ["mnist", "fashion-mnist"], 1000) | {"max_train": 1000, "max_test": 300}],
    }


def ten() -> dict[str, Any]:
    """Class-incremental: digits in pairs, then clothes in pairs, with so few rows that many methods can be run."""
    few = {"max_train": 24, "max_test": 30}
    return fashion() | {"tasks": [_pairs("ten", ["mnist", "fashion-mnist"], 500, apart=True) | few]}


def _pairs(name: str, sources: Sequence[str], most: int, *, apart: bool = False) -> dict[str, Any]:
    files = {split: str(_pictures(sources, split, most, apart)) for split in SPLITS}
    return {"name": name, "path": "parquet", "data_files": files, "split_by_class": 2}


def text_of_all_kinds() -> dict[str, Any]:
    """Texts of a language model, without a task to tell: the losses are those of tokens."""
    document = language.stream(CACHE / "language-benchmark", 0, "large", "replies")
    rows = {"max_train": 256, "max_test": 96}
    return document | {
        "model": document["model"] | {"dtype": "bfloat16"},
        "training": document["training"] | {"bf16": True},
        "guard": document["guard"] | rows,
        "tasks": [task | rows for task in document["tasks"]],
    }


def lines() -> dict[str, Any]:
    """The beginnings of few such texts."""
    document = language.stream(CACHE / "language-benchmark", 0, "large", "posts")
    del document["guard"]
    document["training"] |= {"per_device_train_batch_size": 4}
    short = {"max_train": 32, "max_test": 32, "max_length": 32}
    return document | {"tasks": [task | short for task in document["tasks"]]}


STREAMS = {
    "text": text,
    "newsgroups": newsgroups,
    "fashion": fashion,
    "ten": ten,
    "pictures": pictures,
    "language": text_of_all_kinds,
    "lines": lines,
}
SMALL = ("text", "newsgroups", "fashion")  # those of five tasks that two cores can do


def _files(source: str) -> dict[str, str]:
    return {split: str(corpus(source) / f"{split}.jsonl") for split in ("train", "test")}


def _pictures(sources: Sequence[str], split: str, most: int, apart: bool) -> Path:
    """``most`` rows of each class of each of ``sources`` as a Parquet file with columns image and label.

    With ``apart`` no two of them share a class; else class k is the k-th of each.
    """
    path = CACHE / sources[-1] / f"{'-'.join(sources)}-{split}-{most}{'-apart' * apart}.parquet"
    if not path.exists():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        given = {"sources": " ".join(sources), "split": SPLITS[split], "most": most, "step": 10 * apart}
        datasets.Dataset.from_generator(_rows, features, gen_kwargs=given).to_parquet(str(path))
    return path


def _rows(sources: str, split: str, most: int, step: int) -> Any:
    """``sources`` are one string: ``datasets`` would deal the entries of a list out to processes."""
    for number, source in enumerate(sources.split()):
        x, y = images(source, split)
        kept = torch.cat([(y == label).nonzero()[:most, 0] for label in range(10)]).sort().values
        for pixels, label in zip(((x[kept, 0] + 1) * 127.5).round().byte().numpy(), y[kept].tolist(), strict=True):
            yield {"image": pixels, "label": label + number * step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(SMALL), choices=list(STREAMS))
    parser.add_argument("--to", type=Path, default=Path("runs/comparison"))
    options = parser.parse_args()
    for name in options.streams:
        path = options.to / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yamls.write(STREAMS[name]() | {"output": str(options.to / name)}))
        print(path)


if __name__ == "__main__":
    main()
