"""Tasks that come later: added to a file or a run, which ends as if they had been there from the start."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retain import config as configuration
from retain import store
from retain.commands.add_task import add_task
from retain.commands.audit import audit
from retain.commands.check import check
from retain.commands.table import print_scores
from retain.report import report
from retain.run import run
from retain.store import StoreError
from runs import LABELS, document, left_by, quiet, settings, slow_but, yaml_file
from streams import jsonl, rows
from test_run_crashes import VARIANTS
from test_run_language import document as language_document

pytestmark = pytest.mark.usefixtures("fast_runs")


def added(target: Path, *sources: Path, name: str | None = None) -> str:
    output = io.StringIO()
    add_task(target, [str(source) for source in sources], name, Console(file=output, width=200))
    return output.getvalue()


def of_the_last(found: dict[str, Any]) -> dict[str, Any]:
    """Of what a run has left the adapter, and all that the third task has left: what the fourth would go on from."""
    return {
        name: content
        for name, content in found.items()
        if name.startswith(("adapter/adapter", "tasks/02")) and not name.endswith("README.md")
    }


CASES = {"ewc-lora": "class", "merge": "task", "replay": "class", "dwd": "task", "eblora": "class", "share": "task"}


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(CASES, "ewc-lora"))
def test_a_run_goes_on_with_a_task_as_if_it_had_been_there(method: str, bert: str, tmp_path: Path) -> None:
    """The last task's adapter, state, scores and losses, to the bit."""
    form: dict[str, Any] = {"method": VARIANTS[method], "scenario": CASES[method], "training": {"max_steps": 1}}
    whole, part = (settings(bert, tmp_path, output=str(tmp_path / name), **form) for name in ("whole", "part"))
    results = run(whole, quiet())
    run(part.model_copy(update={"tasks": part.tasks[:2]}), quiet())
    folder = Path(part.output)
    first = {name: value for name, value in left_by(folder).items() if name.startswith("tasks/00")}
    told = added(folder, tmp_path / "greek.jsonl")
    assert "greek: text 'text' is classified by 'label'" in told and f"Next: retain run {folder}/config.yaml" in told
    longer = configuration.load(folder / "config.yaml")
    assert [task.name for task in longer.tasks] == ["mood", "sport", "greek"]
    again = run(longer, quiet())
    ours, theirs = left_by(folder), left_by(whole.output)
    assert of_the_last(ours) == of_the_last(theirs)
    assert {name: value for name, value in ours.items() if name.startswith("tasks/00")} == first
    matrix, wanted = again["accuracy"]["matrix"], results["accuracy"]["matrix"]
    assert [row[2] for row in matrix] == [None, None, None, wanted[3][2]]
    assert [row[:2] for row in matrix] == [row[:2] for row in wanted]
    for name in ("average_accuracy", "forgetting", "backward_transfer"):
        assert again["accuracy"]["scores"][name] == results["accuracy"]["scores"][name]
    assert again["accuracy"]["scores"]["forward_transfer"] is None
    check(folder, None, quiet())
    audit(folder, quiet())


@pytest.mark.slow
def test_the_report_of_a_run_that_went_on_says_what_is_known(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood sport", scenario="class", training={"max_steps": 1})
    run(config.model_copy(update={"tasks": config.tasks[:1]}), quiet())
    run(config, quiet())
    report([Path(config.output)], tmp_path / "page.html", examples=0)
    assert "untouched model had" not in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_a_run_of_a_language_model_goes_on(llama: str, tmp_path: Path) -> None:
    content = language_document(llama, tmp_path, output=str(tmp_path / "out"))
    entry = content["tasks"].pop()
    file = Path(yaml_file(content, tmp_path / "bot.yaml"))
    run(configuration.load(file), quiet())
    file.write_text(configuration.yamls.append(file.read_text(), "tasks", [entry]))
    results = run(configuration.load(file), console := Console(file=(told := io.StringIO()), width=100))
    print_scores(console, results)
    assert results["nats_per_token"]["matrix"][0][-1] is None and "gained" not in told.getvalue()
    assert check(tmp_path / "out", None, quiet()) in (True, False)
    report([tmp_path / "out"], tmp_path / "page.html", examples=0)
    assert "better by" not in (page := (tmp_path / "page.html").read_text()) and "In the end all tasks" in page


def test_a_file_keeps_its_remarks_and_a_run_that_is_another_is_refused(bert: str, tmp_path: Path) -> None:
    content = document(bert, tmp_path, "mood sport", training={"max_steps": 1})
    file = Path(yaml_file(content, tmp_path / "bot.yaml"))
    file.write_text(f"# mine\n{file.read_text()}# the end\n")
    added(file, Path(jsonl(tmp_path / "greek.jsonl", rows(LABELS["greek"]))))
    text = file.read_text()
    assert text.startswith("# mine\n") and text.endswith("# the end\n")
    assert "- {name: greek, path: json, data_files: greek.jsonl}" in text
    run(configuration.load(file), quiet(), tasks=1)
    with pytest.raises(ValueError, match="there is a task 'mood' already; give this one another name with --name"):
        added(file, tmp_path / "mood.jsonl")
    added(file, tmp_path / "mood.jsonl", name="mood again")
    assert [t.name for t in configuration.load(file).tasks] == ["mood", "sport", "greek", "mood again"]
    with pytest.raises(ValueError, match="one name, 'x', for 2 tasks"):
        added(file, tmp_path / "mood.jsonl", tmp_path / "sport.jsonl", name="x")
    file.write_text(file.read_text().replace("max_steps: 1", "max_steps: 2"))
    before = file.read_text()
    with pytest.raises(StoreError, match="out holds a run of another configuration: training.max_steps is 1 there"):
        added(file, tmp_path / "mood.jsonl", name="once more")
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"name": "joint"}}, "joint trains on the rows of all tasks at once and does not go on"),
        ({"model": {"path": "m", "kind": "image"}}, "'greek' has rows for model.kind 'text' .* here it is 'image'"),
        ({"output": "elsewhere"}, "is the run of elsewhere: move it back there"),
        (None, "holds no run: it has no config.yaml"),
    ],
)
def test_runs_that_nothing_can_be_added_to(change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    content = document("model", tmp_path, "mood sport greek")
    content["tasks"].pop()
    (tmp_path / "out").mkdir()
    if change is not None:
        if change.get("model"):
            content["heads"], content["tasks"] = {}, [{"name": "a", "path": "imagefolder"}]
        store.write(tmp_path / "out" / "config.yaml", configuration.dump(configuration.parse(content | change)))
    with pytest.raises(ValueError, match=message):
        added(tmp_path / "out", tmp_path / "greek.jsonl")
