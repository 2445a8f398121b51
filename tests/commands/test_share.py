"""Collections of adapters: real peft LoRAs go in and come out, through files, without data."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from models import bare_bert, filled
from retain import cli, collection, store
from retain.collection import read_adapter
from retain.commands.share import add_adapters, export, merge
from retain.run import run
from retain.store import StoreError
from runs import quiet, settings

TOKENS = torch.arange(12).view(2, 6)
LAYERS = ["query", "value", "intermediate.dense"]


def adapter(folder: Path, seed: int, **lora: Any) -> Path:
    """A stock LoRA of another seed and, if asked for, of odd ranks and scales, as peft writes it."""
    options = {"r": 3, "lora_alpha": 6, "target_modules": LAYERS, "modules_to_save": ["classifier"]} | lora
    model = filled(get_peft_model(bare_bert(), LoraConfig(**options)), seed=seed)
    model.save_pretrained(str(folder))
    return folder


def logits(folder: Path) -> Tensor:
    """What peft makes of an adapter."""
    model = PeftModel.from_pretrained(bare_bert(), str(folder)).eval()
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["retain", "share", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return done.value.code


def test_adapters_of_any_rank_and_scale_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {
        "rank_pattern": {"layer.0.attention.self.query": 5},
        "alpha_pattern": {"value": 1, "^bert.*layer.1.*query": 9},
    }
    paths = [
        adapter(tmp_path / "plain", 1),
        adapter(tmp_path / "rs", 2, use_rslora=True, r=4),
        adapter(tmp_path / "odd", 3, **odd),
    ]
    zoo = tmp_path / "zoo"
    assert invoke(monkeypatch, "add-adapter", zoo, *paths[:2]) == 0
    assert invoke(monkeypatch, "add-adapter", zoo, paths[2]) == 0
    assert "bytes: bases" in capsys.readouterr().out
    for path in paths:
        assert invoke(monkeypatch, "export", zoo, "--task", path.name) == 0
        torch.testing.assert_close(logits(zoo / "export" / path.name), logits(path), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    paths = [adapter(tmp_path / f"a{i}", i) for i in range(4)]
    assert invoke(monkeypatch, "add-adapter", tmp_path / "zoo", *paths, "--components", 4) == 0
    assert "4 of 4 tasks lose more than 10 %" in " ".join(capsys.readouterr().out.split())
    bounded = add_adapters(tmp_path / "bounded", paths, components=4, max_residual=0.02, console=quiet())
    assert max(bounded.residuals.values()) <= 0.02


def test_two_sites_become_one(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / f"a{i}", i) for i in range(3)]
    add_adapters(tmp_path / "one", paths[:1], console=quiet())
    add_adapters(tmp_path / "two", paths[1:], console=quiet())
    both = merge(tmp_path / "one", tmp_path / "two", tmp_path / "both", console=quiet())
    assert both.tasks == ["a0", "a1", "a2"]
    for path in paths:
        target = export(tmp_path / "both", path.name, tmp_path / "out" / path.name, console=quiet())
        torch.testing.assert_close(logits(target), logits(path), rtol=0, atol=1e-5)
    with pytest.raises(StoreError, match="is not empty"):
        merge(tmp_path / "one", tmp_path / "two", tmp_path / "both", console=quiet())
    with pytest.raises(ValueError, match="both have a task 'a0'"):
        merge(tmp_path / "one", tmp_path / "one", tmp_path / "three", console=quiet())


def test_tasks_keep_their_order_and_a_collection_its_bits(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / name, i) for i, name in enumerate(["zebra", "ape", "mole"])]
    made = add_adapters(tmp_path / "zoo", paths, console=quiet())
    read = collection.read(tmp_path / "zoo")
    assert read.tasks == made.tasks == ["zebra", "ape", "mole"]
    assert read.residuals == made.residuals and read.bytes() == made.bytes()
    one, two = dict(collection.flat(made.bases)), dict(collection.flat(read.bases))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_what_a_crash_has_left_belongs_to_nobody(tmp_path: Path) -> None:
    one, two = (adapter(tmp_path / name, i) for i, name in enumerate(("one", "two")))
    add_adapters(tmp_path / "zoo", [one], console=quiet())
    manifest = (tmp_path / "zoo" / "bases.safetensors").read_bytes()
    add_adapters(tmp_path / "zoo", [two], console=quiet())
    (tmp_path / "zoo" / "bases.safetensors").write_bytes(manifest)  # a kill before the bases were written
    assert collection.read(tmp_path / "zoo").tasks == ["one"]
    other = adapter(tmp_path / "later" / "two", 5)
    add_adapters(tmp_path / "zoo", [other], console=quiet())
    target = export(tmp_path / "zoo", "two", console=quiet())
    torch.testing.assert_close(logits(target), logits(other), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("fast_runs")
def test_a_run_takes_adapters_beside_what_it_has_learned(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood sport", method={"name": "share", "components": 8})
    run(config, quiet())
    output = Path(config.output)
    stranger = output / "adapter"  # the adapter of the last task stands for one that came from elsewhere
    found = add_adapters(output, [stranger], name="stranger", console=quiet())
    assert found.tasks == ["mood", "sport", "stranger"] and max(found.residuals.values()) < 1e-3
    for name, (B, A) in read_adapter(stranger).changes.items():
        for task in ("sport", "stranger"):
            left, right = found.bases[name].factors(task)
            torch.testing.assert_close(left @ right, B @ A, rtol=0, atol=1e-6)


def test_a_run_of_another_method_is_refused(bert: str, tmp_path: Path, fast_runs: Any) -> None:
    config = settings(bert, tmp_path, "mood")
    run(config, quiet())
    with pytest.raises(StoreError, match="is a run of the method 'sequential', not of 'share'"):
        add_adapters(Path(config.output), [adapter(tmp_path / "a", 0)], console=quiet())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json: missing"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no"), "not readable as safetensors"),
        (lambda folder: _rewrite(folder, use_dora=True), "use_dora is True; only plain LoRA"),
        (lambda folder: _rewrite(folder, peft_type="IA3"), "peft_type is 'IA3'; only plain LoRA"),
        (lambda folder: _rewrite(folder, base_model_name_or_path="x"), "belongs to the base model 'x', the tasks here"),
        (lambda folder: _drop(folder, ""), "holds no pairs lora_A, lora_B"),
        (lambda folder: _drop(folder, "layer.0.attention.self.value"), "adapts other layers than the tasks here"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused_and_changes_nothing(
    damage: Any, message: str, tmp_path: Path
) -> None:
    add_adapters(tmp_path / "zoo", [adapter(tmp_path / "a", 0)], console=quiet())
    before = {path: path.read_bytes() for path in (tmp_path / "zoo").rglob("*") if path.is_file()}
    damage(bad := adapter(tmp_path / "bad", 1))
    with pytest.raises(ValueError, match=message):
        add_adapters(tmp_path / "zoo", [adapter(tmp_path / "b", 2), bad], console=quiet())
    assert before == {path: path.read_bytes() for path in (tmp_path / "zoo").rglob("*") if path.is_file()}


def _rewrite(folder: Path, **changed: Any) -> None:
    path = folder / "adapter_config.json"
    store.write_json(path, store.read_json(path) | changed)


def _drop(folder: Path, part: str) -> None:
    path = folder / "adapter_model.safetensors"
    store.write_tensors(path, {k: t for k, t in store.read_tensors(path).items() if "lora" not in k or part not in k})


def test_names_and_folders_are_checked(tmp_path: Path) -> None:
    one = adapter(tmp_path / "one", 0)
    add_adapters(tmp_path / "zoo", [one], console=quiet())
    with pytest.raises(ValueError, match="there is a task 'one' already"):
        add_adapters(tmp_path / "zoo", [one], console=quiet())
    with pytest.raises(ValueError, match="'a/b' cannot name a folder"):
        add_adapters(tmp_path / "zoo", [one], name="a/b", console=quiet())
    with pytest.raises(ValueError, match="--name names one adapter, and here are 2"):
        add_adapters(tmp_path / "zoo", [one, one], name="x", console=quiet())
    with pytest.raises(ValueError, match="no task 'onne' here; known: one; did you mean 'one'"):
        export(tmp_path / "zoo", "onne", console=quiet())
    with pytest.raises(StoreError, match="holds no collection"):
        export(tmp_path / "nothing", "one", console=quiet())
    with pytest.raises(StoreError, match="is not empty and holds no collection"):
        add_adapters(one, [one], console=quiet())
    manifest = tmp_path / "zoo" / "share.json"
    store.write_json(manifest, store.read_json(manifest) | {"format": "retain share, 9"})
    with pytest.raises(StoreError, match="written by something else"):
        add_adapters(tmp_path / "zoo", [shutil.copytree(one, tmp_path / "two")], console=quiet())
