"""Runs of a model that forecasts time series, and the windows that it learns from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PatchTSTConfig, PatchTSTForPrediction, PatchTSTForPretraining

from models import bare_patchtst
from retain import store
from retain.commands import export
from retain.commands.check import Bound, check
from retain.commands.init import init
from retain.commands.outlines import outline
from retain.commands.trainings import tasks_of, tokenizer_of
from retain.config import ConfigError, RunConfig, dump, load, parse
from retain.data import DataError, load_stream
from retain.hf import load_model, load_processor
from retain.provenance import fingerprint
from retain.run import run
from retain.yamls import read
from runs import LEARNING, document, quiet, slow_but

pytestmark = pytest.mark.usefixtures("fast_runs", "in_process")
CONTEXT, HORIZON = 24, 6


def waves(path: Path, period: float, steps: int = 80) -> str:
    """Two channels in order of time, beside their day."""
    t = np.arange(steps)
    one, two = 5 + 2 * np.sin(2 * np.pi * t / period), 100 * np.cos(2 * np.pi * t / period)
    rows = [f"2001-{i},{a:.6f},{b:.6f}" for i, (a, b) in enumerate(zip(one, two, strict=True))]
    path.write_text("\n".join(["day,rate,price", *rows]))
    return str(path)


def regimes(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Two regimes of a market."""
    made = document(base, folder, "", **{"model": {"path": base, "kind": "time-series"}} | sections)
    made.pop("heads")
    tasks = [
        {"name": name, "path": "csv", "data_files": waves(folder / f"{name}.csv", period)}
        for name, period in (("calm", 20.0), ("wild", 5.0))
    ]
    return made | {"lora": {"r": 4, "target_modules": "all-linear"}, "tasks": tasks}


def stream(base: str, folder: Path, *changes: dict[str, Any], **sections: Any) -> Any:
    made = regimes(base, folder, **sections)
    made["tasks"] = [made["tasks"][0] | change for change in changes or [{}]]
    return load_stream(parse(made), PatchTSTConfig.from_pretrained(base))


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(["ewc-lora", "share", "replay", "lwf"], "ewc-lora"))
def test_a_market_whose_regime_changes(method: str, patchtst: str, tmp_path: Path) -> None:
    config = parse(regimes(patchtst, tmp_path, method={"name": method}, training=LEARNING))
    output = tmp_path / "out"
    assert run(config, quiet(), tasks=1) == {}
    results = run(load(output / "config.yaml"), quiet())  # goes on from the state of the first regime
    assert results["scenario"] == "domain" and set(results["metric"].values()) == {"neg_mean_absolute_error"}
    matrix = results["score"]["matrix"]
    assert matrix[2][1] > matrix[0][1] + 0.15, "the last regime was not learned"
    record = store.read_json(output / "tasks/01-wild/scores.json")["tasks"]["calm"]
    assert record["rows"] == len(record["errors"]) == 2 * (16 - HORIZON + 1)
    assert matrix[2][0] == pytest.approx(-np.mean(record["errors"]), rel=1e-5)
    assert stock_score(output, patchtst, config) == pytest.approx(matrix[2][1], rel=1e-4)
    if method == "ewc-lora":
        assert matrix[1][0] > matrix[0][0] + 0.2, "the first regime was not learned"
        assert "was not looked at" in export._serving(output / "adapter", config.model.kind)
        assert check(output, Bound.parse("100%"), quiet()) and not check(output, Bound.parse("1%"), quiet())


def stock_score(output: Path, base: str, config: RunConfig) -> float:
    """That of the last task, of the exported adapter on the model that anybody loads, a channel at a time."""
    stock = PatchTSTForPrediction.from_pretrained(base, num_input_channels=1)
    stock = PeftModel.from_pretrained(stock, str(output / "adapter")).eval()
    task = load_stream(config, load_processor(base, "time-series")).tasks[1]
    batch = task.collate([task.test[i] for i in range(len(task.test))])
    with torch.no_grad():
        said = stock(past_values=batch["past_values"]).prediction_outputs
    return -float((said - batch["labels"]).abs().mean())


