"""A small language model on three kinds of text, one after the other: what it learns, and what it loses of the rest.

    scripts/fetch_optional_data.sh smollm2                     # SmolLM2-135M-Instruct, once
    python -m benchmarks.language                              # run again to continue
    python -m benchmarks.language --guard replies

Tasks: newswire stories, film reviews, and the sources of Python's standard library. What the model could do before them
is measured on posts to newsgroups, which nothing trains on, or on what the untouched model replies to such posts. Every
run is what `retain run` does with a YAML file. Writes benchmarks/results/language-SIZE.json, with replies as guard
language-SIZE-replies.json. The large size is a stream of ``benchmarks.comparison`` and ``benchmarks.curve``, for a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.fisher import machine, versions
from benchmarks.parallel import spread
from benchmarks.streams import CACHE
from retain import store
from retain.commands.corpora import corpus
from retain.config import parse
from retain.run import run

RESULTS = Path(__file__).parent / "results"
SIZES = {"small": (32, 16, 48, 4), "large": (512, 128, 128, 16)}  # training and test rows, their tokens, a batch
CORPORA = {"newswire": "reuters-r8", "reviews": "rotten-tomatoes", "general": "newsgroups"}
KINDS = ("newswire", "reviews", "python")
GUARDS = {"posts": "general", "replies": "replies"}  # the guard's files
ASKED, REPLY, BOTH = 400, 64, 256  # characters of a post, most tokens of the reply to it, and of the conversation
MODULES = ["argparse", "tarfile", "inspect", "typing", "ast", "difflib", "shutil", "subprocess", "tempfile"]
CELLS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "EWC-LoRA": {"name": "ewc-lora"},
    **{f"EWC-LoRA, strength {s}": {"name": "ewc-lora", "strength": float(s)} for s in (30, 100, 300)},
    "EWC-LoRA, auto": {"name": "ewc-lora", "strength": "auto"},
    "EBLoRA": {"name": "eblora"},
    "Share": {"name": "share"},
    "O-LoRA": {"name": "olora"},
    "replay": {"name": "replay"},
}
TRAINING = {
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "lr_scheduler_type": "linear",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=list(SIZES), help="of the tasks")
    parser.add_argument("--guard", default="posts", choices=list(GUARDS))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--work", type=Path, default=CACHE / "language-benchmark", help="where runs are kept meanwhile")
    options = parser.parse_args()
    named = options.size + f"-{options.guard}" * (options.guard != "posts")
    path = RESULTS / f"language-{named}.json"
    rows = store.read_json(path)["rows"] if path.exists() else []
    done = {(row["cell"], row["seed"]) for row in rows}
    left = [pair for pair in itertools.product(options.cells, options.seeds) if pair not in done]
    for seed in options.seeds:
        stream(options.work, seed, options.size, options.guard)
    pieces = [
        (cell, seed, options.size, options.guard, options.work) for cell, seed in sorted(left, key=lambda pair: pair[1])
    ]
    for _, row in spread(measure, pieces, options.jobs):
        rows.append(row)
        command = f"python -m benchmarks.language --size {options.size} --guard {options.guard}"
        head = {"command": command, "machine": machine()}
        settings = dict(zip(("train", "test", "tokens", "batch"), SIZES[options.size], strict=True))
        store.write_json(path, head | {"versions": versions(), "settings": settings | TRAINING, "rows": rows})
    show(rows)


def measure(cell: str, seed: int, size: str, guard: str, work: Path) -> dict[str, Any]:
    """One run through all tasks: matrices, scores and costs."""
    output = work / f"{cell}-{seed}"
    document = stream(work, seed, size, guard) | {"method": dict(CELLS[cell]), "output": str(output)}
    results = run(parse(document), Console())
    shutil.rmtree(output)
    keys = ("tasks", "nats_per_token", "guard", "calibration", "bytes", "seconds", "warnings")
    found = {key: results[key] for key in keys if key in results}
    return {"cell": cell, "seed": seed, "device": device(), "method": results["method"]} | found


def device() -> str:
    """What runs train on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def stream(work: Path, seed: int, size: str, guard: str) -> dict[str, Any]:
    """The configuration but for method and output; its rows are written under ``work`` unless they are there."""
    folder = work / f"{size}-{seed}"
    if not folder.exists():
        store.replace_folder(folder, lambda fresh: write_rows(fresh, seed, size))
    if guard == "replies" and not (folder / "replies-test.jsonl").exists():
        write_replies(folder)

    def entry(name: str, tokens: int) -> dict[str, Any]:
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        return {"name": name, "path": "json", "data_files": files, "max_length": tokens}

    tokens = SIZES[size][2]
    return {
        "model": {"path": str(CACHE / "smollm2"), "kind": "causal-lm", "dtype": "float32"},
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "training": TRAINING | {"per_device_train_batch_size": SIZES[size][3]},
        "guard": entry(GUARDS[guard], BOTH if guard == "replies" else tokens),
        "tasks": [entry(name, tokens) for name in KINDS],
        "seed": seed,
    }


def write_rows(folder: Path, seed: int, size: str) -> None:
    """Training and test rows of each task as JSON lines; the test rows are the same for all seeds."""
    code = python_sources()
    splits = {name: [texts(source, split) for split in ("train", "test")] for name, source in CORPORA.items()}
    for name, parts in (splits | {"python": [code[::2], code[1::2]]}).items():
        for split, texts_, count, drawn in zip(("train", "test"), parts, SIZES[size], (seed, 0), strict=False):
            rows = [json.dumps({"text": text}) for text in random.Random(drawn).sample(texts_, count)]
            store.write(folder / f"{name}-{split}.jsonl", "\n".join(rows))


def write_replies(folder: Path) -> None:
    """What the untouched model replies to the posts there, as conversations: the likeliest token each time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(CACHE / "smollm2", dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(CACHE / "smollm2", padding_side="left")
    for split in ("train", "test"):
        lines = (folder / f"general-{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = []
        for start in range(0, len(lines), 64):
            posts = [json.loads(line)["text"][:ASKED] for line in lines[start : start + 64]]
            asked = [[{"role": "user", "content": post}] for post in posts]
            given = tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            ).to(model.device)
            written = model.generate(**given, max_new_tokens=REPLY, do_sample=False)[:, given["input_ids"].shape[1] :]
            for question, text in zip(asked, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                rows.append(json.dumps({"messages": [*question, {"role": "assistant", "content": text}]}))
        store.write(folder / f"replies-{split}.jsonl", "\n".join(rows))


def texts(source: str, split: str) -> list[str]:
    with (corpus(source) / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def python_sources() -> list[str]:
    """Stretches of the standard library's own sources (PSF licence)."""
    folder, found = Path(sysconfig.get_paths()["stdlib"]), []
    for module in MODULES:
        lines = (folder / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()
        found += ["\n".join(lines[i : i + 12]) for i in range(100, len(lines) - 12, 12)]
    return [text for text in found if len(text) > 200]


def show(rows: list[dict[str, Any]]) -> None:
    """Means and standard deviations over seeds, in nats per token."""
    table = Table("", "gained", "forgetting", "final", "rise of the guard", "seeds")
    for cell in dict.fromkeys(row["cell"] for row in rows):
        mine = [row for row in rows if row["cell"] == cell]
        found = [[row["nats_per_token"]["scores"][key] for row in mine] for key in ("gained", "forgetting", "final")]
        found.append([row["guard"]["rise"] for row in mine])
        table.add_row(cell, *(f"{np.mean(f):.3f} ± {np.std(f):.3f}" for f in found), str(len(mine)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
