"""What an audit says is what happened, and what is no longer what happened is refused."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console

from retain import ledger, store
from retain import run as running
from retain.commands.audit import KINDS, audit
from retain.methods import METHODS
from retain.run import run
from retain.store import StoreError
from runs import quiet, settings

pytestmark = pytest.mark.usefixtures("fast_runs")

FEW = {"max_steps": 1, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def finished(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks that keeps rows; tests must leave it as it is."""
    replay = {"name": "replay", "rows": 4}
    config = settings(bert, tmp_path_factory.mktemp("run"), "mood sport", method=replay, training=FEW)
    run(config, quiet())
    return Path(config.output)


def test_all_that_any_method_keeps_is_said_in_plain_words() -> None:
    kept = {"learned", "past", *(name for method in METHODS.values() for name in method.STATE)}
    assert kept == KINDS.keys(), kept ^ KINDS.keys()


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def said(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    audit(folder, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_stage_is_told_with_what_it_read_and_kept(finished: Path) -> None:
    entries = ledger.read(finished / ledger.LEDGER)
    assert [e["event"] for e in entries] == ["run", *["begin", "end"] * 3]
    assert entries[0]["seed"] == 0 and entries[0]["versions"].keys() >= {"torch", "peft", "python"}
    trains = [[r["task"] for r in e["reads"] if r["split"] == "train"] for e in entries if e["event"] == "begin"]
    assert trains == [[], ["mood"], ["sport"]]
    reads = [(r["task"], r["split"], r["rows"], r["fingerprint"]) for e in entries[1::2] for r in e["reads"]]
    assert len(set(reads)) == 4 and {r[2] for r in reads} == {16, 4}
    assert entries[-1]["bytes"]["state"] > 0 and entries[-1]["done"] == store.hash_of(finished / "tasks/01-sport/done")


def test_the_audit_of_a_run_that_keeps_rows_says_which(finished: Path) -> None:
    text = said(finished)
    kept = store.read_tensors(finished / "tasks/01-sport/state/method.safetensors")
    for task in ("mood", "sport"):
        rows = ", ".join(map(str, kept[f"numbers/{task}"].tolist()))
        assert re.search(f"{task} .*kept and read by every later stage, in the order of the data: {rows} ", text)
    assert "TRAINING ROWS, as the model reads them" in text and "7 lines, every hash follows" in text


def tampered(folder: Path) -> None:
    path = folder / ledger.LEDGER
    path.write_text(path.read_text().replace('"rows":16', '"rows":15', 1))


def shortened(folder: Path) -> None:
    path = folder / ledger.LEDGER
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))


def forged(folder: Path) -> None:
    store.write(folder / "base" / "scores.json", "{}")
    store.close(folder / "base")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (tampered, "line 4 is not what was written"),
        (shortened, "tells no end of .*tasks/00-mood"),
        (forged, "tells no end of .*base: lines are missing, or its `done` is another"),
        (lambda folder: (folder / ledger.LEDGER).unlink(), "ledger.jsonl: missing"),
        (lambda folder: (folder / "tasks/01-sport/done").unlink(), "finished stage 'sport' of the ledger is gone"),
        (lambda folder: (folder / "base/scores.json").write_text(""), "scores.json: damaged"),
    ],
)
def test_what_is_not_what_happened_is_refused(harm: Any, message: str, copy: Path) -> None:
    harm(copy)
    with pytest.raises(StoreError, match=message):
        said(copy)


def test_a_run_goes_on_after_a_kill_between_a_stage_and_its_line_and_not_after_lost_lines(
    bert: str, tmp_path: Path
) -> None:
    config = settings(bert, tmp_path, "mood sport", training=FEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "ended", None)
        with pytest.raises(TypeError):
            run(config, quiet())
    run(config, quiet())
    path = Path(config.output, ledger.LEDGER)
    assert [e["event"] for e in ledger.read(path)[:4]] == ["run", "begin", "end", "run"]
    assert "none was given to anything after stage 1" in said(Path(config.output))
    shortened(Path(config.output))
    with pytest.raises(StoreError, match="tells no end of the finished stage 'mood'"):
        run(config, quiet())
    path.unlink()
    with pytest.raises(StoreError, match="missing, though the run is finished"):
        run(config, quiet())


def test_a_run_that_began_before_ledgers_did_is_adopted(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood sport", training=FEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "fit", None)
        with pytest.raises(TypeError):
            run(config, quiet())
    Path(config.output, ledger.LEDGER).unlink()
    run(config, quiet())
    assert "finished before this ledger began, nothing is known of what they read: the untouched" in said(
        Path(config.output)
    )


@pytest.mark.parametrize("method", ["sequential", pytest.param("ewc-lora", marks=pytest.mark.slow), "share"])
def test_no_row_of_a_finished_task_is_read_but_by_what_the_ledger_says(
    method: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are watched as they are read, whoever reads them."""
    config = settings(bert, tmp_path, "mood sport", method={"name": method}, training=FEW)
    owners, now, seen = dict[int, str](), [""], set[tuple[str, str]]()
    prepare, work = running.prepare, running._work

    def watched(config: Any) -> Any:
        shop = prepare(config)
        owners.update({id(task.train): task.name for task in shop.stream.tasks})
        return shop

    def staged(shop: Any, stage: Any, *rest: Any) -> None:
        now[0] = stage.name
        work(shop, stage, *rest)

    for name in ("__getitem__", "__getitems__"):
        true = getattr(datasets.Dataset, name)

        def read(self: Any, key: Any, true: Any = true) -> Any:
            if id(self) in owners and now[0]:
                seen.add((now[0], owners[id(self)]))
            return true(self, key)

        monkeypatch.setattr(datasets.Dataset, name, read)
    monkeypatch.setattr(running, "prepare", watched)
    monkeypatch.setattr(running, "_work", staged)
    run(config, quiet())
    assert seen == {("mood", "mood"), ("sport", "sport")}