def test_rows_are_windows_of_single_channels_in_order_of_time(patchtst: str, tmp_path: Path) -> None:
    made = stream(patchtst, tmp_path, {}, {"name": "some", "columns": ["price"], "stride": 5, "max_train": 6})
    whole, some = made.tasks
    assert made.groups is None and made.labels == [[], []] and made.sizes == [0] and whole.known
    table = np.genfromtxt(tmp_path / "calm.csv", delimiter=",", skip_header=1)[:, 1:].T
    scaled = (table - table[:, :64].mean(1, keepdims=True)) / table[:, :64].std(1, keepdims=True)
    length = CONTEXT + HORIZON
    wanted = [row[start : start + length] for row in scaled for start in range(64 - length + 1)]
    assert len(whole.train) == len(wanted)
    for row, numbers in zip(whole.train, wanted, strict=True):
        assert row["past_values"].shape == (CONTEXT, 1) and row["labels"].shape == (HORIZON, 1)
        assert torch.cat([row["past_values"], row["labels"]])[:, 0].numpy() == pytest.approx(numbers, abs=1e-5)
    tested = [row[start : start + length] for row in scaled for start in range(64 - CONTEXT, 80 - length + 1)]
    for row, numbers in zip(whole.test, tested, strict=True):
        assert row["labels"][:, 0].numpy() == pytest.approx(numbers[CONTEXT:], abs=1e-5)
    assert len(some.train) == 6 and len(some.test) == 3
    assert {row["past_values"].shape for row in some.test} == {(CONTEXT, 1)}
    other = stream(patchtst, tmp_path, {"data_files": waves(tmp_path / "other.csv", 20.1)}).tasks[0]
    assert fingerprint(whole.train) != fingerprint(other.train)


