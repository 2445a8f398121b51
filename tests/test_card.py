"""The card of an adapter."""

from __future__ import annotations

from typing import Any

from retain.card import card

README = "---\nbase_model: base\nlibrary_name: peft\n---\nHow to load it.\n"
RESULTS: dict[str, Any] = {
    "retain": "0.1.0",
    "method": {"name": "ewc-lora", "strength": 10},
    "seed": 3,
    "rows": "test",
    "tasks": ["faq", "sql"],
    "bytes": {"adapter": 2048, "state": 1024},
    "accuracy": {"matrix": [[0.1, 0.2], [0.9, 0.3], [0.8, 0.7]]},
}


def test_it_tells_scores_storage_and_provenance() -> None:
    found = card(README, RESULTS)
    assert found.startswith(
        "---\nbase_model: base\nlibrary_name: peft\ntags: [lora, continual-learning, retain]\n---\n"
    )
    assert "How to load it." in found and "## Scores (accuracy; test rows)" in found
    assert "| faq | 0.100 | 0.900 | 0.800 |\n| sql | 0.200 | 0.700 | 0.700 |" in found
    assert "Method: {name: ewc-lora, strength: 10}; seed 3; retain 0.1.0. The adapter takes 2.0 KiB;" in found


def test_language_models_are_told_in_nats_and_what_was_not_measured_is_a_dot() -> None:
    nats = {"nats_per_token": {"matrix": [[5.0, 5.0], [None, None], [4.0, 4.5]]}}
    found = card(README, RESULTS | nats)
    assert "nats a token, lower is better" in found and "| faq | 5.000 | · | 4.000 |" in found
