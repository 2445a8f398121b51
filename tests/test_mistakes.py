"""Values of a wrong type or that no method takes: one line with section, key, value and what is expected."""

from __future__ import annotations

from typing import Any

import pytest

from retain.config import ConfigError, parse

TASK = {"name": "faq", "path": "json", "data_files": "faq.jsonl"}
LEAST = {"model": {"path": "m"}, "tasks": [TASK]}


def mistake(**sections: Any) -> str:
    """What is said of the least configuration with ``sections`` in it; always one line."""
    with pytest.raises(ConfigError) as error:
        parse(LEAST | sections)
    assert "\n" not in str(error.value) and "pydantic" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("section", "keys", "complaint"),
    [
        ("lora", {"r": "eight"}, "lora.r: 'eight' is not allowed; expected a whole number"),
        ("lora", {"r": 8.0}, "lora.r: 8.0 is not allowed; expected a whole number"),
        ("lora", {"r": True}, "lora.r: True is not allowed; expected a whole number"),
        ("lora", {"lora_dropout": "much"}, "lora.lora_dropout: 'much' is not allowed; expected a number"),
        ("lora", {"target_modules": 3}, "lora.target_modules: 3 is not allowed; expected text or a list"),
        ("lora", {"target_modules": ["q", 1]}, "lora.target_modules.1: 1 is not allowed; expected text"),
        ("lora", {"rank_pattern": "query"}, "lora.rank_pattern: 'query' is not allowed; expected a section of keys"),
        ("lora", {"use_rslora": "yes"}, "lora.use_rslora: 'yes' is not allowed; expected true or false"),
        (
            "lora",
            {"bias": "non"},
            "lora.bias: 'non' is not allowed; expected 'none', 'all' or 'lora_only'; did you mean 'none'?",
        ),
        ("training", {"learning_rate": "fast"}, "training.learning_rate: 'fast' is not allowed; expected a number"),
        ("training", {"num_train_epochs": [3]}, "training.num_train_epochs: [3] is not allowed; expected a number"),
        ("training", {"max_steps": 1.5}, "training.max_steps: 1.5 is not allowed; expected a whole number"),
        ("training", {"weight_decay": None}, "training.weight_decay: None is not allowed; expected a number"),
        ("training", {"bf16": "yes"}, "training.bf16: 'yes' is not allowed; expected true or false"),
        ("training", {"report_to": ["a", 1]}, "training.report_to.1: 1 is not allowed; expected text"),
        (
            "training",
            {"save_strategy": False},
            "training.save_strategy: False is not allowed; expected text; in YAML no and yes are false and true unless "
            "they stand in quotes",
        ),
        ("method", {"strength": "x"}, "method.strength: 'x' is not allowed; expected 'auto' or a number or a section"),
        (
            "method",
            {"strength": "2%"},
            "method.strength: '2%' is not allowed; expected 'auto' or a number or a section of keys such as "
            "{budget: 2%}",
        ),
        ("method", {"strength": [1]}, "method.strength: [1] is not allowed; expected 'auto' or a number or a section"),
        ("method", {"strength": -1}, "method: strength must be at least 0 and finite, got -1"),
        ("method", {"decay": "half"}, "method.decay: 'half' is not allowed; expected a number"),
        ("method", {"decay": 2}, "method: decay must lie in [0, 1], got 2"),
        ("method", {"rank": "8"}, "method.rank: '8' is not allowed; expected a whole number"),
        ("method", {"name": "sequential", "rank": 8}, "method: rank=8 caps the folded past: it must"),
        ("method", {"seed": 1.0}, "method.seed: 1.0 is not allowed; expected a whole number"),
        (
            "method",
            {"mode": "shard"},
            "method.mode: 'shard' is not allowed; expected 'shared' or 'merge'; did you mean 'shared'?",
        ),
        (
            "method",
            {"name": "ewc", "parameters": "head.*"},
            "method.parameters: 'head.*' is not allowed; expected a list",
        ),
        ("method", {"name": "ewc", "parameters": [1]}, "method.parameters.0: 1 is not allowed; expected text"),
        ("method", {"fisher": "kronecker"}, "method.fisher: 'kronecker' is not allowed; expected a section of keys"),
        (
            "method",
            {"fisher": {"form": "kronecer"}},
            "method.fisher.form: unknown form 'kronecer'; known: diagonal, factored, kronecker; did you mean 'kronec",
        ),
        (
            "method",
            {"fisher": {"form": "kronecker", "rnak": 3}},
            "method.fisher: unknown key 'rnak' (value 3); known: form, rank, labels, temperature, samples, error, "
            "batch_size, dtype, sketches; did you mean 'rank'?",
        ),
        (
            "method",
            {"fisher": {"form": "factored", "rank": 3}},
            "method.fisher: 'rank' (value 3) is a keyword of the form 'kronecker', and the form here is 'factored'",
        ),
        (
            "method",
            {"fisher": {"form": "kronecker", "rank": "x"}},
            "method.fisher.rank: 'x' is not allowed; expected a whole number",
        ),
        (
            "method",
            {"fisher": {"form": "kronecker", "rank": "none"}},
            "method.fisher.rank: 'none' is not allowed; expected a whole number; in YAML nothing is written null",
        ),
        (
            "method",
            {"fisher": {"labels": "sampled"}},
            "method.fisher.labels: 'sampled' is not allowed; expected 'mixture', 'sample', 'exact', 'data' or "
            "'predicted'; did you mean 'sample'?",
        ),
        (
            "method",
            {"fisher": {"samples": "all"}},
            "method.fisher.samples: 'all' is not allowed; expected 'auto' or a whole number",
        ),
        ("method", {"fisher": {"samples": 0}}, "method.fisher.samples: 0 is not allowed; expected at least 1"),
        (
            "method",
            {"fisher": {"temperature": "hot"}},
            "method.fisher.temperature: 'hot' is not allowed; expected a number",
        ),
        (
            "method",
            {"fisher": {"sketches": 0}},
            "method.fisher.sketches: 0 is not allowed; expected at least 1, or null",
        ),
        (
            "method",
            {"name": "ewc", "fisher": {"form": "kronecker"}},
            "method.fisher.form: 'kronecker' needs weights with rows and columns, and ewc protects parameters of any "
            "shape, number by number; expected 'diagonal'",
        ),
    ],
)
def test_a_wrong_value(section: str, keys: dict[str, Any], complaint: str) -> None:
    assert mistake(**{section: keys}).startswith(complaint)


def test_a_tasks_own_training_is_checked_by_type() -> None:
    complaint = "tasks.1.training.learning_rate: 'fast' is not allowed; expected a number"
    assert mistake(tasks=[TASK, TASK | {"training": {"learning_rate": "fast"}}]) == complaint


def test_values_that_are_right_pass() -> None:
    lora = {"r": 4, "target_modules": "all-linear", "rank_pattern": {"query": 2}, "init_lora_weights": "gaussian"}
    training = {"learning_rate": 1, "report_to": "none", "lr_scheduler_kwargs": None, "optim": "sgd", "use_cpu": True}
    fisher = {"form": "kronecker", "rank": None, "labels": "exact", "samples": "auto", "sketches": 2}
    method = {"name": "ewc-lora", "strength": 3, "rank": None, "fisher": fisher}
    run = parse(LEAST | {"lora": lora, "training": training, "method": method})
    assert (run.lora, run.training, run.method) == (lora, training, method)
