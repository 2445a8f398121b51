"""Nats per token against a computation by hand, with signs that cannot be misread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from retain.tokenwise import headline, tokenwise

TOKENS = {"a": [1, 3], "b": [2, 2]}
LOSSES = {"a": [[2, 6], [1, 1], [1, 4]], "b": [[8, 8], [8, 8], [2, 4]]}  # untouched, after a, after b


def records() -> list[dict[str, Any]]:
    return [
        {
            "learned": stage,
            "tasks": {
                name: {
                    "rows": 2,
                    "loss": sum(LOSSES[name][stage]) / 2,
                    "tokens": TOKENS[name],
                    "losses": LOSSES[name][stage],
                }
                for name in "ab"
            },
        }
        for stage in range(3)
    ]


def test_long_rows_weigh_by_their_tokens() -> None:
    found = tokenwise(records(), ["a", "b"])
    assert set(found) == {"nats_per_token"}
    found = found["nats_per_token"]
    assert found["matrix"] == [[2.0, 4.0], [0.5, 4.0], [1.25, 1.5]] and found["better"] == "lower"
    assert found["perplexity"][2] == pytest.approx(np.exp([1.25, 1.5]), abs=1e-6)
    assert found["scores"] == {
        "untouched": 3.0,
        "just_learned": 1.0,
        "final": 1.375,
        "gained": 2.0,  # (2 - 0.5 + 4 - 1.5) / 2
        "forgetting": 0.75,  # 1.25 - 0.5
    }
    low, high = found["intervals_95"]["forgetting"]
    assert low <= 0.75 <= high and low < high


def test_what_was_not_measured_is_left_open() -> None:
    joint = [entry for entry in records() if entry["learned"] != 1]
    scores = tokenwise(joint, ["a", "b"])["nats_per_token"]["scores"]
    assert scores["just_learned"] is scores["gained"] is scores["forgetting"] is None and scores["final"] == 1.375


def test_the_headline_says_what_is_worse() -> None:
    assert headline("start", records()[:1]) == "[dim]start:[/] nats a token 2.000 4.000"
    assert headline("b", records()) == (
        "[bold]b[/] learned: 1.500 nats a token (untouched 4.000); the 1 before: 1.250 (+0.750 since learned, worse)"
    )
