"""What a model answers in batches, held against one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from retain.answers import OPTIONS
from retain.wording import METRICS

Tokens = list[int]


def check_answers(
    found: Mapping[str, np.ndarray],
    rows: Sequence[Mapping[str, Any]],
    write: Callable[[Tokens], str],
    likely: Callable[[Tokens, Tokens], float],
) -> None:
    """``found`` is what ``rows`` score by what ``write`` makes of each prompt, and how ``likely`` each option is."""
    texts = [write(row["prompt"]) for row in rows]
    assert len(set(texts)) > 3
    for name, metric in METRICS.items():
        assert found[name].tolist() == pytest.approx([metric(t, r["answer"]) for t, r in zip(texts, rows, strict=True)])
    chances = [[likely(row["prompt"], option) for option in row["options"]] for row in rows]
    right = [float(max(range(3), key=c.__getitem__) == row["right"]) for c, row in zip(chances, rows, strict=True)]
    assert found[OPTIONS].tolist() == right and 0 < sum(right) < len(rows)
