"""What a method foresaw beside what came of it, in a whole run; and what a run says of a strength that is no good."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from retain import run as running
from retain import scoring
from retain.config import parse
from retain.run import run
from retain.store import read_json
from runs import LABELS, LEARNING, document, quiet, settings
from streams import jsonl, rows

pytestmark = pytest.mark.usefixtures("fast_runs")

EXACT = {"labels": "exact", "samples": None}
METHODS: dict[str, dict[str, Any]] = {
    "ewc-lora": {"name": "ewc-lora", "strength": 30.0, "fisher": EXACT},
    "sketches": {"name": "ewc-lora", "strength": 3.0, "fisher": EXACT | {"form": "kronecker", "sketches": 4}},
    "merge": {"name": "ewc-lora", "strength": 30.0, "mode": "merge", "decay": 0.5, "fisher": EXACT},
    "ewc": {"name": "ewc", "strength": 30.0, "fisher": EXACT},
}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, float], dict[str, torch.Tensor]]]:
    """What every training ended with: the method's prediction, and the loss of all test rows after the boundary."""
    found: list[Any] = []
    evaluate, end = scoring.evaluate, running._train

    def train(shop: Any, *rest: Any) -> int:
        steps = end(shop, *rest)
        found.append((shop.method.predicted_rise(), {}))
        return steps

    def score(model: Any, task: Any, **options: Any) -> Any:
        result = evaluate(model, task, **options)
        if found:
            found[-1][1][task.name] = result.losses
        return result

    monkeypatch.setattr(running, "_train", train)
    monkeypatch.setattr(scoring, "evaluate", score)
    return found


