"""What a method says has no part in anything before the second task has none, and its knob has one if it says nothing.

A sweep trains the first task once for all values of such a keyword.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import fit, texts, tiny_bert
from retain.lora import adapter_parameters
from retain.method import Method
from retain.methods import METHODS
from runs import slow_but

KNOBS = [name for name, method in METHODS.items() if method.knob]
# Besides the ends of a knob: what is no number, and what makes a difference to a model this small.
OTHERS: dict[str, list[Any]] = {"strength": ["auto", {"budget": 0.05}, 0.0], "components": [1]}


def after_one_task(method: type[Method], keyword: str, value: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    learner = method(tiny_bert(), **{keyword: value})
    fit(learner, texts("a"))
    return adapter_parameters(learner.model) | learner.state_dict()


@pytest.mark.parametrize("name", slow_but(KNOBS, "ewc-lora", "olora", "eblora"))
def test_runs_that_differ_in_a_late_keyword_are_the_same_after_the_first_task(name: str) -> None:
    method = METHODS[name]
    keyword, values = method.knob or ("", ())
    assert set(method.late) <= {keyword}
    one, *others = (after_one_task(method, keyword, v) for v in (values[0], values[-1], *OTHERS.get(keyword, [])))
    same = [one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one) for other in others]
    assert all(same) == (keyword in method.late)
