"""What ``benchmarks.kills`` does 200 times over all methods, a few times; and that it sees what it is there to see."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import can_fork
from retain import trained

ROOT = Path(__file__).parents[1]
VICTIMS = ("ewc-lora", "dwd", "share", "eblora")


@pytest.fixture(scope="module")
def kills() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("benchmarks.kills")
    sys.path.remove(str(ROOT))


def test_what_a_run_leaves_is_compared_but_for_times(kills: Any, tmp_path: Path) -> None:
    def run(name: str, **content: Any) -> Any:
        for file, text in content.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file.replace("_", ".")).write_text(text)
        return kills.left(tmp_path / name)

    one = run("one", scores_json='{"loss": 1.0, "seconds": {"train": 3}}', a_bin="x", done="a", report_html="</html>\n")
    assert one == run("two", scores_json='{"loss": 1.0, "seconds": {}}', a_bin="x", done="b", report_html=" </html>")
    for file, text in (
        ("scores.json", '{"loss": 1.1, "seconds": {}}'),
        ("a.bin", "y"),
        ("report.html", "<html>"),
        (".a.7.partial", "left over"),
    ):
        (tmp_path / "two" / file).write_text(text)
        assert kills.left(tmp_path / "two") != one
        one = kills.left(tmp_path / "two")


def test_a_stage_that_was_finished_and_is_done_again_is_counted(kills: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hashes")
    closed = {tmp_path / "a": b"hashes", tmp_path / "b": b"hashes"}
    assert kills.redone(closed) == 1
    (tmp_path / "a").write_text("others")
    assert kills.redone(closed) == 2


@can_fork
@pytest.mark.slow
def test_ten_kills_leave_no_trace(kills: Any, tmp_path: Path) -> None:
    kills.prepare(tmp_path)
    found = list(kills.cases(10, 1, tmp_path, VICTIMS))
    assert kills.summary(found)["wrong"] == [] and sum(len(case["kills"]) for case in found) == 10
    assert list(kills.cases(10, 1, tmp_path, VICTIMS)) == found  # of the journal


@can_fork
@pytest.mark.slow
def test_a_pair_of_which_one_or_both_are_killed_leaves_no_trace(kills: Any, tmp_path: Path) -> None:
    pair = importlib.import_module("benchmarks.kills_together")
    kills.prepare(tmp_path)
    found = list(pair.cases(2, 0, tmp_path, ("ewc-lora",)))
    assert pair.summary(found)["wrong"] == [] and [case["whom"] for case in found] == [[1], [0, 1]]


@can_fork
@pytest.mark.slow
def test_a_run_that_does_not_come_back_as_it_was_is_found(
    kills: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills.prepare(tmp_path)
    kills.left_alone("ewc-lora", tmp_path)
    true = trained.take_back
    monkeypatch.setattr(kills, "aimed", lambda *_: kills.Aim(0.0, "Fisher pass", 2))
    with monkeypatch.context() as patch:
        patch.setattr(trained, "adapter_parameters", lambda model: {})  # nothing is put back
        assert "adapter/adapter_model.safetensors" in kills.one("ewc-lora", random.Random(0), tmp_path, 1)["differ"]
    assert trained.take_back is true and not kills.one("ewc-lora", random.Random(0), tmp_path, 1)["differ"]
