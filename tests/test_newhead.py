"""A classifier that starts from nothing is trained as a whole, or somebody hears of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from models import CLASSES, adapted, bare_bert
from retain import METHODS

LINEAR = {"target_modules": "all-linear"}
EXCLUDED = LINEAR | {"exclude_modules": ["classifier"]}


def made(saved: list[str] | None, **lora: Any) -> Any:
    """A method beside a text classifier whose checkpoint was of the kinds ``saved``."""
    base = bare_bert()
    base.config.architectures = saved
    return METHODS["sequential"](adapted(base, **{"r": CLASSES} | lora))


@pytest.mark.parametrize(("lora", "state"), [(LINEAR, "adapted on top of random weights"), (EXCLUDED, "frozen")])
def test_a_new_classifier_that_does_not_train_as_a_whole_is_told(lora: dict[str, Any], state: str) -> None:
    said = rf"'classifier' of this BertForSequenceClassification is new .* BertForMaskedLM\) and {state}: .*SEQ_CLS"
    with pytest.warns(UserWarning, match=said):
        method = made(["BertForMaskedLM"], **lora)
    assert not any("classifier" in name for name in method.beside())


@pytest.mark.parametrize(
    ("saved", "lora"),
    [
        (["BertForMaskedLM"], LINEAR | {"task_type": "SEQ_CLS"}),
        (["BertForMaskedLM"], EXCLUDED | {"modules_to_save": ["classifier"]}),
        (["BertForSequenceClassification"], EXCLUDED),  # it may have been trained
        (None, LINEAR),
    ],
)
def test_there_is_no_false_alarm(saved: list[str] | None, lora: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made(saved, **lora)


def test_a_rank_above_the_classes_names_the_ways_out() -> None:
    with pytest.raises(ValueError, match=r"classifier: rank 8 is larger than the layer.*exclude_modules.*'SEQ_CLS'"):
        made(None, **LINEAR, r=8)
