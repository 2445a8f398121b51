"""Streams of an encoder-decoder: what is read and what is written, from a configuration to an adapter."""

from __future__ import annotations

import io
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import TrainingArguments

from answering import check_answers
from models import adapted, bare_t5, filled
from retain import METHODS
from retain.answers import Asked, answers
from retain.batches import Padded
from retain.buffer import stacked
from retain.commands.check import check
from retain.commands.export import export
from retain.commands.init import init
from retain.commands.plan import plan
from retain.config import ConfigError, load, parse
from retain.hf import fit
from retain.run import run
from retain.task import IGNORED, Task
from retain.wording import METRICS
from runs import left_by, quiet
from streams import WORDS, jsonl, pair_tokenizer, refused, stream

KIND = "seq2seq-lm"
TOKENIZER = pair_tokenizer()
TRAINING = {"max_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 0.02, "use_cpu": True}


def document(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Two tasks that name another word for the one they are asked about, and a guard of a third."""
    tasks = []
    for shift, name in enumerate(["next", "after", "guard"], 1):
        pairs = [(WORDS[i % 8], WORDS[(i + shift) % 8]) for i in range(20)]
        rows: list[dict[str, Any]] = [
            {"instruction": a, "input": "", "output": b} if name == "after" else {"prompt": a, "completion": b}
            for a, b in pairs
        ]
        tasks.append({"name": name, "path": "json", "data_files": jsonl(folder / f"{name}.jsonl", rows)})
    tasks[0] |= {"metrics": ["exact_match"], "options": True}
    fixed = {"model": {"path": base, "kind": KIND}, "lora": {"r": 8, "lora_alpha": 16}, "training": TRAINING}
    return fixed | {"tasks": tasks[:2], "guard": tasks[2], "output": str(folder / "out")} | sections


@pytest.mark.versions
def test_what_is_read_and_what_is_written(tmp_path: Path) -> None:
    rows = {
        "prompt": {"prompt": "alpha word", "completion": "beta"},
        "alpaca": {"instruction": "gamma", "input": "", "output": "delta eta"},
    }
    said = {
        "prompt": ("alpha word </s>", "beta </s>"),
        "alpaca": ("### Instruction: gamma ### Response: </s>", "delta eta </s>"),
    }
    for form, row in rows.items():
        entry = {
            "data_files": jsonl(tmp_path / f"{form}.jsonl", [row] * 5),
            "metrics": ["rouge_l"],
            "options": ["eta", "beta", "delta eta"],
        }
        found = stream(TOKENIZER, entry, kind=KIND)
        asked, first = found.asked["t0"], found.tasks[0].train[0]
        assert (TOKENIZER.decode(first["input_ids"]), TOKENIZER.decode(first["labels"])) == said[form]
        kept = asked.rows[0]
        assert kept["prompt"] == first["input_ids"] and asked.max_new_tokens == 2 * len(first["labels"])
        assert kept["options"][kept["right"]] == first["labels"] and len(kept["options"]) == 3
    long = jsonl(tmp_path / "long.jsonl", [{"prompt": "alpha " * 9, "completion": "beta " * 9}] * 5)
    cut = stream(TOKENIZER, {"data_files": long, "max_length": 4}, kind=KIND).tasks[0].train[0]
    assert TOKENIZER.decode(cut["input_ids"]) == "alpha alpha alpha </s>" and len(cut["labels"]) == 4


def test_what_an_encoder_decoder_cannot_learn(tmp_path: Path, t5: str, llama: str) -> None:
    texts = {"data_files": jsonl(tmp_path / "t.jsonl", [{"text": "alpha"}] * 5)}
    assert "rows of format 'text' have no answers, which an encoder-decoder" in refused(TOKENIZER, texts, kind=KIND)
    talk = {"data_files": jsonl(tmp_path / "m.jsonl", [{"messages": [{"role": "assistant", "content": "a"}]}] * 5)}
    assert "messages need a chat template" in refused(TOKENIZER, talk, kind=KIND)
    with pytest.raises(
        ConfigError, match="language: a section is not allowed with model.kind 'seq2seq-lm', which reads up"
    ):
        parse(document(t5, tmp_path, language={"loss": "all"}))
    with pytest.raises(
        ConfigError, match="scenario: 'class' is not allowed with model.kind 'seq2seq-lm', which has no heads"
    ):
        parse(document(t5, tmp_path, scenario="class"))
    for path, kind, message in (
        (t5, "causal-lm", "is an encoder-decoder: write 'seq2seq-lm'"),
        (llama, KIND, "is none: write 'causal-lm'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(parse(document(path, tmp_path, model={"path": path, "kind": kind})), quiet())


def test_rows_whose_answers_differ_in_length_are_kept_whole() -> None:
    ragged = [([3, 4, 1], [5, 1]), ([3, 1], [5, 6, 7, 1]), ([8, 9, 2, 3, 1], [5, 6, 7, 8, 1])]
    pieces = [Padded(0)([{"input_ids": ids, "labels": labels}]) for ids, labels in ragged]
    [(numbers, batch)] = stacked(pieces)
    assert numbers == [0, 1, 2] and batch["input_ids"].shape == (3, 5)
    assert [[x for x in row if x != IGNORED] for row in batch["labels"].tolist()] == [labels for _, labels in ragged]
    [(_, batch)] = stacked([{name: x[:, :2] if name == "input_ids" else x for name, x in pieces[1].items()}])
    assert batch["labels"].shape == (1, 4)


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model under a random adapter."""
    base = bare_t5(vocab_size=len(TOKENIZER), initializer_factor=3.0)
    base.generation_config.update(repetition_penalty=9.0, do_sample=True, temperature=7.0, eos_token_id=[1, 5])
    return filled(adapted(base, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"), size=0.5).eval()


@torch.no_grad()
def greedy(model: Any, prompt: list[int], most: int) -> str:
    """The likeliest token again and again, each from a forward of its own."""
    ids = [0]
    for _ in range(most):
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in (1, 5):
            break
    return str(TOKENIZER.decode(ids, skip_special_tokens=True)).strip()


@torch.no_grad()
def likelihood(model: Any, prompt: list[int], option: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *option[:-1]]])).logits[0]
    return sum(float(row[token]) for row, token in zip(logits.log_softmax(-1), option, strict=True))


@pytest.mark.versions
def test_answers_are_those_of_one_row_at_a_time(model: Any) -> None:
    draw = random.Random(1)
    ids = lambda n: [*draw.choices(range(3, len(TOKENIZER)), k=n), 1]  # noqa: E731
    rows = [
        {
            "prompt": ids(n),
            "answer": draw.choice(WORDS),
            "options": [ids(k) for k in (1, 2, 1)],
            "right": draw.randrange(3),
        }
        for n in (3, 1, 6, 2, 4, 5, 1)
    ]
    questions = Asked(datasets.Dataset.from_list(rows), list(METRICS), TOKENIZER, 7, options=True)
    found = answers(model, questions, batch_size=3)
    check_answers(found, rows, lambda prompt: greedy(model, prompt, 7), partial(likelihood, model))


@pytest.mark.versions
def test_trainer_takes_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    rows = [{"input_ids": [3 + i, 4, 1], "labels": [5 + i, 1][i % 2 :]} for i in range(8)]
    task = Task("t", datasets.Dataset.from_list(rows), collate=Padded(0))
    arguments = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_train_epochs": 2, "use_cpu": True}
    fixed = {"lr_scheduler_type": "constant", "remove_unused_columns": False}
    quietly = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "max_grad_norm": 0.0}

    def method() -> Any:
        model = adapted(bare_t5(dropout_rate=0.0), target_modules="all-linear", task_type="SEQ_2_SEQ_LM")
        return METHODS["sequential"](model, seed=0)

    ours, plain = method(), method()
    ours.begin_task(task)
    fit(ours.model, task, ours, TrainingArguments(str(tmp_path), **arguments, **fixed, **quietly))
    optimizer = torch.optim.AdamW(plain.param_groups(), lr=1e-2, weight_decay=0.0)
    batch = Padded(0)(rows)
    for _ in range(2):
        plain.model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, site in plain.sites.items():
        torch.testing.assert_close(ours.sites[name].delta(), site.delta(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs", "in_process")
def test_a_stream_is_learned_scored_guarded_and_exported(t5: str, tmp_path: Path) -> None:
    content = document(t5, tmp_path, method={"name": "ewc-lora", "mode": "merge", "strength": 0.1})
    made = plan(parse(content), quiet())
    assert [(task.rows, task.classes) for task in made.tasks] == [(16, None)] * 2 and made.found.flops
    results, told = run(parse(content), quiet()), io.StringIO()
    matrix = np.array(results["nats_per_token"]["matrix"])
    assert matrix.shape == (3, 2) and matrix[1, 0] < matrix[0, 0] / 4 and "accuracy" not in results
    match = np.array(results["metrics"]["exact_match"]["matrix"], dtype=float)
    assert match[0, 0] == 0 and match[1, 0] == 1
    assert results["guard"]["held"] and results["guard"]["rise"] != 0
    entry = json.loads((tmp_path / "out" / "base" / "scores.json").read_text())["tasks"]["next"]
    assert entry["tokens"] == [2] * 4
    adapter = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert adapter["task_type"] == "SEQ_2_SEQ_LM" and not (tmp_path / "out" / "adapter" / "labels.json").exists()
    console = Console(file=told, width=200)
    assert export(tmp_path / "out", console=console) < 1e-4
    assert "vLLM 0.33.0 has no encoder-decoders that read texts" in told.getvalue()
    check(tmp_path / "out", None, console)
    assert "next: 1.000 -> " in told.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs")
@pytest.mark.parametrize("name", ["ewc-lora", "replay"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name: str, t5: str, tmp_path: Path) -> None:
    sections = {"method": {"name": name}, "training": TRAINING | {"max_steps": 4}}
    run(parse(document(t5, tmp_path, output=str(tmp_path / "whole"), **sections)), quiet())
    config = parse(document(t5, tmp_path, output=str(tmp_path / "parts"), **sections))
    run(config, quiet(), tasks=1)
    run(config, quiet())
    whole, parts = (left_by(tmp_path / which) for which in ("whole", "parts"))
    different = [key for key in whole if whole[key] != parts.get(key)]
    assert different == ["config.yaml"]


def test_init_asks_the_model_which_kind_it_is(t5: str, llama: str, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "asked.jsonl", [{"prompt": "alpha", "completion": "beta"}] * 5)
    for model, kind in ((t5, KIND), (llama, "causal-lm"), ("no/such", "causal-lm")):
        path = tmp_path / f"{kind}-{Path(model).name}.yaml"
        init(path, [rows], model, "ewc-lora", quiet())
        assert load(path).model.kind == kind and "heads" not in path.read_text()
