"""Rows of text become tokens, of which the answers are learned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from retain.config import ConfigError, parse
from retain.task import IGNORED
from streams import chat_tokenizer, jsonl, language_stream, refused

ASKED = [{"prompt": f"alpha {i}", "completion": f"beta {i}"} for i in range(10)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat_tokenizer()


def written(tokenizer: Any, row: dict[str, Any]) -> tuple[str, str]:
    """The whole row, and what of it is learned."""
    learned = [token for token in row["labels"] if token != IGNORED]
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(learned)


def first(tokenizer: Any, file: str, **config: Any) -> dict[str, Any]:
    entry = {"data_files": file} | config.pop("entry", {})
    return language_stream(tokenizer, entry, **config).tasks[0].train[0]


def test_a_prompt_and_its_completion(tokenizer: Any, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "asked.jsonl", ASKED)
    stream = language_stream(tokenizer, {"data_files": file, "max_train": 5, "max_test": 1})
    assert stream.groups is None and stream.labels == [[]]
    assert (len(stream.tasks[0].train), len(stream.tasks[0].test)) == (5, 1)
    row = stream.tasks[0].train[0]
    whole, learned = written(tokenizer, row)
    assert whole.startswith("<bos> alpha") and whole.endswith("<eos>") and learned.startswith("beta")
    assert len(row["labels"]) == len(row["input_ids"]) and set(row) == {"input_ids", "labels"}
    whole, learned = written(tokenizer, first(tokenizer, file, language={"loss": "all"}))
    assert learned == whole.removeprefix("<bos> ")


def test_plain_texts_are_learned_but_for_the_first_token(tokenizer: Any, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "t.jsonl", [{"body": "alpha beta gamma"}] * 5)
    assert written(tokenizer, first(tokenizer, file, entry={"text": "body"})) == (
        "<bos> alpha beta gamma <eos>",
        "alpha beta gamma <eos>",
    )
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = None
    assert written(bare, first(bare, file, entry={"text": "body"})) == ("alpha beta gamma <eos>", "beta gamma <eos>")


def test_conversations_are_learned_up_to_the_end_of_every_turn(tokenizer: Any, tmp_path: Path) -> None:
    said = [("user", "alpha"), ("assistant", "beta"), ("user", "gamma"), ("assistant", "delta")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in said]}] * 5
    file = jsonl(tmp_path / "m.jsonl", rows)
    whole = "<user> alpha <eos> <assistant> beta <eos> <user> gamma <eos> <assistant> delta <eos>"
    assert written(tokenizer, first(tokenizer, file)) == (whole, "beta <eos> delta <eos>")
    assert written(tokenizer, first(tokenizer, file, language={"loss": "last"})) == (whole, "delta <eos>")


def test_what_follows_the_last_end_of_turn_is_not_learned(tokenizer: Any, tmp_path: Path) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = tokenizer.chat_template.replace("' <eos> '", "' <eos> word '")
    file = jsonl(
        tmp_path / "m.jsonl",
        [{"instruction": "alpha", "input": "", "output": "beta"}] * 5,
    )
    assert written(chatty, first(chatty, file)) == ("<user> alpha <eos> word <assistant> beta <eos> word", "beta <eos>")


def test_long_rows_are_cut_and_those_without_an_answer_left_out(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "alpha " * (3 + 40 * (i % 2)), "completion": "beta gamma"} for i in range(20)]
    entry = {"data_files": jsonl(tmp_path / "l.jsonl", rows), "max_length": 5}
    with pytest.warns(UserWarning, match="task 't0': max_length 5 ends . of .* rows before anything is learned"):
        task = language_stream(tokenizer, entry | {"train": "train[:16]", "test": "train[16:]"}).tasks[0]
    assert written(tokenizer, task.train[0]) == ("<bos> alpha alpha alpha beta", "beta")
    assert len(task.train) == 8
    message = refused(tokenizer, entry | {"max_length": 4}, kind="causal-lm")
    assert "max_length 4 leaves no training row anything to learn" in message
    assert "max_length 65 is more than the model's 64" in refused(
        tokenizer, entry | {"max_length": 65}, kind="causal-lm"
    )


def test_bad_rows_are_named(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 4 + [{"prompt": "a", "completion": None}]
    entry = {"data_files": jsonl(tmp_path / "b.jsonl", rows), "train": "train", "test": "train[:1]"}
    entry = {"data_files": {"train": entry["data_files"], "test": entry["data_files"]}}
    message = refused(tokenizer, entry, kind="causal-lm")
    assert "training row 4: column 'completion' holds None, not text" in message
    assert "no column 'messages', which format 'messages' needs" in refused(
        tokenizer, entry | {"format": "messages"}, kind="causal-lm"
    )
    odd = jsonl(tmp_path / "o.jsonl", [{"question": "a"}] * 5)
    assert "columns question fit no format" in refused(tokenizer, {"data_files": odd}, kind="causal-lm")


TASK = {"name": "a", "path": "json", "data_files": "a.jsonl"}


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"scenario": "class"}, "scenario: 'class' is not allowed with model.kind 'causal-lm', which has no heads"),
        ({"heads": {"learning_rate": 1}}, "heads: a section is not allowed with model.kind 'causal-lm', which has no"),
        ({"tasks": [TASK | {"label": "x"}]}, "tasks.0.label: 'x' is not allowed with model.kind 'causal-lm', which"),
        ({"tasks": [TASK | {"text": ["a", "b"]}]}, "tasks.0.text: ['a', 'b'] is not allowed with model.kind 'causal"),
        (
            {"model": {"path": "m"}, "language": {"loss": "all"}},
            "language: a section is not allowed with model.kind 't",
        ),
        (
            {"model": {"path": "m"}, "tasks": [TASK | {"format": "text"}]},
            "tasks.0.format: 'text' is not allowed with model.kind 'text', which tells classes apart",
        ),
    ],
)
def test_what_does_not_go_together(sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({"model": {"path": "m", "kind": "causal-lm"}, "tasks": [TASK]} | sections)
    assert str(error.value).startswith(complaint)
