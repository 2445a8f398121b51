"""Language models side by side: nats per token, lower is better; what they are asked; and what became of a guard."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from compared import stream
from retain import store
from retain.commands.compare import figures, summary
from retain.commands.compare.figures import draw
from retain.commands.compare.measure import NATS
from retain.commands.compare.summary import Run, read, summarise
from retain.commands.compare.tables import markdown, show
from retain.commands.compare.tuning import choose
from retain.commands.many.cells import Cell
from retain.commands.many.entries import Entry
from retain.tokenwise import losses_per_token

ROWS = 12
# Nats a token of tasks a and b and of the guard, untouched and after each task.
PLAIN = ((4.0, 1.0, 2.5), (4.0, 3.9, 1.0), (2.0, 2.6, 3.0))
HELD = ((4.0, 1.5, 1.7), (4.0, 3.9, 1.4), (2.0, 2.1, 2.2))


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "REPLICATES", 300)


def told(nats: tuple[float, ...], seed: int, rows: int = ROWS) -> list[dict[str, Any]]:
    """Entries of records whose losses are ``nats`` a token; long rows have more of them than short ones."""
    tokens = np.random.default_rng(seed).integers(2, 9, rows)
    noise = np.random.default_rng([seed, round(100 * sum(nats))]).normal(0, 0.5, (len(nats), rows))
    noise -= noise.mean(1, keepdims=True)
    losses = np.array(nats)[:, None] * tokens + noise
    return [
        {"rows": rows, "loss": float(row.mean()), "tokens": tokens.tolist(), "losses": row.tolist()} for row in losses
    ]


def records(nats: tuple[tuple[float, ...], ...], seed: int) -> list[dict[str, Any]]:
    a, b, guard = (told(each, i) for i, each in enumerate(nats))
    found = []
    for t in range(3):
        right = (np.arange(ROWS) < (2, 8, 5)[t] + seed).astype(float).tolist()
        entry = {"learned": t, "tasks": {"a": a[t] | {"answers": {"exact_match": right}}, "b": b[t]}}
        entry |= {"guard": {"name": "guard", "held": True} | guard[t]}
        entry |= {"seconds": {"train": 1.0, "boundary": 1.0}, "steps": 5}
        found.append(entry | {"bytes": {"adapter": 1000, "state": 100, "kinds": {"learned": 100}}})
    return found


def runs(nats: tuple[tuple[float, ...], ...]) -> dict[int, Run]:
    return {seed: Run(r := records(nats, seed), losses_per_token(r, ["a", "b"])) for seed in (0, 1)}


ENTRIES = [Entry("sequential", {"name": "sequential"}), Entry("ewc-lora", {"name": "ewc-lora"})]


@pytest.fixture
def compared() -> dict[str, Any]:
    found = summarise(ENTRIES, {"sequential": runs(PLAIN), "ewc-lora": runs(HELD)}, "sequential", NATS)
    assert json.loads(json.dumps(found, allow_nan=False))["unit"] == "nats a token"
    return found


def test_scores_are_of_nats_and_lower_is_better(compared: dict[str, Any]) -> None:
    plain, held = (compared["methods"][name]["scores"] for name in ("sequential", "ewc-lora"))
    for name, mine, theirs in (
        ("final", 1.75, 1.55),
        ("forgetting", 1.5, 0.2),
        ("just_learned", 1.0, 1.45),
        ("gained", 3.0, 2.55),
        ("guard_rise", 1.0, 0.2),
        ("exact_match_final", 5.5 / ROWS, 5.5 / ROWS),
        ("exact_match_forgetting", 3 / ROWS, 3 / ROWS),
    ):
        assert (plain[name]["mean"], held[name]["mean"]) == pytest.approx((mine, theirs), abs=1e-6)
    assert [point["mean"] for point in compared["methods"]["ewc-lora"]["curve"]] == pytest.approx([1.5, 1.55])
    assert compared["verdict"] == {"better": ["ewc-lora"], "worse": [], "not told apart": []}


def test_differences_are_paired_by_row_where_long_rows_weigh_more(compared: dict[str, Any]) -> None:
    """Against sums of losses over sums of tokens of the rows that are drawn, one after the other."""
    difference = compared["methods"]["ewc-lora"]["difference"]
    assert list(difference) == ["final", "forgetting", "just_learned", "gained", "guard_rise"]
    rng, drawn = np.random.default_rng(0), []
    ours, theirs = ([records(nats, 0)[t]["tasks"] for t in (1, 2)] for nats in (HELD, PLAIN))
    for _ in range(2000):
        rows = {name: rng.integers(ROWS, size=ROWS) for name in "ab"}
        ratio = lambda entry, at: np.take(entry["losses"], at).sum() / np.take(entry["tokens"], at).sum()  # noqa: E731
        drawn.append([np.mean([ratio(o[1][n], rows[n]) for n in "ab"]) for o in (ours, theirs)])
    low, high = np.quantile(np.subtract(*np.array(drawn).T), [0.025, 0.975])
    assert difference["final"]["mean"] == pytest.approx(-0.2)
    assert difference["final"]["interval_95"] == pytest.approx([low, high], abs=0.3 * (high - low))
    assert difference["guard_rise"]["mean"] == pytest.approx(-0.8)
    assert difference["guard_rise"]["interval_95"][1] < 0 < difference["just_learned"]["interval_95"][0]


def test_intransigence_is_how_much_higher_a_task_is_than_alone() -> None:
    entries = [*ENTRIES, Entry("per-task", {"name": "per-task"})]
    alone = ((4.0, 0.9, 0.9), (4.0, 4.0, 0.8), (2.0, 2.0, 2.0))
    each = {"sequential": runs(PLAIN), "ewc-lora": runs(HELD), "per-task": runs(alone)}
    found = summarise(entries, each, "sequential", NATS)["methods"]
    assert found["ewc-lora"]["scores"]["intransigence"]["mean"] == pytest.approx((0.6 + 0.6) / 2)
    assert found["per-task"]["scores"]["intransigence"]["mean"] == 0


def test_tables_and_figures_say_nats(compared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for found in compared["methods"].values():
        found |= {"knob": None, "cumulative": False}
    whole = compared | {
        "seeds": [0, 1],
        "budget": {"name": "full", "tries": 2, "max_train": None, "max_test": None},
        "machine": {"cores": 2, "jobs": 2, "threads": 1},
        "seconds": {"wall": 1.0, "runs": 1.0, "tuning": 0.0},
        "tuning": {"ewc-lora": {"keyword": "k", "tried": [1.0], "scores": [1.5], "chosen": 1.0, "at_the_edge": False}},
        "left_out": {},
        "failed": {},
    }
    page = markdown(whole)
    titles = (
        "method | tuned | final nats a token | vs sequential | forgetting | forgetting vs sequential | just learned |"
    )
    titles += " just learned vs sequential | intransigence | exact_match | exact_match forgotten | rise of guard |"
    assert f"| {titles} rise of guard vs sequential |" in page and "accuracy" not in page
    assert "Final nats a token, lower is better, on validation rows" in page and "(nats.png)" in page
    assert "Final nats a token against sequential, by each interval alone: better: ewc-lora." in page
    show(Console(file=(out := io.StringIO()), width=120), whole)
    assert "+0.200 ± 0.000" in out.getvalue() and "…" not in out.getvalue()
    made: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **options: made.append(Figure(**options)) or made[-1])
    draw(whole, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"nats.png", "stability.png", "bytes.png"}
    assert made[0].axes[0].get_ylabel() == "nats a token on the tasks learned so far"
    assert len(made[1].axes[0].containers) == 2


def cell(folder: Path, nats: tuple[tuple[float, ...], ...]) -> Cell:
    """A finished run whose base has its record in a stage of its own."""
    made = Cell("ewc-lora", "x", stream(folder, model={"path": "m", "kind": "causal-lm"}))
    for record in records(nats, 0):
        name = f"tasks/{record['learned'] - 1:02d}-x" if record["learned"] else "base"
        store.write_json(made.folder / name / "scores.json", record)
        store.close(made.folder / name)
    final = (nats[0][2] + nats[1][2]) / 2
    store.write_json(made.folder / "results.json", {"nats_per_token": {"scores": {"final": final}}})
    return made


def test_runs_are_read_and_the_knob_is_the_one_with_the_lowest_loss(tmp_path: Path) -> None:
    made = {value: cell(tmp_path / str(value), nats) for value, nats in ((1.0, PLAIN), (2.0, HELD))}
    assert read(made[1.0]).matrix == pytest.approx(np.array(PLAIN[:2]).T)
    choice = choose(Entry("ewc-lora", {"name": "ewc-lora"}, "strength", (1.0, 2.0)), made)
    assert choice["chosen"] == 2.0 and choice["scores"] == pytest.approx([1.75, 1.55])
