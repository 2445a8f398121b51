"""Joint training on all tasks' rows at once: the upper bound that a stream without old data is measured against."""

from __future__ import annotations

from retain.method import Method


class Joint(Method):
    """One adapter, one training, all rows. It breaks the rule of the game (it keeps all data), which is its point.

    Args:
        model: a model from ``peft.get_peft_model``.
        seed: not used: training starts from the adapter as it is.
    """

    cumulative = True
