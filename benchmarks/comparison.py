"""All methods side by side on three real streams: writes their configurations, for `retain compare`.

    python -m benchmarks.comparison
    retain compare runs/comparison/text.yaml --methods all --seeds 3

- text: five tasks of four classes, or two, of 20 Newsgroups, Reuters and film reviews on MiniLM, the task known;
- newsgroups: 20 Newsgroups, five times four classes, on MiniLM, the task unknown (class-incremental);
- fashion: Fashion-MNIST, five times two classes, on DINOv2 ViT-S/14 at 42 pixels, the task unknown. It needs
  `scripts/fetch_optional_data.sh fashion-mnist` and `pip install onnx`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor

from benchmarks import dinov2
from benchmarks.streams import CACHE, images
from retain import yamls
from retain.commands.corpora import corpus
from retain.commands.demo import minilm, stream

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
    files = {split: str(_pictures(name)) for split, name in (("train", "train"), ("test", "t10k"))}
    every = {"name": "fashion", "path": "parquet", "data_files": files, "split_by_class": 2}
    return stream() | {
        "model": {"path": str(dinov2.folder(SIDE)), "kind": "image"},
        "lora": {"r": 8, "lora_alpha": 8, "target_modules": KEYS_AND_VALUES},
        "training": {"learning_rate": 1e-3, "num_train_epochs": 3, "per_device_train_batch_size": 8},
        "heads": {"learning_rate": 2e-3},
        "tasks": [every | ROWS],
        "scenario": "class",
    }


STREAMS = {"text": text, "newsgroups": newsgroups, "fashion": fashion}


def _files(source: str) -> dict[str, str]:
    return {split: str(corpus(source) / f"{split}.jsonl") for split in ("train", "test")}


def _pictures(split: str) -> Path:
    """Fashion-MNIST as a Parquet file with columns image and label."""
    path = CACHE / "fashion-mnist" / f"{split}.parquet"
    if not path.exists():
        x, y = images("fashion-mnist", split)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = datasets.Dataset.from_generator(_rows, features, gen_kwargs={"x": x, "y": y})
        rows.to_parquet(str(path))
    return path


def _rows(x: Tensor, y: Tensor) -> Any:
    for pixels, label in zip(((x[:, 0] + 1) * 127.5).round().byte().numpy(), y.tolist(), strict=True):
        yield {"image": pixels, "label": label}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--to", type=Path, default=Path("runs/comparison"))
    options = parser.parse_args()
    for name in options.streams:
        path = options.to / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yamls.write(STREAMS[name]() | {"output": str(options.to / name)}))
        print(path)


if __name__ == "__main__":
    main()
