"""Tasks of a language model that are asked: what the YAML says, what a run finds, and what is made of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from retain.commands.check import check
from retain.commands.table import print_scores
from retain.config import ConfigError, parse
from retain.formats import answer_of, answered
from retain.report import report
from retain.run import run
from retain.tokenwise import levels
from streams import WORDS, chat_tokenizer, jsonl, language_stream, refused
from test_run_language import document

pytestmark = pytest.mark.usefixtures("fast_runs")
SAID = [("user", "alpha"), ("assistant", "beta"), ("user", "gamma"), ("assistant", "delta")]
FORMS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "alpha gamma", "completion": "delta"},
    "alpaca": {"instruction": "alpha", "input": "gamma", "output": "delta"},
    "messages": {"messages": [{"role": role, "content": text} for role, text in SAID]},
    "sharegpt": {"conversations": [{"from": role, "value": text} for role, text in SAID]},
}


@pytest.mark.parametrize("form", FORMS)
def test_prompts_options_and_answers_are_those_of_the_rows(form: str, tmp_path: Path) -> None:
    row, tokenizer = FORMS[form], chat_tokenizer()
    assert answer_of(row, form) == "delta"
    assert answer_of(answered(row, form, "eta"), form) == "eta" and answer_of(row, form) == "delta"
    entry = {
        "data_files": jsonl(tmp_path / "r.jsonl", [row] * 5),
        "metrics": ["rouge_l"],
        "options": ["eta zeta", "delta"],
    }
    stream = language_stream(tokenizer, entry)
    asked, test = stream.asked["t0"], stream.tasks[0].test[0]
    kept = asked.rows[0]
    assert kept["prompt"] == test["input_ids"][: len(kept["prompt"])]
    assert kept["answer"] == "delta" and kept["right"] == 1 and asked.max_new_tokens == 2 * kept["length"]
    assert [tokenizer.decode(ids) for ids in kept["options"]] == ["eta zeta <eos>", "delta <eos>"]
    assert tokenizer.decode([*kept["prompt"], *kept["options"][1]]) == tokenizer.decode(test["input_ids"])
    assert set(stream.tasks[0].train[0]) == {"input_ids", "labels"}


def test_options_may_be_the_answers_of_the_training_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "word", "completion": WORDS[i % 3]} for i in range(15)]
    entry = {"data_files": jsonl(tmp_path / "r.jsonl", rows), "options": True}
    asked = language_stream(chat_tokenizer(), entry).asked["t0"]
    assert asked.metrics == () and asked.options and asked.work == 3 * len(asked.rows)
    assert {len(row["options"]) for row in asked.rows} == {3}
    assert refused(chat_tokenizer(), entry | {"options": ["alpha", "betas"]}, kind="causal-lm").endswith(
        "the answer 'beta' is none of the options 'alpha', 'betas'; did you mean 'betas'?"
    )
    jsonl(tmp_path / "r.jsonl", rows[:1] * 5)
    assert "have 1 different answers; `options: true` takes 2" in refused(chat_tokenizer(), entry, kind="causal-lm")


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    entry = {"data_files": jsonl(tmp_path / "t.jsonl", [{"text": "alpha beta"}] * 5), "metrics": ["exact_match"]}
    assert "format 'text' have no answers" in refused(chat_tokenizer(), entry, kind="causal-lm")
    entry = {"data_files": jsonl(tmp_path / "p.jsonl", [FORMS["prompt"]] * 5), "metrics": ["exact_match"]}
    assert "and 62 that may be written are more than the model's 64" in refused(
        chat_tokenizer(), entry | {"max_new_tokens": 62}, kind="causal-lm"
    )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"metrics": ["exact_mtch"]}, "tasks.0.metrics.0: 'exact_mtch' is not allowed.*did you mean 'exact_match'"),
        (
            {"metrics": ["rouge_l", "rouge_l"]},
            "tasks.0.metrics: 'rouge_l' is there twice",
        ),
        ({"max_new_tokens": 5}, "tasks.0.max_new_tokens: 5 without `metrics`: nothing is written"),
        ({"options": ["yes"]}, "tasks.0.options"),
        ({"options": False}, "tasks.0.options: False is not allowed"),
    ],
)
def test_mistakes_are_one_line(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({"model": {"path": "m", "kind": "causal-lm"}, "tasks": [{"name": "a", "path": "p"} | task]})


def test_other_models_are_asked_nothing() -> None:
    with pytest.raises(ConfigError, match=r"tasks.0.metrics: \['rouge_l'\] is not allowed with model.kind 'text'"):
        parse({"model": {"path": "m"}, "tasks": [{"name": "a", "path": "p", "metrics": ["rouge_l"]}]})


@pytest.mark.slow
def test_a_run_asks_after_every_task(llama: str, tmp_path: Path) -> None:
    console = Console(file=(told := io.StringIO()), width=100)
    content = document(llama, tmp_path, method={"name": "sequential"})
    content["training"] = {"max_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 0.01}
    content["lora"] = {"r": 8, "lora_alpha": 16}
    other = [{"prompt": WORDS[i % 8], "completion": WORDS[(i + 2) % 8]} for i in range(20)]
    content["tasks"][1]["data_files"] = jsonl(tmp_path / "other.jsonl", other)
    content["tasks"][0] |= {"metrics": ["token_f1", "exact_match"], "options": True}
    content["tasks"][1] |= {"metrics": ["exact_match"]}
    content["tasks"][2] |= {"training": {"max_steps": 2}}
    results = run(parse(content), console)
    assert list(results["metrics"]) == ["token_f1", "exact_match", "option_accuracy"]
    match = results["metrics"]["exact_match"]
    matrix = np.array(match["matrix"], dtype=float)
    assert np.isnan(matrix[:, 2]).all() and not np.isnan(matrix[:, :2]).any()
    assert matrix[0, 0] == 0 and matrix[1, 0] == 1 and matrix[-1, 0] < 1  # learned, and forgotten for the next
    assert match["scores"]["gained"] == pytest.approx(np.mean([matrix[1, 0], matrix[2, 1]]))
    assert match["scores"]["forgetting"] == pytest.approx(np.mean([1, matrix[2:, 1].max()]) - matrix[-1, :2].mean())
    low, high = match["intervals_95"]["forgetting"]
    assert low <= match["scores"]["forgetting"] <= high
    print_scores(console, results)
    said = " ".join(told.getvalue().split())
    assert "nats a token (untouched" in said and ", token_f1 1.000, exact_match 1.000, option_accuracy 1.000" in said
    assert "exact_match, higher is better" in said
    assert not check(tmp_path / "out", None, console)
    assert "greek: 1.000 -> " in told.getvalue()  # of its first metric
    report([tmp_path / "out"], tmp_path / "page.html", examples=0)
    page = (tmp_path / "page.html").read_text()
    assert (
        "<h2>exact_match after each task</h2>" in page
        and page.count('<th scope="col">prose</th>') == 1
        and "exact_match is " in page
    )
    assert "| greek: exact_match, higher is better |" in (tmp_path / "out" / "adapter" / "README.md").read_text()


def test_levels_of_what_is_better_higher_and_not_asked_of_all() -> None:
    nan = np.nan
    matrix = np.array([[0.1, nan, 0.3], [0.9, nan, 0.3], [0.95, nan, 0.2], [0.5, nan, 0.8]])
    assert levels(matrix, "higher") == pytest.approx(
        {"untouched": 0.2, "just_learned": 0.85, "final": 0.65, "gained": 0.65, "forgetting": 0.45}
    )


def test_a_share_of_scores_that_there_are_not_is_no_budget() -> None:
    document = {
        "model": {"path": "m", "kind": "causal-lm"},
        "method": {"strength": {"budget": "2%"}},
        "tasks": [{"name": "a", "path": "p"}],
    }
    with pytest.raises(
        ConfigError, match=r"budget is '2%' of the tasks' scores.* `metrics` or `options`; expected nats"
    ):
        parse(document)
