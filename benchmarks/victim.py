"""What ``benchmarks.kills`` kills: a small run, its export and its report, in a process that tells where it is."""

from __future__ import annotations

import gc
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import accelerate
import datasets
import torch
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Trainer

from retain import ledger, provenance, scores, scoring, store, trained
from retain import run as running
from retain.commands import audit, export, report
from retain.config import parse
from retain.fisher.sweep import Sweep
from retain.lora import Site
from retain.methods import METHODS

WORDS = ["[PAD]", "[UNK]"]
WORDS += ["red", "green", "blue", "black", "one", "two", "three", "four", "up", "down", "left", "right"]
TASKS = {"colours": ("red", "blue"), "numbers": ("one", "four"), "ways": ("up", "left")}
FISHER, BUDGET = {"samples": 8}, {"budget": 0.05}
# A method with keywords that let it do all that it can, and the training beside it.
VICTIMS: dict[str, dict[str, Any]] = {name: {"name": name} for name in METHODS} | {
    "ewc": {"name": "ewc", "strength": 30.0, "fisher": FISHER},
    "ewc-lora": {"name": "ewc-lora", "strength": 30.0, "fisher": FISHER},
    "ewc-lora, merged": {
        "name": "ewc-lora",
        "strength": {"budget": 0.05},
        "mode": "merge",
        "rank": 3,
        "fisher": FISHER,
    },
    "eblora": {"name": "eblora", "subspace": "second moment", "rank": 3, "samples": 8},
    "share": {"name": "share", "components": 3, "route": True},
    "replay": {"name": "replay", "share": 0.5, "match": 0.5, "batch_size": 3},
    "lwf": {"name": "lwf", "weight": 3.0, "batch_size": 3},
    "dwd": {"name": "dwd", "strength": 1e5, "every": 2, "rows": 4, "probes": 4, "graph": "features"},
}
TRAINING = {
    "max_steps": 5,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.02,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
}
# How many checkpoints are kept: all, or one, so that older ones go while newer ones come.
LIMITS = {"sequential": 1, "dwd": 1, "share": 1, "ewc-lora, merged": 1}
Owner = tuple[Any, str]


def places(name: str) -> dict[str, list[Owner]]:
    """Where a run can be, and the functions that it is then in; of nested ones, the innermost counts."""
    return {
        "loading": [(running, "prepare")],
        "training step": [(Trainer, "training_step")],
        "checkpoint write": [(Trainer, "_save_checkpoint"), (trained, "keep")],
        "end of a task": [(METHODS[VICTIMS[name]["name"]], "end_task")],
        "Fisher pass": [(Sweep, "run")],
        "fold": [(Site, "fold")],
        "evaluation": [(scoring, "evaluate")],
        "state and scores": [(running, "_save")],
        "record": [(ledger.Ledger, "append"), (provenance, "fingerprint")],
        "clearing up": [(running, "_tidy"), (running, "sweep")],
        "results": [(running, "results"), (running, "copy_folder")],
        "export": [(export, "export")],
        "report": [(report, "report")],
    }


def furnish(folder: Path) -> None:
    """A backbone, a tokenizer and rows, in ``folder``."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, initializer_range=0.1, **shape)
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    for name, labels in TASKS.items():
        rows = [{"text": f"{WORDS[2 + i]} {label}", "label": label} for i in range(9) for label in labels]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def configuration(name: str, folder: Path) -> Any:
    """The run of the victim called ``name``, whose model and rows lie in ``folder``, in the working folder."""
    tasks = [{"name": task, "path": "json", "data_files": str(folder / f"{task}.jsonl")} for task in TASKS]
    limit = {"save_total_limit": LIMITS[name]} if name in LIMITS else {}
    return parse(
        {
            "model": {"path": str(folder / "bert")},
            "lora": {"r": 2, "target_modules": ["query", "value"], "lora_dropout": 0.1},
            "heads": {"learning_rate": 0.05},
            "method": VICTIMS[name],
            "training": TRAINING | limit,
            "tasks": tasks[: 3 if len(name) % 2 else 2],
            "output": "run",
        }
    )


def begin(name: str, folder: Path, home: Path, log: Path, one_of_two: tuple[int, int] | None = None) -> tuple[int, int]:
    """Start the victim in a process of its own, in ``home``: its number, and what to read of where it is.

    ``one_of_two`` has its rank and a port where both meet; such a victim does no more than its run.
    """
    reading, telling = os.pipe()
    if (number := os.fork()) == 0:
        os.close(reading)
        code = 1
        try:
            home.mkdir(parents=True, exist_ok=True)
            os.chdir(home)
            _live(name, folder, telling, one_of_two)
            code = 0
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    os.close(telling)
    return number, reading


def warm(folder: Path) -> None:
    """Live through a victim's life here, once: copies of this process start with all that it imports and caches."""
    before, home = Path.cwd(), folder / "first"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    os.chdir(home)
    try:
        _do("share", folder)
    finally:
        os.chdir(before)
    gc.collect()
    gc.freeze()


def _live(name: str, folder: Path, telling: int, one_of_two: tuple[int, int] | None = None) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for place, owners in places(name).items():
        for owner, attribute in owners:
            setattr(owner, attribute, _told(place, getattr(owner, attribute), telling))
    if one_of_two is not None:
        _meet(*one_of_two)
    _do(name, folder, more=one_of_two is None)


def _meet(rank: int, port: int) -> None:
    """As ``accelerate launch --cpu`` would have started one of two; gloo, or this process forgets that it was one."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()} | {"ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.distributed.init_process_group("gloo")


def _do(name: str, folder: Path, more: bool = True) -> None:
    """A run, its export, report and audit, but for what takes most of the time of tiny ones and writes nothing."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    quiet = Console(file=io.StringIO(), width=80)
    with (
        patch.object(scores, "bootstrap", partial(scores.bootstrap, replicates=20)),
        patch.object(accelerate.utils.memory, "clear_device_cache", lambda **_: None),
        patch.object(store.subprocess, "run", _in_this_process),
        patch.object(Figure, "savefig", lambda figure, to, **_: to.write("<svg></svg>")),
    ):
        running.run(configuration(name, folder), quiet)
        if not more:
            return
        export.export(Path("run"), console=quiet)
        report.report([Path("run")], None, 0, quiet)
        audit.audit(Path("run"), quiet)


def _told(place: str, true: Callable[..., Any], telling: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        os.write(telling, f"+{place}\n".encode())
        try:
            return true(*args, **kwargs)
        finally:
            os.write(telling, f"-{place}\n".encode())

    return call


def _in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess:
    """The check of an export, which would take seconds to start; it writes nothing of a run's."""
    script = Path(command[-1]).with_suffix(".py")
    script.write_text(command[2])
    before, sys.argv = sys.argv, ["-c", *command[3:]]
    runpy.run_path(str(script))
    sys.argv = before
    return subprocess.CompletedProcess(command, 0, "", "")