@pytest.mark.parametrize(
    ("name", "scenario"), [("ewc-lora", "class"), ("sketches", "task"), ("merge", "task"), ("ewc", "domain")]
)
def test_at_every_boundary_what_was_foreseen_stands_beside_what_was_measured(
    name: str, scenario: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, method = watched(monkeypatch), METHODS[name]
    names = "mood sport greek"
    sections: dict[str, Any] = {"method": method, "scenario": scenario, "training": LEARNING | {"max_steps": 4}}
    if scenario == "domain":
        content = settings(bert, tmp_path, "mood").model_dump(exclude_none=True)["tasks"][0]
        sections["tasks"] = [content | {"name": task} for task in names.split()]
    config = settings(bert, tmp_path, names, **sections)
    results = run(config, quiet())
    assert found[0][0] == {} and [entry["after"] for entry in results["calibration"]] == [2, 3]
    for number, entry in enumerate(results["calibration"], 1):
        foreseen, after = found[number]
        assert entry["total"]["foreseen"] == foreseen["total"] != 0
        total = 0.0
        for age, task in enumerate(reversed(names.split()[:number])):
            rise, mine = (after[task] - found[number - 1][1][task]).double(), entry["tasks"][task]
            assert mine["measured"] == pytest.approx(float(rise.mean()), abs=2e-6)
            assert mine["standard_error"] == pytest.approx(float(rise.std()) / len(rise) ** 0.5, abs=2e-6)
            assert mine["foreseen"] == (foreseen[task] if name == "sketches" else None)
            total += float(rise.mean()) * method.get("decay", 1.0) ** age
        assert entry["total"]["measured"] == pytest.approx(total, abs=1e-5)
    assert read_json(Path(config.output, "results.json"))["calibration"] == results["calibration"]
    scores = read_json(Path(config.output, "tasks", "01-sport", "scores.json"))
    assert {"after": 2, **scores["calibration"]} == results["calibration"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("evaluation", "same"), [({"gauge": "validation"}, True), ({}, False)])
def test_test_rows_have_no_part_where_other_rows_calibrate_the_gauge(
    evaluation: dict[str, Any], same: bool, bert: str, tmp_path: Path
) -> None:
    found = []
    for number in range(2):
        content = document(bert, tmp_path / str(number), method=METHODS["ewc"] | {"strength": "auto"})
        for task in content["tasks"]:
            texts = rows(LABELS[task["name"]], 4)[number:]
            test = jsonl(tmp_path / str(number) / f"{task['name']}-test.jsonl", texts)
            task["data_files"] = {"train": task["data_files"], "test": test}
        found.append(
            (run(parse(content | {"training": LEARNING, "evaluation": evaluation}), quiet()), content["output"])
        )
    (one, here), (other, there) = found
    assert one["loss"] != other["loss"]
    assert (one["calibration"] == other["calibration"]) is same
    adapters = (Path(output, "adapter", "adapter_model.safetensors").read_bytes() for output in (here, there))
    assert (next(adapters) == next(adapters)) is same


def test_what_foresees_nothing_has_no_calibration(bert: str, tmp_path: Path) -> None:
    results = run(settings(bert, tmp_path, "mood sport"), quiet())
    assert results["calibration"] == [] and results["warnings"] == {}


@pytest.mark.slow
def test_a_run_shows_what_was_foreseen_and_keeps_rows_of_the_last_stage_only(bert: str, tmp_path: Path) -> None:
    console, config = quiet(), settings(bert, tmp_path, "mood sport", method=METHODS["ewc-lora"], training=LEARNING)
    run(config, console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert re.search(r"their test loss in nats an example (rose|changed) by .*; foreseen ", text)
    assert [p.parent.parent.name for p in Path(config.output).rglob("state/method.safetensors")] == ["01-sport"]


@pytest.mark.slow
def test_boundaries_are_recorded(bert: str, tmp_path: Path) -> None:
    results = run(settings(bert, tmp_path, "mood sport", method=METHODS["sketches"], training=LEARNING), quiet())
    for boundary in results["boundary"].values():
        assert {"rows", "examples", "error", "bytes"} <= boundary.keys() and boundary["rows"] == 16
    assert "moved" not in results["boundary"]["after 1"] and results["boundary"]["after 2"]["moved"] > 0


def contradiction(folder: Path) -> list[dict[str, Any]]:
    """Two tasks of one head, the second of which says the opposite of the first."""
    mood = rows(["sad", "glad"], 40)
    other = {"sad": "glad", "glad": "sad"}
    files = [
        jsonl(folder / f"{i}.jsonl", content)
        for i, content in enumerate([mood, [row | {"label": other[row["label"]]} for row in mood]])
    ]
    return [{"name": name, "path": "json", "data_files": file} for name, file in zip(("yes", "no"), files, strict=True)]


def learned(strength: float, bert: str, folder: Path) -> tuple[list[str], str]:
    """The warnings of a run of two tasks, and what it printed."""
    console, method = quiet(), {"name": "ewc-lora", "strength": strength, "fisher": EXACT}
    tasks = contradiction(folder)
    config = settings(bert, folder, scenario="domain", tasks=tasks, method=method, training=LEARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # they are shown, not thrown at whoever runs it
        results = run(config, console)
    assert read_json(Path(config.output, "results.json"))["warnings"] == results["warnings"]
    return results["warnings"].get("after 2", []), " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_protection_that_is_too_weak_is_told_to_be_inert(bert: str, tmp_path: Path) -> None:
    (warning,), shown = learned(1e-6, bert, tmp_path)
    assert "learning 'no' has cost the earlier tasks" in warning and "the protection is inert" in warning
    assert "method.strength is 1e-06: raise it (about " in warning and " ".join(warning.split()) in shown


@pytest.mark.slow
def test_a_protection_that_is_too_strong_is_told_to_dominate_or_to_freeze(bert: str, tmp_path: Path) -> None:
    found, shown = learned(1e12, bert, tmp_path)
    assert found and all("method.strength is 1e+12" in w and "lower it" in w for w in found)
    assert all(" ".join(warning.split()) in shown for warning in found)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 10.0])
def test_a_strength_that_is_fair_or_zero_is_not_complained_of(value: float, bert: str, tmp_path: Path) -> None:
    assert learned(value, bert, tmp_path)[0] == []
