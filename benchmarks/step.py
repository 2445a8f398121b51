"""What a method adds to an SFT step: time of TRL's step with it, beside the same step without.

    scripts/fetch_optional_data.sh smollm2                     # SmolLM2-135M-Instruct, once
    python -m benchmarks.step
    python -m benchmarks.step --dtype bfloat16                 # on a GPU

LoRA of rank 8 on all linear layers, 8 rows of 256 tokens a step, AdamW, the second task: what the first left is in
force. One process; the plain trainer and each method take turns on the same model, ``ROUNDS`` times ``STEPS`` steps. A
number is the median over rounds of the ratio of a round's two medians: of seconds on a GPU, of those of one core's
processor without, which what else runs there does not enter. Writes benchmarks/results/step-DEVICE-DTYPE.json, and
keeps the methods that are there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.fisher import machine, versions
from benchmarks.streams import CACHE
from retain import METHODS, ContinualCallback, Method, Task, store
from retain.hf import load_model
from retain.task import default_collate

RESULTS = Path(__file__).parent / "results"
BATCH, LENGTH, STEPS, WARM, ROUNDS, FIRST = 8, 256, 6, 2, 3, 16  # FIRST: rows of the task that is remembered
NAMES = ("ewc", "ewc-lora", "dwd", "eblora", "share", "olora", "inflora", "sdlora")
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


class Clock(TrainerCallback):
    """Seconds of each step, of all that Trainer does in it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() if torch.cuda.is_available() else time.process_time())

    @property
    def seconds(self) -> float:
        """The median step after the first, which warm up."""
        times = self.times[WARM:]
        return median(b - a for a, b in zip(times, times[1:], strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the base model")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = {
        "command": f"python -m benchmarks.step --dtype {options.dtype} --methods {' '.join(options.methods)}",
        "machine": machine(),
        "versions": versions(),
    }
    name = torch.cuda.get_device_name() if device == "cuda" else device
    settings = {
        "device": name,
        "dtype": options.dtype,
        "rows": BATCH,
        "tokens": LENGTH,
        "steps": STEPS,
        "rounds": ROUNDS,
    }
    path = RESULTS / f"step-{device}-{options.dtype}.json"
    found = store.read_json(path)["methods"] if path.exists() else {}
    for one in options.methods:
        found[one] = measure(one, options.dtype)
        store.write_json(path, head | settings | {"methods": found})


def measure(name: str, dtype: str) -> dict[str, Any]:
    """Seconds of plain steps and of those beside the method, by round."""
    model = load_model(str(CACHE / "smollm2"), "causal-lm", [], LORA, dtype=dtype, seed=0)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    method = METHODS[name](model, seed=0)
    method.begin_task(Task("first", rows(FIRST, 1), collate=default_collate))
    train(model, method)
    method.end_task(Task("first", rows(FIRST, 1), collate=default_collate))
    method.begin_task(Task("second", rows(FIRST, 2), collate=default_collate))
    plain, beside = [], []
    for _ in range(ROUNDS):
        plain.append(train(model, None))
        beside.append(train(model, method))
    ratio = median(b / a for a, b in zip(plain, beside, strict=True))
    print(f"{name:<10} {ratio:.3f} of a plain step of {median(plain):.3f} s", flush=True)
    return {"to_plain": ratio, "plain_seconds": plain, "seconds": beside}


def rows(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(100, 40000, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in tokens]


def train(model: Any, method: Method | None) -> float:
    """Seconds of a step of TRL's trainer."""
    data = Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in rows(BATCH * 4, 3)])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS + WARM,
            learning_rate=1e-4,
            gradient_checkpointing=False,
            bf16=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
        )
        callbacks = [clock] if method is None else [ContinualCallback(method, LENGTH), clock]
        groups = [p for p in model.parameters() if p.requires_grad] if method is None else method.param_groups()
        SFTTrainer(
            model,
            arguments,
            train_dataset=data,
            processing_class=transformers.AutoTokenizer.from_pretrained(str(CACHE / "smollm2")),
            callbacks=callbacks,
            optimizers=(torch.optim.AdamW(groups, lr=1e-4), None),
        ).train()
    return clock.seconds


if __name__ == "__main__":
    main()
