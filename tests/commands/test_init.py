"""A configuration to begin with: what is guessed of files, said, and checked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retain import config
from retain.commands.init import init
from retain.sources import read
from streams import jsonl, rows

ROOT = Path(__file__).parents[2]


def begun(path: Path, *sources: Any, model: str = "model", method: str = "ewc-lora") -> tuple[config.RunConfig, str]:
    output = io.StringIO()
    init(path, [str(source) for source in sources], model, method, Console(file=output, width=200))
    return config.load(path), output.getvalue()


def file(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_labelled_texts(tmp_path: Path) -> None:
    jsonl(tmp_path / "mood.jsonl", rows(["glad", "sad"]))
    other = file(tmp_path / "sub.json", {"question": "why", "intent": "ask"})
    settings, told = begun(tmp_path / "bot.yaml", tmp_path / "mood.jsonl", other)
    assert [(t.name, t.path, t.text, t.label) for t in settings.tasks] == [
        ("mood", "json", "text", "label"),
        ("sub", "json", "question", "intent"),
    ]
    assert (
        settings.model.kind == "text" and "'question' is classified by 'intent'" in told and "Next: retain plan" in told
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "output": "b"},
        {"text": "a"},
    ],
)
def test_rows_of_language_models(tmp_path: Path, row: dict[str, Any]) -> None:
    settings, told = begun(tmp_path / "bot.yaml", file(tmp_path / "faq.jsonl", row))
    assert settings.model.kind == "causal-lm" and "rows for a language model" in told


@pytest.mark.parametrize(("asked", "answered"), [("question", "answer"), ("instruction", "response")])
def test_answers_that_would_not_be_learned_are_refused(tmp_path: Path, asked: str, answered: str) -> None:
    lines = [{"id": "x", asked: f"a{i}", answered: f"b{i}"} for i in range(3)]
    message = f"only '{asked}' would be learned, and '{answered}' looks like the answers: rename .* to 'completion'"
    with pytest.raises(ValueError, match=message):
        begun(tmp_path / "bot.yaml", file(tmp_path / "faq.jsonl", *lines))


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    _, told = begun(tmp_path / "bot.yaml", file(tmp_path / "faq.jsonl", {"text": "a", "url": "b"}))
    assert "'text' alone is learned, and url not read" in told


def test_tabs_are_read_by_the_run_too(tmp_path: Path) -> None:
    lines = [f"why, {word}?\t{word}" for word in ("ask", "tell") for _ in range(5)]
    (tmp_path / "faq.tsv").write_text("\n".join(["question\tintent", *lines]) + "\n")
    settings, _ = begun(tmp_path / "bot.yaml", tmp_path / "faq.tsv")
    assert (settings.tasks[0].text, settings.tasks[0].label) == ("question", "intent")
    train, test, classes = read(settings.tasks[0], 0)
    assert classes == ["ask", "tell"] and train.rows["question"][0] == "why, ask?" and len(test.names) == 2


def test_tasks_of_the_same_labels_are_asked_for_their_scenario(tmp_path: Path) -> None:
    one, two, three = (
        jsonl(tmp_path / f"{name}.jsonl", rows(labels))
        for name, labels in (("one", ["glad", "sad"]), ("two", ["sad", "mad"]), ("three", ["x", "y"]))
    )
    settings, told = begun(tmp_path / "bot.yaml", one, three, two)
    assert "labels of one and two are alike (sad)" in told and "write `scenario: domain`" in told
    assert settings.scenario == "task" and "\nscenario: task " in (tmp_path / "bot.yaml").read_text()
    assert "alike" not in begun(tmp_path / "other.yaml", one, three)[1]


def test_questions_about_pictures(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}]
    settings, told = begun(
        tmp_path / "bot.yaml", file(tmp_path / "p.jsonl", {"image": "1.png", "conversations": turns})
    )
    assert settings.model.kind == "image-text-to-text" and "that reads pictures (sharegpt)" in told


def test_a_label_of_another_name_is_known_by_its_few_values(tmp_path: Path) -> None:
    settings, told = begun(tmp_path / "bot.yaml", ROOT / "examples" / "data" / "legal.jsonl")
    assert (settings.tasks[0].text, settings.tasks[0].label) == ("body", "area")
    assert "text 'body' is classified by 'area'" in told


def test_a_label_of_fractions_makes_a_regression(tmp_path: Path) -> None:
    lines = [{"text": "alpha", "label": i / 2} for i in range(4)]
    settings, told = begun(tmp_path / "bot.yaml", file(tmp_path / "r.jsonl", *lines))
    assert settings.tasks[0].metric == "pearson" and "text 'text' is labelled with numbers by 'label'" in told


def test_images_and_hub_names(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    settings, told = begun(tmp_path / "bot.yaml", tmp_path / "birds", "someone/flowers")
    assert settings.model.kind == "image" and [t.name for t in settings.tasks] == ["birds", "flowers"]
    assert "not looked at" in told


def test_pictures_for_a_model_that_draws(tmp_path: Path) -> None:
    for name in ("birds", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    settings, told = begun(tmp_path / "bot.yaml", tmp_path / "birds", model=str(tmp_path / "pipe"))
    assert settings.model.kind == "text-to-image" and settings.lora["target_modules"] == [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    ]
    assert settings.tasks[0].prompt == "a picture in the style of birds" and "see `prompt`" in told


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "no rows|Empty|empty"),
        ("a.docx", "x", "unknown ending '.docx'; known: .json"),
        ("a.csv", "height,label\n3,tall\n", "no column of text"),
        ("a.csv", "height,width\n3,4\n", "fit no format"),
    ],
)
def test_files_that_fit_nothing(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        begun(tmp_path / "bot.yaml", tmp_path / name)
    assert not (tmp_path / "bot.yaml").exists()


def test_nothing_is_overwritten_and_wrong_names_leave_nothing(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "mood.jsonl", rows(["glad", "sad"]))
    with pytest.raises(ValueError, match="unknown method 'ewcc'"):
        begun(tmp_path / "bot.yaml", source, method="ewcc")
    assert not (tmp_path / "bot.yaml").exists()
    begun(tmp_path / "bot.yaml", source)
    with pytest.raises(ValueError, match="exists already"):
        begun(tmp_path / "bot.yaml", source)
    with pytest.raises(ValueError, match="several: mood: text, lm: causal-lm"):
        begun(tmp_path / "other.yaml", source, file(tmp_path / "lm.jsonl", {"prompt": "a", "completion": "b"}))
