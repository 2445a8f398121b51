"""The schema agrees with what a run accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from retain import yamls
from retain.commands.schema import schema
from retain.methods import METHODS
from runs import document

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checked() -> Draft202012Validator:
    found = schema()
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_fit(checked: Draft202012Validator, path: Path) -> None:
    checked.validate(yamls.read(path.read_text()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_known(checked: Draft202012Validator, name: str, tmp_path: Path) -> None:
    assert checked.is_valid(document("base", tmp_path, method={"name": name}))
    assert not checked.is_valid(document("base", tmp_path, method={"name": name, "strenght": 3}))


@pytest.mark.parametrize(
    "sections",
    [
        {"method": {"name": "ewcc"}},
        {"training": {"learning_rat": 1e-3}},
        {"training": {"seed": 3}},
        {"lora": {"rank": 3}},
        {"scenario": "tasks"},
        {"model": {"kind": "text"}},
    ],
)
def test_mistakes_do_not_fit(checked: Draft202012Validator, sections: dict[str, Any], tmp_path: Path) -> None:
    assert not checked.is_valid(document("base", tmp_path, **sections))
