"""Two sites that measured their own rows around the same weights have, merged, what one site with all rows has."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from retain import artefact, store
from retain.commands.state_merge import merge
from retain.run import run
from retain.store import StoreError
from runs import LABELS, quiet, settings, slow_but
from streams import jsonl, rows

pytestmark = pytest.mark.usefixtures("fast_runs")

EVERY = {"samples": None, "labels": "exact"}
MOVES = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05}
STILL = MOVES | {"learning_rate": 0.0}  # weights stay where they are, importance is measured there
METHODS: dict[str, tuple[dict[str, Any], bool]] = {
    "diagonal": ({"name": "ewc-lora", "decay": 0.5, "fisher": {"form": "diagonal", **EVERY}}, True),
    "dense sides": ({"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": None, **EVERY}}, True),
    "merge": ({"name": "ewc-lora", "mode": "merge", "fisher": {"form": "diagonal", **EVERY}}, True),
    "low rank": ({"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": 4, **EVERY}}, False),
    "8 bits": ({"name": "ewc-lora", "fisher": {"form": "diagonal", "storage": "uint8", **EVERY}}, False),
    "sketches": ({"name": "ewc-lora", "fisher": {"form": "diagonal", "sketches": 40, **EVERY}}, True),
    "ewc": ({"name": "ewc", "fisher": EVERY}, True),
    "online ewc": ({"name": "ewc", "decay": 0.9, "fisher": EVERY}, True),
}


def measured(
    bert: str, folder: Path, state: Path, parts: list[list[dict]], method: dict[str, Any], **more: Any
) -> Path:
    """The state of a site whose rows of the task "sport" are ``parts``."""
    folder.mkdir()
    files = {"train": jsonl(folder / "train.jsonl", sum(parts, [])), "test": jsonl(folder / "test.jsonl", parts[0])}
    tasks = [{"name": "sport", "path": "json", "data_files": files}]
    output = str(folder / "out")
    given = {
        "heads": {},
        "training": STILL,
        "method": method,
        "state": str(state),
        "output": output,
        "tasks": tasks,
    } | more
    run(settings(bert, folder, "", **given), quiet())
    return folder / "out" / "tasks" / "00-sport" / "state"


def parts_of() -> list[list[dict]]:
    """Rows of two sites: 8 of one, 4 of the other."""
    every = rows(LABELS["sport"], 6)
    return [every[:8], every[8:]]


def common(bert: str, folder: Path, method: dict[str, Any]) -> Path:
    """Where both sites begin: a task has been learned."""
    config = settings(bert, folder, "mood", method=method, training=MOVES)
    run(config, quiet())
    return Path(config.output, "tasks", "00-mood", "state")


def said(folders: list[Path], to: Path, weights: list[float] | None = None) -> str:
    console = Console(file=io.StringIO(), width=200)
    merge(folders, to, weights, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(METHODS, "diagonal", "low rank", "ewc"))
def test_merged_sites_remember_what_one_site_with_all_rows_would(name: str, bert: str, tmp_path: Path) -> None:
    method, exact = METHODS[name]
    begin, (north, south) = common(bert, tmp_path / "common", method), parts_of()
    sites = [measured(bert, tmp_path / n, begin, [part], method) for n, part in (("n", north), ("s", south))]
    oracle = measured(bert, tmp_path / "both", begin, [north, south], method)
    text = said(sites, tmp_path / "merged")
    assert ("the sum is exact" in text) == exact
    manifest = artefact.read_manifest(tmp_path / "merged")
    assert manifest.exact == exact and [part.weight for part in manifest.merged or []] == [8 / 12, 4 / 12]
    assert [task.rows for task in manifest.tasks] == [16, 12]
    ours, theirs = (store.read_tensors(folder / artefact.METHOD) for folder in (tmp_path / "merged", oracle))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if exact or not key.startswith(("fisher/", "springs/")):
            torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=1e-6 * float(tensor.float().abs().max()))
    if not exact:
        assert abs(trace(ours, method) / trace(theirs, method) - 1) < 0.02
    models = [store.read_tensors(folder / artefact.MODEL) for folder in (tmp_path / "merged", oracle)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[1])


def trace(state: dict[str, torch.Tensor], method: dict[str, Any]) -> float:
    from retain.fisher.choice import choose
    from retain.methods import METHODS as KNOWN

    choice = choose(method["fisher"], KNOWN["ewc-lora"].FISHER, {"sketches": int | None})
    sites = {key.split("/")[1] for key in state if key.startswith("fisher/")}
    parts = {s: {k.split("/")[2]: t for k, t in state.items() if k.startswith(f"fisher/{s}/")} for s in sites}
    return sum(form.trace for form in choice.restored(parts).values())


@pytest.fixture(scope="module")
def sites(bert: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A state, those of two sites that went on from it with the rows of each, and one whose weights have moved."""
    folder, method = tmp_path_factory.mktemp("sites"), METHODS["diagonal"][0]
    begin, (north, south) = common(bert, folder / "common", method), parts_of()
    still = [measured(bert, folder / n, begin, [part], method) for n, part in (("n", north), ("s", south))]
    return [begin, *still, measured(bert, folder / "moved", begin, [south], method, training=MOVES)]


@pytest.mark.slow
def test_a_run_goes_on_from_a_merged_state(sites: list[Path], bert: str, tmp_path: Path) -> None:
    said(sites[1:3], tmp_path / "merged", [2.0, 1.0])
    one, other, both = (store.read_tensors(folder / artefact.METHOD) for folder in (*sites[1:3], tmp_path / "merged"))
    key = next(key for key in both if key.startswith("fisher/"))
    torch.testing.assert_close(both[key], 2 * one[key] + other[key])
    method = METHODS["diagonal"][0]
    config = settings(bert, tmp_path, "greek", method=method, training=STILL, state=str(tmp_path / "merged"))
    assert run(config, quiet())["tasks"] == ["greek"]


def test_what_does_not_add_up_is_refused(sites: list[Path], tmp_path: Path) -> None:
    begin, north, south, moved = sites
    elsewhere = Path(shutil.copytree(south, tmp_path / "elsewhere"))
    manifest = json.loads((elsewhere / artefact.MANIFEST).read_text())
    manifest["keywords"]["decay"] = 1.0
    (elsewhere / artefact.MANIFEST).write_text(json.dumps(manifest))
    for folders, message in (
        ([north, moved], "adds? up around the same weights only; measure both from one state"),
        ([north, north], "the states are of the same rows: there is nothing to add"),
        ([north, begin], "biases.1 is not that of"),
        ([north], "one state alone"),
        ([north, elsewhere], "state of method.decay=1.0, and here it is 0.5"),
    ):
        with pytest.raises(StoreError, match=message):
            said(folders, tmp_path / "merged")
    with pytest.raises(StoreError, match=r"weights \[1.0\]: expected one above zero for each of 2"):
        said([north, south], tmp_path / "merged", [1.0])
    assert not (tmp_path / "merged").exists()


def test_a_method_whose_memory_is_no_sum_is_refused(bert: str, tmp_path: Path) -> None:
    state = common(bert, tmp_path, {"name": "olora"})
    with pytest.raises(StoreError, match="what olora remembers is no sum over rows; known: ewc, ewc-lora"):
        said([state, state], tmp_path / "merged")
