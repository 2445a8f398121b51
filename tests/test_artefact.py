"""A state says whose it is, goes on in another run as in its own, and is refused where it does not belong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from retain import artefact, store
from retain.config import RunConfig
from retain.ledger import LEDGER
from retain.run import run
from retain.store import StoreError
from runs import left_by, quiet, settings, slow_but

pytestmark = pytest.mark.usefixtures("fast_runs")

FEW = {"max_steps": 2, "per_device_train_batch_size": 6, "learning_rate": 0.02}
METHODS: dict[str, Any] = {
    "ewc-lora": {"name": "ewc-lora", "strength": 30.0, "fisher": {"samples": 8}},
    "merge": {"name": "ewc-lora", "strength": 30.0, "mode": "merge", "fisher": {"samples": 8}},
    "ewc": {"name": "ewc", "fisher": {"samples": 8}},
    "dwd": {"name": "dwd", "every": 2, "rows": 4, "probes": 4},
    "eblora": {"name": "eblora", "subspace": "second moment", "rank": 3, "samples": 8},
    "share": {"name": "share", "components": 3},
    "replay": {"name": "replay", "share": 0.5},
    "olora": {"name": "olora"},
    "inflora": {"name": "inflora"},
    "sdlora": {"name": "sdlora"},
    "lwf": {"name": "lwf"},
    "per-task": {"name": "per-task"},
    "sequential": {"name": "sequential"},
}


def stopped(bert: str, folder: Path, method: dict[str, Any], **sections: Any) -> RunConfig:
    """A run of three tasks, two of them finished."""
    config = settings(bert, folder, method=method, training=FEW, output=str(folder / "run"), **sections)
    run(config, quiet(), tasks=2)
    return config


@pytest.fixture(scope="module")
def state(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = stopped(bert, tmp_path_factory.mktemp("state"), METHODS["ewc-lora"])
    return Path(config.output, "tasks", "01-sport", "state")


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(METHODS, "ewc-lora"))
def test_another_run_goes_on_from_a_state_to_the_bit_without_the_rows(name: str, bert: str, tmp_path: Path) -> None:
    config = stopped(bert, tmp_path, METHODS[name])
    travelled = Path(shutil.copytree(Path(config.output, "tasks", "01-sport", "state"), tmp_path / "travelled"))
    run(config, quiet())
    for earlier in ("mood", "sport"):
        (tmp_path / f"{earlier}.jsonl").unlink()
    there = settings(bert, tmp_path / "there", "greek", method=METHODS[name], training=FEW, state=str(travelled))
    results = run(there, quiet())
    shutil.rmtree(travelled)
    assert run(there, quiet()) == results  # a finished run needs it no more
    ours, theirs = left_by(Path(there.output, "tasks", "00-greek")), left_by(Path(config.output, "tasks", "02-greek"))
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "state/model.safetensors"):
        assert ours[file] == theirs[file], file
    kept, expected = (
        store.read_tensors(Path(c.output, "tasks", stage, "state", "method.safetensors"))
        for c, stage in ((there, "00-greek"), (config, "02-greek"))
    )
    unmeasured = {"calibration/greek"} & expected.keys()  # what the earlier tasks lost, on rows that are not there
    assert kept.keys() == expected.keys() - unmeasured
    assert all(torch.equal(kept[key], expected[key]) for key in kept)
    for key in ("known", "unknown", "loss"):
        assert ours["scores.json"]["tasks"]["greek"][key] == theirs["scores.json"]["tasks"]["greek"][key]
    assert ours["adapter/labels.json"] == theirs["adapter/labels.json"]
    told = {task.name: task for task in artefact.read_manifest(Path(there.output, "tasks", "00-greek", "state")).tasks}
    assert told == {
        task.name: task for task in artefact.read_manifest(Path(config.output, "tasks", "02-greek", "state")).tasks
    }
    assert told["mood"].rows == 16 and told["mood"].fingerprint != told["greek"].fingerprint is not None


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": (
        {"lora": {"r": 3, "target_modules": ["query", "value"]}},
        r"targets 4 layers of rank 2 \(\w{12}\), and here is 4 layers of rank 3 \(\w{12}\)",
    ),
    "targets": (
        {"lora": {"r": 2, "target_modules": ["query", "key"]}},
        r"targets 4 layers of rank 2 \(\w{12}\), and here is 4 layers of rank 2 \(\w{12}\)",
    ),
    "method": ({"method": {"name": "ewc"}}, "method 'ewc-lora', and here is 'ewc'"),
    "keyword": (
        {"method": METHODS["ewc-lora"] | {"decay": 0.5}},
        "state of method.decay=1.0, and here it is 0.5",
    ),
    "estimator": (
        {"method": METHODS["ewc-lora"] | {"fisher": {"form": "diagonal", "samples": 8}}},
        "state of method.fisher={'samples': 8}, and here it is {'form': 'diagonal', 'samples': 8}",
    ),
    "scenario": ({"scenario": "class"}, "scenario 'task', and here is 'class'"),
    "cumulative": ({"method": {"name": "joint"}}, "joint trains on the rows of all tasks at once"),
    "name": ({"tasks": None}, "'mood' has been learned in the state that this run begins with"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_something_else_is_refused_with_both_named(
    other: str, state: Path, bert: str, tmp_path: Path
) -> None:
    sections, message = OTHERS[other]
    names = "greek" if "tasks" not in sections else "mood"
    given = {"method": METHODS["ewc-lora"]} | {key: value for key, value in sections.items() if key != "tasks"}
    with pytest.raises(ValueError, match=message):
        run(settings(bert, tmp_path, names, training=FEW, state=str(state), **given), quiet())


def test_a_state_of_another_base_model_is_refused_with_both_fingerprints(
    state: Path, bert: str, tmp_path: Path
) -> None:
    shutil.copytree(bert, tmp_path / "tuned")
    tensors = store.read_tensors(tmp_path / "tuned" / "model.safetensors")
    tensors[min(name for name in tensors if "layer.1" in name)] += 1e-3
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    config = settings(str(tmp_path / "tuned"), tmp_path, "greek", method=METHODS["ewc-lora"], state=str(state))
    with pytest.raises(StoreError, match=r"base model BertFor\w+ '\w+' \(\w{12}\), and here is \w+ 'tuned' \(\w{12}\)"):
        run(config, quiet())


def test_the_strength_may_change(state: Path, bert: str, tmp_path: Path) -> None:
    method = METHODS["ewc-lora"] | {"strength": 3.0}
    config = settings(bert, tmp_path, "greek", method=method, training=FEW, state=str(state))
    assert run(config, quiet(), tasks=0) == {}


def changed(folder: Path, **content: Any) -> None:
    manifest = json.loads((folder / artefact.MANIFEST).read_text())
    (folder / artefact.MANIFEST).write_text(json.dumps(manifest | content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 3}, r"a state of format 3, and retain [\d.]+ knows 2 at most: update retain"),
        ({"format": 10**30}, "a state of format 10{30}, and"),
        ({"format": "2"}, "no state of retain: format '2', expected 2"),
        ({"format": 0}, "no state of retain: format 0"),
        ({"tasks": [{"name": "mood"}]}, "manifest.json: damaged: tasks.0.number: Field required"),
        ({"files": {"model.safetensors": "0"}}, "damaged: names no method.safetensors"),
        ({"files": {"model.safetensors": "0", "method.safetensors": "0"}}, "model.safetensors: damaged, its hash"),
        (
            {"files": {"../secret": "0", "model.safetensors": "0", "method.safetensors": "0"}},
            "'../secret' leads out of this folder",
        ),
    ],
)
def test_a_manifest_that_is_newer_damaged_or_hostile_is_refused(
    content: dict[str, Any], message: str, state: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(state, tmp_path / "state"))
    changed(folder, **content)
    with pytest.raises(StoreError, match=message):
        artefact.read_manifest(folder)


def test_a_state_of_the_first_format_goes_on_in_its_run_and_gets_a_manifest(bert: str, tmp_path: Path) -> None:
    """Before there were manifests, a state was two files of tensors in a run."""
    config = stopped(bert, tmp_path, METHODS["ewc-lora"])
    stage = Path(config.output, "tasks", "01-sport")
    (stage / "state" / "manifest.json").unlink()
    store.close(stage)
    Path(config.output, LEDGER).unlink()  # older than manifests
    run(config, quiet())
    manifest = artefact.read_manifest(Path(config.output, "tasks", "02-greek", "state"))
    assert manifest.format == 2
    assert [(task.name, task.rows, task.labels) for task in manifest.tasks] == [
        ("mood", None, ["glad", "sad"]),
        ("sport", None, ["loss", "win"]),
        ("greek", 16, ["alpha", "beta"]),
    ]


def test_a_run_whose_folder_goes_away_writes_nothing_in_its_place(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a disk is unmounted: the last good state is on it, and an empty folder is where it was."""
    from retain import run as running

    config, true = settings(bert, tmp_path, "mood", training=FEW), running.score

    def unmounted(*args: Any) -> Any:
        if Path(config.output, "base", "done").exists():
            Path(config.output).rename(tmp_path / "disk")
            Path(config.output).mkdir()
        return true(*args)

    monkeypatch.setattr(running, "score", unmounted)
    with pytest.raises(StoreError, match="ledger.jsonl: gone while the run went on .No such file"):
        run(config, quiet())
    assert not list(Path(config.output).iterdir())
    monkeypatch.setattr(running, "score", true)
    Path(config.output).rmdir()
    (tmp_path / "disk").rename(config.output)
    assert run(config, quiet())["tasks"] == ["mood"]
