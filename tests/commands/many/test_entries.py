"""Who takes part: names, variants, all of them; which knob is tuned, and over which values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from compared import stream
from retain.commands.many.entries import Entry, entries, tried
from retain.methods import METHODS
from retain.mistakes import Within

VALUES = (1, 2, 3, 4, 5)


def named(*asked: str, tries: int = 3, **sections: Any) -> list[Entry]:
    return entries(asked, stream(Path("out"), **sections), tries)[0]


def refused(*asked: str, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        named(*asked, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_is_every_method_with_three_values_of_its_knob() -> None:
    found = named("all")
    assert [entry.label for entry in found] == [entry.folder for entry in found] == list(METHODS)
    for entry in found:
        knob = METHODS[entry.label].knob
        assert entry.method == {"name": entry.label} and entry.keyword == (knob and knob[0])
        assert len(entry.tried) == (3 if knob else 0) and set(entry.tried) <= set(knob[1] if knob else ())
    assert [entry.label for entry in found if entry.cumulative] == ["joint"]


def test_variants_stand_beside_their_method() -> None:
    plain, merge, form = named("ewc-lora", "ewc-lora:mode=merge,rank=4", "ewc-lora:fisher={form: diagonal},decay=0.5")
    assert plain.method == {"name": "ewc-lora"}
    assert merge.method == {"name": "ewc-lora", "mode": "merge", "rank": 4} and merge.tried == plain.tried
    assert form.method == {"name": "ewc-lora", "fisher": {"form": "diagonal"}, "decay": 0.5}
    assert [e.folder for e in (plain, merge)] == ["ewc-lora", "ewc-lora_mode=merge,rank=4"]
    assert [e.label for e in named("all", "olora:overlap=squared")] == [*METHODS, "olora:overlap=squared"]


def test_a_variant_may_have_another_adapter_or_training_but_no_other_rows() -> None:
    lora = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
    plain, scaled = named("eblora", "eblora:lora.lora_alpha=40,energy=0.9,training.max_steps=3", lora=lora)
    assert plain.sections == {} and plain.tried
    assert scaled.sections == {"lora": lora | {"lora_alpha": 40}, "training": {"max_steps": 3}} and not scaled.tried
    assert scaled.method == {"name": "eblora", "energy": 0.9} and lora["lora_alpha"] == 8
    assert "unknown key 'lora_alhpa'" in refused("eblora:lora.lora_alhpa=40")
    assert "method: unknown key 'tasks'" in refused("sequential:tasks.0.max_train=1")


def test_what_is_given_is_not_tuned() -> None:
    entry = named("ewc-lora:strength=7")[0]
    assert (entry.keyword, entry.tried, entry.method["strength"]) == ("strength", (), 7)
    method = {"name": "ewc-lora", "strength": 7.0, "mode": "merge"}
    ours, other = named("ewc-lora", "ewc", method=method)  # what the file says holds for the method that it names
    assert (ours.method, ours.tried) == (method, ()) and other.method == {"name": "ewc"} and other.tried
    assert named("ewc-lora", tries=1)[0].tried == ()


def test_a_keyword_that_needs_the_knob_is_checked_with_it() -> None:
    assert named("ewc-lora:fisher.temperature=1.0")[0].tried == (3.0, 10.0, 30.0)
    assert "strength must be given as a number with fisher.temperature=1.0" in refused(
        "ewc-lora:fisher.temperature=1.0", tries=1
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["sequential", "ewc-lorra"], "unknown method 'ewc-lorra'; known: sequential, .*did you mean 'ewc-lora'"),
        (["al"], "unknown method 'al'"),
        (["ewc-lora:strengt=3"], "ewc-lora:strengt=3: method: unknown key 'strengt'.*did you mean 'strength'"),
        (["ewc-lora:mode"], "is not of the form section.key=value"),
        (["ewc-lora:mode=merged"], "ewc-lora:mode=merged: method.mode: 'merged' is not allowed"),
        (["ewc", "ewc"], "'ewc' is there twice; methods: ewc, ewc"),
        ([], "no method to compare; known: all, sequential"),
    ],
)
def test_mistakes(asked: list[str], message: str) -> None:
    assert re.search(message, found := refused(*asked)), found


def test_no_knob_has_so_many_values() -> None:
    assert refused("sequential", "olora", tries=9) == (
        "--tries 9: orthogonality of olora has 5 values, and all methods try as many"
    )


def test_all_leaves_out_what_does_not_fit_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(**keywords: Any) -> None:
        raise Within("overlap", "not on such a stream")

    monkeypatch.setattr(METHODS["olora"], "check", check)
    found, left_out = entries(["all"], stream(Path("out")), 3)
    assert "olora" not in [entry.label for entry in found] and len(found) == len(METHODS) - 1
    assert left_out == {"olora": "method.overlap: not on such a stream"}
    assert "not on such a stream" in refused("olora")


@pytest.mark.parametrize(
    ("default", "tries", "expected"),
    [
        (3, 3, (2, 3, 4)),
        (1, 3, (1, 2, 3)),
        (4, 3, (3, 4, 5)),
        (5, 2, (4, 5)),
        (None, 3, (2, 3, 4)),
        (2, 5, (1, 2, 3, 4, 5)),
    ],
)
def test_values_around_the_default(default: Any, tries: int, expected: tuple) -> None:
    assert tried(VALUES, default, tries) == expected