def test_validation_rows_lie_between_those_for_training_and_for_testing(patchtst: str, tmp_path: Path) -> None:
    steps = {"data_files": waves(tmp_path / "long.csv", 20.0, 200)}
    test = stream(patchtst, tmp_path, steps).tasks[0].test
    (validated,) = stream(patchtst, tmp_path, steps, evaluation={"rows": "validation"}).tasks
    assert len(validated.train) == 2 * (128 - CONTEXT - HORIZON + 1) and len(validated.test) == 2 * (32 - HORIZON + 1)
    made = stream(patchtst, tmp_path, steps, evaluation={"gauge": "validation"})
    assert made.gauge is not None and len(made.tasks[0].train) == len(validated.train)
    places = [[row["start"] for row in rows.with_format(None)] for rows in (made.gauge.tasks["calm"].test, test)]
    spans = [(min(starts) + CONTEXT, max(starts) + CONTEXT + HORIZON) for starts in places]
    assert spans == [(128, 160), (160, 200)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["prize"]}, "column 'prize' is not there; columns of numbers: rate, price.*'price'"),
        ({"columns": ["day"]}, r"column 'day' holds .*string.*, not numbers; columns of numbers: rate, price"),
        ({"test_fraction": 0.05}, "its 4 test rows hold no window of 24 steps that are read and 6 that are forecast"),
        ({"test_fraction": 0.7}, "its 24 training rows hold no window of 24 steps that are read and 6"),
        ({"data_files": "gap.csv"}, "column 'price' has no number in training row 2"),
        ({"data_files": "flat.csv"}, "column 'price' is constant in the training rows"),
        ({"data_files": "words.csv"}, "no column of numbers; columns: day"),
    ],
)
def test_series_that_cannot_be_one(change: dict[str, Any], message: str, patchtst: str, tmp_path: Path) -> None:
    days = [f"2001-{i},{i % 7},{3 if i != 2 else ''}" for i in range(80)]
    files = {"gap": ["day,rate,price", *days], "words": ["day", *(f"day {i}" for i in range(80))]}
    files["flat"] = ["day,rate,price", *(day + "3" * day.endswith(",") for day in days)]
    for name, lines in files.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    change = change | ({"data_files": str(tmp_path / change["data_files"])} if "data_files" in change else {})
    with pytest.raises(DataError, match=f"task 'calm': {message}"):
        stream(patchtst, tmp_path, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scenario": "task"},
            "scenario: 'task' is not allowed with model.kind 'time-series', which has no heads: it",
        ),
        (
            {"heads": {"learning_rate": 0.1}},
            "heads: a section is not allowed with model.kind 'time-series', which has",
        ),
        (
            {"language": {"loss": "all"}},
            "language: a section is not allowed with model.kind 'time-series', which for",
        ),
        (
            {"guard": {"path": "csv"}},
            "guard: a section is not allowed with model.kind 'time-series': of series no",
        ),
        (
            {"method": {"name": "ewc-lora", "strength": {"budget": "5%"}}},
            "an error has no share to lose",
        ),
        (
            {"tasks": {"text": "day"}},
            "tasks.0.text: 'day' is not allowed with model.kind 'time-series', which for",
        ),
        (
            {"tasks": {"metric": "pearson"}},
            "tasks.0.metric: 'pearson' is not allowed .*; expected 'neg_mean_absolu",
        ),
        (
            {"model": {"path": "m"}, "tasks": {"columns": ["a"]}},
            "tasks.0.columns: .* allowed with model.kind 'text'",
        ),
        (
            {"model": {"path": "m", "kind": "time-series", "quantization": "4bit"}},
            "few bits are for language models",
        ),
    ],
)
def test_what_a_forecaster_has_no_use_for(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = regimes("m", tmp_path) | change
    if isinstance(own := change.get("tasks"), dict):
        made["tasks"] = [regimes("m", tmp_path)["tasks"][0] | own]
    with pytest.raises(ConfigError, match=message):
        parse(made)


def test_checkpoints_that_forecast_otherwise(bert: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a bert model: of those that forecast, patchtst alone is read"):
        load_processor(bert, "time-series")
    bare_patchtst(channel_attention=True).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="channel_attention of .* is True; expected False: a row is a window of one"):
        load_processor(str(tmp_path), "time-series")
    PatchTSTForPretraining(bare_patchtst().config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no head\.projection\.bias: it has not learned to forecast"):
        load_model(str(tmp_path), "time-series", [0], {"target_modules": ["q_proj"]})


def test_batch_norms_train_as_they_are_exported(patchtst: str) -> None:
    model, past = load_model(patchtst, "time-series", [0], {"target_modules": ["q_proj"]}), torch.randn(4, CONTEXT, 1)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    before = [norm.running_mean.clone() for norm in norms]
    modes = model.train(), copy.deepcopy(model).eval()
    trained, scored = (mode(past_values=past).prediction_outputs for mode in modes)
    assert torch.equal(trained, scored) and norms
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


def test_a_plan_counts_windows(patchtst: str, tmp_path: Path) -> None:
    config = parse(regimes(patchtst, tmp_path))
    (found,) = tasks_of(config, config.tasks[0], tokenizer_of(config))
    assert found.rows == 2 * (64 - CONTEXT - HORIZON + 1) and found.classes is None
    made = outline(config.model, config.lora, 0, 0)
    assert made.example == "24 steps of a channel" and set(made.places.values()) == {1, 4} and made.flops > 0


def test_columns_of_numbers_are_taken_for_a_series(patchtst: str, tmp_path: Path) -> None:
    init(tmp_path / "made.yaml", [waves(tmp_path / "calm.csv", 20.0)], patchtst, "ewc-lora", quiet())
    config = load(tmp_path / "made.yaml")
    assert config.model.kind == "time-series" and config.scenario == "domain" and config.tasks[0].path == "csv"
    assert parse(read(dump(config))) == config
