"""TRL's SFTTrainer that you already have, and two lines more: task after task, without losing the first.

    pip install 'retain[trl]'
    python examples/sft.py                                # SmolLM2-135M-Instruct from the hub
    python examples/sft.py --model some/folder            # any causal model with a chat template

Minutes on two cores: prints the loss per token on the rows of both tasks after each, and leaves a stock adapter
in runs/sft. The rows are a dozen of questions and as many polite answers: they show the form, not what a method can do.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import transformers
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from retain import EWCLoRA, export, learn

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATA = Path(__file__).parent / "data"
TASKS = ("faq", "manners")  # prompts with completions, and conversations


def main(
    path: str = MODEL, epochs: int = 4, protect: bool = True, output: Path = Path("runs/sft")
) -> list[list[float]]:
    """The losses per token (before, and after each task; of each task)."""
    transformers.set_seed(0)
    base, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        AutoTokenizer.from_pretrained(path),
    )
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = {name: load_dataset("json", data_files=str(DATA / f"{name}.jsonl"), split="train") for name in TASKS}
    method, found = EWCLoRA(model, strength=None if protect else 0.0), list[list[float]]()  # the first line
    for name in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                folder,
                learning_rate=1e-3,
                num_train_epochs=epochs,
                per_device_train_batch_size=4,
                dataloader_pin_memory=torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
            )
            trainer = SFTTrainer(
                model, arguments, train_dataset=rows[name], eval_dataset=rows, processing_class=tokenizer
            )
            found += [] if found else [losses(trainer)]
            learn(trainer, method, name)  # the second, in place of trainer.train()
            found.append(losses(trainer))
    for after, row in zip(("nothing", *TASKS), found, strict=True):
        print(f"after {after:<8}" + "".join(f"  {name} {loss:.3f}" for name, loss in zip(TASKS, row, strict=True)))
    export(model, output)
    print(f"{output}: a stock adapter, which PeftModel.from_pretrained loads")
    return found


def losses(trainer: SFTTrainer) -> list[float]:
    """The loss per token on the rows of every task."""
    found = trainer.evaluate()
    return [found[f"eval_{name}_loss"] for name in TASKS]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    main(parser.parse_args().model)
