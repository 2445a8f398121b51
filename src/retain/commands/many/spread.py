"""What a number comes to over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean and sample standard deviation of what was measured, and the values; None if nothing was."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    deviation = float(np.std(there, ddof=1)) if len(there) > 1 else None
    return {"mean": float(np.mean(there)), "std": deviation, "by_seed": list(values)}
