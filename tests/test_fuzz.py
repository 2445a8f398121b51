"""Whatever a file holds, its reader reads it or refuses it with our own error, soon, and reads nothing else."""

from __future__ import annotations

import importlib
import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
NAMES = ("config", "done", "manifest", "ledger", "safetensors", "adapter_config", "results")
ANY = st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
).map(lambda value: json.dumps(value).encode())


@pytest.fixture(scope="module")
def fuzzing() -> Any:
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("benchmarks.fuzz")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def known(fuzzing: Any) -> Any:
    return fuzzing.readers()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("of somebody else")
    (tmp_path / "run").mkdir()
    return (tmp_path / "run").resolve()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_content_is_read_or_refused(name: str, data: Any, fuzzing: Any, known: Any, home: Path) -> None:
    assert set(known) == set(NAMES)
    content = data.draw(
        st.integers(0, 2**32).map(lambda n: fuzzing.mutated(known[name].content, random.Random(n))) | ANY
    )
    assert fuzzing.outcome_of(known[name], home, content) in ("read", "refused")


@pytest.mark.parametrize("name", ["done", "ledger", "safetensors", "adapter_config", "results"])
def test_what_is_valid_is_read(name: str, fuzzing: Any, known: Any, home: Path) -> None:
    reader = known[name]
    if name == "done":
        (home / "file").write_text("x")
        reader = fuzzing.Reader("done", b"{}", reader.read)
    assert fuzzing.outcome_of(reader, home, reader.content) == "read"


def test_the_harness_sees_what_it_looks_for(fuzzing: Any, home: Path) -> None:
    def outcome(read: Any) -> str:
        return fuzzing.outcome_of(fuzzing.Reader("x", b"", read), home, b"")

    def endless(_: Path) -> None:
        while True:
            pass

    assert outcome(lambda folder: (folder / "../secret").read_text()) == f"read elsewhere: {home.parent / 'secret'}"
    assert outcome(lambda folder: {}["a"]) == "KeyError: 'a'"
    assert outcome(lambda folder: pickle.loads(pickle.dumps(folder))) == "read elsewhere: pickle.find_class"
    assert outcome(endless) == "more than 1.0 s"


HARMFUL = {
    "a name too long for a file": ("done", {"a" * 10_000: "0"}),
    "a search without end": ("adapter_config", {"peft_type": "LORA", "alpha_pattern": {"(a+)+$": 2}}),
    "a product of searches": ("adapter_config", {"peft_type": "LORA", "alpha_pattern": {".*.*.*.*.*x": 2}}),
    "no expression": ("adapter_config", {"peft_type": "LORA", "alpha_pattern": {"(": 2}}),
    "another kind of list": ("adapter_config", {"peft_type": "LORA", "modules_to_save": [1]}),
    "a division by nothing": ("adapter_config", {"peft_type": "LORA", "alpha_pattern": {"q": 0}}),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_what_has_harmed_once_is_refused(harm: str, fuzzing: Any, known: Any, home: Path) -> None:
    name, content = HARMFUL[harm]
    assert fuzzing.outcome_of(known[name], home, json.dumps(content).encode()) == "refused"


def test_a_score_that_there_is_none_of_has_no_interval_and_is_read(fuzzing: Any, known: Any, home: Path) -> None:
    """What a run of one task writes, a joint one, and one that tasks were added to."""
    results = json.loads(known["results"].content)
    results["accuracy"]["scores"]["forgetting"] = None
    results["accuracy"]["intervals_95"]["forgetting"] = [None, None]
    assert fuzzing.outcome_of(known["results"], home, json.dumps(results).encode()) == "read"
    results["accuracy"]["scores"]["forgetting"] = 0.5
    assert fuzzing.outcome_of(known["results"], home, json.dumps(results).encode()) == "refused"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("tasks", 0), "[/]"),
        (("rows",), "[/]"),
        (("method", "name"), "[/]"),
        (("calibration", 0, "tasks"), {"[/]": {"foreseen": 1.0, "measured": 1.0, "standard_error": 1.0, "ratio": 1.0}}),
        (("accuracy", "matrix"), [[0.5]]),
        (("accuracy", "scores", "forgetting"), "0"),
        (("accuracy", "intervals_95"), {}),
        (("calibration", 0, "after"), 3),
        (("warnings", "after 2"), [1]),
        (("method",), "ewc"),
    ],
)
def test_results_of_another_shape_are_refused(
    place: tuple[Any, ...], value: Any, fuzzing: Any, known: Any, home: Path
) -> None:
    results = json.loads(known["results"].content)
    here = results
    for step in place[:-1]:
        here = here[step]
    here[place[-1]] = value
    assert fuzzing.outcome_of(known["results"], home, json.dumps(results).encode()) == "refused"
