"""What a plan says: steps, times, growth, warnings, in words that fit a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import Trainer

from retain.commands import costs, plan
from retain.commands.costs import Cost, Machine
from retain.commands.plan import Plan, human_time, make, warnings
from retain.config import parse, training_arguments
from retain.methods import METHODS
from retain.methods.ewc_lora import EWCLoRA
from runs import document, left_by, yaml_file
from streams import jsonl, rows
from test_cli import Shell

RATE = 1e9
MERGE = {"name": "ewc-lora", "mode": "merge"}


@pytest.fixture(autouse=True)
def _at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of one GFLOP/s and 1 GiB, where nothing takes long to try."""

    def machine(dtypes: Any) -> Machine:
        return Machine(torch.device("cpu"), "1 CPU thread", 2**30, dict.fromkeys(dtypes, RATE))

    monkeypatch.setattr(plan, "machine", machine)
    monkeypatch.setattr(costs, "PATIENCE", 0)
    monkeypatch.setattr(costs, "SAMPLE", {"cpu": 48})


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The configuration of a text model, without weights or tokenizer."""
    body = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertConfig(**body, vocab_size=8, max_position_embeddings=64).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def planned(model: str, tmp_path: Path) -> Callable[..., Plan]:
    return lambda names="mood sport", **sections: make(parse(document(model, tmp_path, names, **sections)))


HUB = {"name": "far", "path": "somebody/far"}


@pytest.mark.parametrize(
    ("training", "each"),
    [
        ({"per_device_train_batch_size": 5, "num_train_epochs": 3}, 7),
        ({"per_device_train_batch_size": 3, "num_train_epochs": 1.5, "gradient_accumulation_steps": 4}, 7),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "dataloader_drop_last": True}, 9),
        ({"per_device_train_batch_size": 4, "max_steps": 2}, 5),
        ({"per_device_train_batch_size": 50, "gradient_accumulation_steps": 2}, 5),
    ],
)
def test_steps_are_those_of_trainer(training: dict, each: int, planned: Any, tmp_path: Path) -> None:
    made = planned("mood", training=training, each=each)
    (task,) = made.tasks
    assert task.rows == round(2 * each * 0.8)
    arguments = training_arguments(made.config, 0, "mood", tmp_path)
    data = [{"x": torch.ones(3), "labels": torch.ones(1)}] * task.rows

    class Line(torch.nn.Linear):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (super().forward(x) - labels).square().mean()}

    trainer = Trainer(Line(3, 1), arguments, train_dataset=data)
    trainer.train()
    assert task.steps == trainer.state.global_step
    assert task.batch == trainer.get_total_train_batch_size(arguments)


def test_tasks_are_those_of_a_run(planned: Any, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "four.jsonl", rows(["a", "b", "c", "d", "e", "f"], 10))
    four = {"name": "four", "path": "json", "data_files": file, "split_by_class": 2, "max_train": 9}
    made = planned(tasks=[four | {"training": {"max_steps": 7}}, HUB])
    assert [(t.name, t.rows, t.classes, t.steps) for t in made.tasks] == [
        ("four-0", 9, 2, 7),
        ("four-1", 9, 2, 7),
        ("four-2", 9, 2, 7),
        ("far", None, None, 3),
    ]
    assert made.found.bytes_of("heads") == 4 * 8 * 33, "6 classes here, 2 guessed there"


def test_a_domain_s_tasks_share_a_head(planned: Any, tmp_path: Path) -> None:
    entries = [
        {"name": name, "path": "json", "data_files": jsonl(tmp_path / name, rows(labels))}
        for name, labels in (("one", ["a", "b"]), ("two", ["b", "c"]))
    ]
    heads = [planned(tasks=entries, scenario=kind).found.bytes_of("heads") for kind in ("domain", "task")]
    assert heads[1] - heads[0] == 4 * 33


def test_what_is_not_here_is_not_known(planned: Any) -> None:
    made = planned(tasks=[HUB | {"classes": ["a", "b", "c"]}], training={})
    (task,) = made.tasks
    assert (task.rows, task.classes, task.steps) == (None, 3, None)
    assert made.examples == 1000


def test_a_cumulative_method_trains_once(planned: Any) -> None:
    made = planned(method={"name": "joint"}, training={"per_device_train_batch_size": 5})
    (task,) = made.tasks
    assert (task.rows, task.classes, task.steps) == (32, 4, 3 * 7)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_plan(name: str, planned: Any) -> None:
    made = planned(method={"name": name})
    assert (made.configured is not None) == (name == "ewc-lora")
    assert made.growth == made.method.growth or made.method.keeps_rows


@pytest.mark.parametrize(
    ("method", "grown"),
    [
        ({"name": "sequential"}, 0),
        ({"name": "per-task"}, 1),
        (MERGE, 1),
        (MERGE | {"rank": 2}, 0),
        (MERGE | {"name": "sequential"}, 1),
        ({"name": "olora"}, 1),
    ],
)
def test_what_every_task_adds(method: dict, grown: int, planned: Any) -> None:
    made = planned(method=method)
    assert made.growth == grown * made.found.bytes_of("adapter") and made.found.bytes_of("adapter") > 0
    assert any("more with every task" in warning for warning in warnings(made)) == bool(grown)


def test_replay_says_what_it_keeps_and_what_a_step_takes(planned: Any, tmp_path: Path) -> None:
    made = planned(method={"name": "replay", "share": 0.3, "batch_size": 3})
    row = 3 * 8 * 64 + 8 + 8  # three columns of tokens, a label, its number
    assert made.growth == 5 * row + 8 * 4  # a share of 16 rows; the groups of 4 outputs
    assert made.found.row == 3 * 8 * 64
    said = " ".join(warnings(made))
    assert "replay keeps training rows of every task in the run's state" in said
    assert "from the second task on a step of 6 rows takes as long as one of 9" in said
    assert planned(method={"name": "replay", "rows": 50}).growth == 8 * 4
    assert [made.training(number) for number in range(2)] == [3 * made.step(6), 3 * made.step(9)]


def test_sketches_grow_by_a_form_a_task(planned: Any) -> None:
    for method, adapters in (({"name": "ewc-lora"}, 0), (MERGE, 1), (MERGE | {"rank": 3}, 0)):
        made = planned(method=method | {"fisher": {"sketches": 4}})
        sketch = 4 * 4 * 2 * (5 * 32)  # 4 sites, two sides of 32 x (4 + 1)
        assert made.growth == sketch + made.found.bytes_of("heads") + adapters * made.found.bytes_of("adapter")


def test_the_configured_form_is_one_of_those_shown(planned: Any) -> None:
    shown = list(planned().costs)
    assert planned(method={"name": "ewc-lora"}).configured in shown
    assert planned(method={"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": None}}).configured in shown
    made = planned(method={"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": 7}})
    assert made.configured == "kronecker, rank: 7" and list(made.costs) == [*shown, made.configured]


@pytest.mark.parametrize(
    ("fisher", "each", "passes"),
    [
        ({"samples": 12}, 10, 16 + 12 * 2),  # all rows looked at; forward, backward
        ({"samples": 16}, 10, 16 * 2),  # all rows: nothing to choose
        ({"samples": None}, 10, 16 * 2),
        ({"samples": "auto"}, 10, 16 * 2),
        ({"samples": 12, "labels": "exact"}, 10, 16 + 12 * (1 + 4)),
    ],
)
def test_times_follow_from_flops_and_rates(fisher: dict, each: int, passes: int, planned: Any) -> None:
    made = planned(method={"name": "ewc-lora", "fisher": fisher}, each=each)
    labels = 4 if fisher.get("labels") == "exact" else 1
    cost = Cost(measuring=3e6, making=0.5)
    expected = passes * made.found.flops / RATE + made.examples * labels * 3e6 / RATE + 0.5
    assert made.boundary(cost) == pytest.approx(expected)
    assert made.step(7) == pytest.approx(7 * 2 * made.found.flops / RATE)
    assert made.batch == 6


def test_the_longest_task_counts(planned: Any, model: str, tmp_path: Path) -> None:
    tasks = document(model, tmp_path)["tasks"]
    made = planned(tasks=[tasks[0] | {"max_length": 20}, tasks[1] | {"max_length": 40}])
    assert made.found.example == "40 tokens"
    assert planned().found.example == "64 tokens"


WARNED: dict[str, tuple[dict[str, Any], str]] = {
    "larger than the model": (
        {
            "method": {"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": None}},
            "lora": {"r": 1, "target_modules": "all-linear"},
        },
        r"kronecker, rank: null keeps 124.0 KiB, more than the base model's \d\d.\d KiB; diagonal, storage: uint8",
    ),
    "factors": (
        {"method": {"name": "ewc-lora", "fisher": {"form": "factored"}}},
        r"factored, components: 8 keeps a byte a weight of maps that its factors do not fit, 4.5 KiB at most",
    ),
    "uncapped": ({"method": MERGE}, "ewc-lora keeps up to 2.0 KiB more with every task; method.rank caps"),
    "per task": ({"method": {"name": "per-task"}}, "per-task keeps up to 2.0 KiB more with every task$"),
    "no cap": ({"method": MERGE | {"rank": 32}}, "method.rank 32 cuts nothing: .* ranks of at most 32"),
    "length": (
        {"tasks": [HUB | {"max_length": 65}]},
        "task 'far': max_length 65 is more than the model's 64",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_may_surprise(name: str, planned: Any) -> None:
    sections, message = WARNED[name]
    found = list(warnings(planned(**sections)))
    assert any(re.search(message, warning) for warning in found), found


def test_a_quiet_plan_warns_of_nothing(planned: Any) -> None:
    made = planned(method={"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": 4}})
    made.costs[made.configured] = replace(made.costs[made.configured], penalty=0)  # timed: a busy machine has much
    assert list(warnings(made)) == []


def test_what_does_not_fit_this_machine(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(_: Any) -> Machine:
        return Machine(torch.device("cpu"), "1 CPU thread", 2**10, {torch.float32: RATE})

    monkeypatch.setattr(plan, "machine", small)
    boundary = "a boundary holds .* without activations .*, and this machine has 1.0 KiB"
    assert any(w.startswith("training holds") for w in warnings(planned()))
    assert any(re.match(boundary, w) for w in warnings(planned(method={"name": "ewc-lora"})))


def test_a_heavy_penalty_is_named(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(method={"name": "ewc-lora"})
    assert made.configured is not None
    made.costs[made.configured] = Cost(penalty=0.5 * made.step(made.batch))
    assert any("adds 50% to every training step of 6 rows" in warning for warning in warnings(made))


@pytest.mark.parametrize("width", [80, 100])
def test_a_plan_fits_a_terminal(width: int, model: str, tmp_path: Path) -> None:
    config = parse(document(model, tmp_path, method=MERGE | {"fisher": {"form": "diagonal", "storage": "bfloat16"}}))
    before = left_by(tmp_path)
    out = Console(file=io.StringIO(), width=width)
    made = plan.plan(config, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    (marked,) = [line for line in text.splitlines() if "▸" in line and "│" in line]
    assert "▸ diagonal, storage: bfloat16" in marked and plan.human(made.costs[str(made.configured)].kept) in marked
    for label in made.costs:
        assert any(label in line for line in text.splitlines())
    assert "model as BertForSequenceClassification: " in text and "4    │ 32 x 32  │ query, value" in text
    assert left_by(tmp_path) == before, "nothing is written"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "<0.1 s"), (0.1, "0.1 s"), (59, "59.0 s"), (60, "1.0 min"), (5400, "1.5 h"), (2.5 * 86400, "2.5 days")],
)
def test_times_as_people_read_them(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


@pytest.fixture
def retain(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capfd)


def test_the_command(model: str, tmp_path: Path, retain: Shell) -> None:
    file = yaml_file(document(model, tmp_path), tmp_path / "stream.yaml")
    code, out, err = retain("plan", file, "method.name=ewc-lora", "lora.r=3")
    assert (code, err) == (0, "") and f"▸ {EWCLoRA.FISHER['form']}" in out and "adapter 3.0 KiB" in out
    assert "rank 33 is larger than the layer" in retain.complaint("plan", file, "lora.r=33")
    assert "no such file" in retain.complaint("plan", file, "tasks.0.data_files=moood.jsonl")
    assert "no configuration of a text model at 'nowhere'" in retain.complaint("plan", file, "model.path=nowhere")


def test_adapters_to_start_from_are_read_and_not_computed(model: str, planned: Any, tmp_path: Path) -> None:
    for name, targets in (("given", ["query", "value"]), ("other", ["query"])):
        base = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.from_pretrained(model)
        )
        get_peft_model(base, LoraConfig(r=2, target_modules=targets)).save_pretrained(str(tmp_path / name))
    share = {"name": "share", "adapters": [str(tmp_path / "given")]}
    assert planned(method=share).growth == planned(method={"name": "share"}).growth
    with pytest.raises(ValueError, match="other adapts other layers than this model"):
        planned(method=share | {"adapters": [str(tmp_path / "other")]})
