"""YAML as people mean it."""

import time

import pytest

from retain import yamls
from retain.yamls import override, read, write


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("2e5", 2e5), ("-1.5E+3", -1500.0), (".5e1", 5.0), ("1.e2", 100.0), ("3", 3), ("0x1e4", 0x1E4)],
)
def test_numbers(text: str, value: float) -> None:
    assert read(text) == value and type(read(text)) is type(value)


@pytest.mark.parametrize("text", ["e5", "1e", "1e-4x", "v1e4", "1-e4", "'1e-4'"])
def test_texts_that_only_look_like_numbers(text: str) -> None:
    assert read(text) == text.strip("'")


def test_what_is_written_is_read_back() -> None:
    content = {"b": ["1e5", "no", 1e-4, 2e-5, None, "ä", 3], "a": {"x": "", "y": "1"}}
    assert read(write(content)) == content and list(read(write(content))) == ["b", "a"]
    shared = [1]
    assert "&" not in write({"a": shared, "b": shared})


def test_merged_keys_are_no_repetition() -> None:
    assert read("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")["b"] == {"x": 3, "y": 2}


def test_a_repeated_key_says_where() -> None:
    with pytest.raises(ValueError, match=r"the key 'x' stands twice \(line 3\)"):
        read("a:\n  x: 1\n  x: 2")


def test_an_override_makes_the_section_that_it_needs() -> None:
    document = {"a": None, "c": [{}, 1]}
    for assignment in ("a.b.x=1", "c.0.y=1e-4", "c.1=[2]", "d="):
        override(document, assignment)
    assert document == {"a": {"b": {"x": 1}}, "c": [{"y": 1e-4}, [2]], "d": None}


def test_many_digits_take_no_longer_than_many_letters() -> None:
    """Fuzzing found it: whether a value is a number took the square of its length, a second for a long one."""
    began = time.process_time()
    yamls.read("".join(f"a{i}: {'9' * 9990}x\n" for i in range(13)))
    assert time.process_time() - began < 0.5


LINES = "# top\ntasks:   # in order\n  - {name: a}   # first\n  # next\n  - name: b\n    x: 1  # its own\n"
APPENDED = {
    "a list in lines, with remarks": (f"{LINES}\n# then\ny: 2\n", f"{LINES}  - {{name: c}}\n\n# then\ny: 2\n"),
    "a list in brackets": (
        "tasks: [{name: a},\n  {name: b},  # last\n  ]\n",
        "tasks: [{name: a},\n  {name: b}, {name: c},  # last\n  ]\n",
    ),
    "without a line's end": ("z: &z {t: 1}\ntasks:\n- tasks: *z", "z: &z {t: 1}\ntasks:\n- tasks: *z\n- {name: c}"),
    "behind a text of lines": (
        "tasks:\n  - name: |\n      ä\n      two\n\nx: 1\n",
        "tasks:\n  - name: |\n      ä\n      two\n  - {name: c}\n\nx: 1\n",
    ),
}


@pytest.mark.parametrize("form", APPENDED)
def test_an_entry_is_added_and_all_else_stays(form: str) -> None:
    before, after = APPENDED[form]
    assert yamls.append(before, "tasks", [{"name": "c"}]) == after


def test_what_cannot_be_added_to_says_so() -> None:
    with pytest.raises(ValueError, match="no list 'tasks' to add to"):
        yamls.append("x: {tasks: [1]}\n", "tasks", [1])
    with pytest.raises(ValueError, match="add this yourself:\n- {name: c}"):
        yamls.append("tasks:\n  - a: >\n      text", "tasks", [{"name": "c"}])
