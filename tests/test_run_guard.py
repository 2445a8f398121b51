"""What the untouched model could do, named under ``guard``: held, measured after every task, and judged."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from retain import store
from retain.commands.audit import audit
from retain.commands.check import Bound, check
from retain.commands.plan import plan
from retain.commands.table import print_scores
from retain.config import ConfigError, load, parse
from retain.data import DataError, load_stream
from retain.guard import guarded
from retain.report import report
from retain.run import run
from runs import left_by, quiet, yaml_file
from streams import WORDS, chat_tokenizer, jsonl
from test_run_crashes import stopped
from test_run_language import document

pytestmark = pytest.mark.usefixtures("fast_runs")
GENERAL = [f"{WORDS[i % 8]} {WORDS[(i + 5) % 8]}" for i in range(20)]
GENTLE = {"max_steps": 16, "per_device_train_batch_size": 4, "learning_rate": 0.005}
STRONG = {"name": "ewc-lora", "strength": 1e4, "fisher": {"samples": None, "form": "diagonal"}}


@pytest.fixture(scope="module")
def schooled(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that has learned what the guard names: it can lose that."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), chat_tokenizer()
    batch = tokenizer([f"{text} <eos>" for text in GENERAL[:8]], return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = str(tmp_path_factory.mktemp("schooled"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def guarded_run(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """A stream of one task that contradicts its guard, and two more."""
    found = document(base, folder, **sections)
    texts = jsonl(folder / "general.jsonl", [{"text": text} for text in GENERAL])
    return found | {"guard": {"path": "json", "data_files": texts}}


@pytest.mark.slow
def test_the_first_task_is_already_held_by_the_guard(schooled: str, tmp_path: Path) -> None:
    console, rises = Console(file=(told := io.StringIO()), width=100), {}
    for name, method in {"held": STRONG, "free": {"name": "sequential"}}.items():
        config = parse(guarded_run(schooled, tmp_path, method=method, training=GENTLE, output=str(tmp_path / name)))
        results = run(config, console)
        found = results["guard"]
        assert found["name"] == "guard" and found["rows"] == 4 and found["held"] is (name == "held")
        assert found["rise"] == pytest.approx(found["nats_per_token"][-1] - found["nats_per_token"][0], abs=1e-4)
        assert found["interval_95"][0] <= found["rise"] <= found["interval_95"][1]
        assert np.array(results["nats_per_token"]["matrix"]).shape == (4, 3)
        rises[name] = np.array(found["nats_per_token"][1:]) - found["nats_per_token"][0]
        print_scores(console, results)
    assert rises["free"][0] > 0.5 and (rises["held"] < 0.3 * rises["free"]).all()
    first = store.read_json(tmp_path / "held" / "tasks" / "00-greek" / "scores.json")
    assert list(first["calibration"]["tasks"]) == ["guard"] and first["calibration"]["total"]["foreseen"] > 0
    audit(tmp_path / "held", console)
    assert check(tmp_path / "held", Bound(9.0, ""), console, guard=9.0)
    assert not check(tmp_path / "free", Bound(9.0, ""), console, guard=0.05)
    said = " ".join(told.getvalue().split())
    assert "guard: 0.737 -> " in said and "nats a token: too much" in said
    assert "what the model could do before the first task, is not protected" in said
    assert "sequential does not hold it" in said and "│ guard │ 16 │" in said
    assert "| guard: what the model could do before |" in (tmp_path / "held" / "adapter" / "README.md").read_text()
    report([tmp_path / "held", tmp_path / "free"], tmp_path / "page.html", examples=0)
    page = (tmp_path / "page.html").read_text()
    assert page.count('<th scope="col">guard</th>') == 2 and "(guard, which sequential does not hold) went from" in page


@pytest.mark.slow
@pytest.mark.parametrize("method", [STRONG, {"name": "replay", "share": 0.5}], ids=["ewc-lora", "replay"])
def test_a_run_killed_in_its_first_task_still_holds_the_guard(
    method: dict[str, Any], llama: str, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"method": method, "evaluation": {"gauge": "validation"}}
    whole, broken = (
        parse(guarded_run(llama, tmp_path, output=str(tmp_path / name), **sections)) for name in ("whole", "broken")
    )
    run(whole, quiet())
    stopped(broken, "fit", 1)
    assert (tmp_path / "broken" / "base" / "state" / "method.safetensors").exists()
    run(broken, quiet())
    assert not (tmp_path / "broken" / "base" / "state").exists()
    ours, theirs = left_by(broken.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml")
    assert ours == theirs


def test_the_rise_is_one_of_ratios() -> None:
    tokens, losses = [1, 3, 2], np.array([[1.0, 6.0, 2.0], [2.0, 6.0, 5.0]])
    records = [
        {
            "learned": 2 * t,
            "guard": {
                "name": "g",
                "held": True,
                "rows": 3,
                "tokens": tokens,
                "losses": row.tolist(),
                "loss": row.mean(),
            },
        }
        for t, row in enumerate(losses)
    ]
    found = guarded(records, 2)
    assert found["nats_per_token"] == [1.5, None, pytest.approx(13 / 6)] and found["rise"] == pytest.approx(4 / 6)
    assert found["perplexity"][0] == pytest.approx(np.exp(1.5)) and found["perplexity"][1] is None
    low, high = found["interval_95"]
    assert low < 4 / 6 < high
    records[1]["guard"] = records[0]["guard"]
    assert guarded(records, 2)["interval_95"] == [0, 0]  # drawn in pairs, there is no noise in nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"path": "m"}}, r"^guard: a section is not allowed with model.kind 'text': its head is new"),
        ({"guard": {"name": "greek", "path": "json"}}, "^guard.name: 'greek' is a task, too; tasks: greek, letters"),
        ({"guard": {"path": "json", "training": {"max_steps": 3}}}, "^guard.training: .* nothing is trained"),
        ({"guard": {"path": "json", "classes": ["a"]}}, r"^guard.classes: \['a'\] is not allowed"),
        ({"guard": {"path": "json", "max_tests": 3}}, "^guard: unknown key 'max_tests'.*did you mean 'max_test'"),
    ],
)
def test_guards_that_cannot_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(guarded_run("m", tmp_path) | change)


def test_its_files_lie_beside_the_yaml_and_its_rows_are_read_as_a_tasks(tmp_path: Path) -> None:
    content = guarded_run("m", tmp_path)
    content["guard"] |= {"data_files": "general.jsonl", "max_train": 5, "max_test": 3, "name": "general text"}
    config = load(yaml_file(content, tmp_path / "run.yaml"))
    guard = load_stream(config, chat_tokenizer()).guard
    assert guard is not None and guard.name == "general text" and (len(guard.train), len(guard.test)) == (5, 3)


@pytest.mark.slow
def test_a_plan_counts_it(llama: str, tmp_path: Path) -> None:
    content = guarded_run(llama, tmp_path, method={"name": "ewc-lora"})
    plan(parse(content), console := Console(file=(told := io.StringIO()), width=100))
    assert "│ guard │ 16 │" in " ".join(told.getvalue().split())
    assert "guard: before the first task it takes as much as a boundary" in told.getvalue()
    content["guard"]["data_files"] = "elsewhere.jsonl"
    with pytest.raises(DataError, match="task 'guard': no such file"):
        plan(parse(content), console)


def test_a_bound_on_no_guard_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    store.write_json(folder / "scores.json", {"learned": 0, "tasks": {}})
    store.close(folder)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"path": "m"}, "tasks": [{"name": "a", "path": "p"}]}))
    with pytest.raises(ValueError, match=r"--max-guard-rise 0.1: the run has no guard"):
        check(tmp_path, None, quiet(), guard=0.1)
