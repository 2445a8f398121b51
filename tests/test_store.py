"""What is on disk is whole or not there, and what is damaged is refused by its path."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import bare_bert, bare_llama, filled, prompts, texts
from retain import store
from retain.hf import load_model
from retain.lora import add_lora, sites
from retain.store import StoreError


def test_a_value_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "scores.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


def test_json_and_tensors_come_back(tmp_path: Path) -> None:
    value = {"b": [1, None, 0.1], "a": "ü"}
    store.write_json(tmp_path / "x.json", value)
    assert store.read_json(tmp_path / "x.json") == value and list(store.read_json(tmp_path / "x.json")) == ["b", "a"]
    tensors = {"t": torch.randn(3, 4).T, "n": torch.tensor(3), "e": torch.zeros(0, 2)}
    store.write_tensors(tmp_path / "x.safetensors", tensors)
    back = store.read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key]) for key in back)


@pytest.mark.parametrize("read", [store.read_json, store.read_tensors])
def test_what_cannot_be_read_is_named(read: Callable, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(StoreError, match=f"{path}: missing"):
        read(path)
    for content in (b"", b"{ half", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=f"{path}: not readable as"):
            read(path)


def test_a_closed_stage_knows_its_files(tmp_path: Path) -> None:
    store.write(tmp_path / "scores.json", "{}")
    store.write(tmp_path / "state" / "model", "tensors")
    assert not store.is_closed(tmp_path)
    store.close(tmp_path)
    assert store.is_closed(tmp_path)
    assert set(json.loads((tmp_path / "done").read_text())) == {"scores.json", "state/model"}
    store.verify(tmp_path, "scores.json", "state")
    (tmp_path / "scores.json").write_text("{ }")
    store.verify(tmp_path, "state/model")
    with pytest.raises(
        StoreError, match=f"{tmp_path}/scores.json: damaged, its hash is not the one in {tmp_path}/done"
    ):
        store.verify(tmp_path, "scores.json")
    (tmp_path / "state" / "model").unlink()
    for name in ("state", "state/model"):
        with pytest.raises(StoreError, match=f"{tmp_path}/state/model: missing, though its stage is finished"):
            store.verify(tmp_path, name)
    store.write(tmp_path / "late", "")
    with pytest.raises(StoreError, match="late: damaged"):
        store.verify(tmp_path, "late")


def test_size_is_that_of_a_file_or_of_all_under_a_folder(tmp_path: Path) -> None:
    store.write(tmp_path / "one", "12345")
    store.write(tmp_path / "deep" / "two", "123")
    assert (store.size(tmp_path / "one"), store.size(tmp_path), store.size(tmp_path / "none")) == (5, 8, 0)


def classifier(bert: str, folder: Path) -> Any:
    """An adapted model of two tasks with a past, and its exported adapter in ``folder``."""
    model = filled(load_model(bert, "text", [2, 3], {"r": 2, "target_modules": ["query", "value"]}))
    for site in sites(model).values():
        site.fold(torch.Generator().manual_seed(0))
    filled(model, seed=2)
    labels = {"one": {"first_output": 0, "labels": ["a", "b"]}, "two": {"first_output": 2, "labels": ["c", "d", "e"]}}
    store.write_adapter(folder, model, labels)
    assert store.read_json(folder / "labels.json") == labels
    return model


def batches(*sizes: int) -> list[dict[str, torch.Tensor]]:
    return [{k: v for k, v in batch.items() if k != "labels"} for batch in texts(sizes=sizes).train]


def test_the_exported_adapter_computes_the_same(bert: str, tmp_path: Path, in_process: list) -> None:
    model = classifier(bert, tmp_path / "adapter")
    model.train()
    assert store.check_adapter(tmp_path / "adapter", model, batches(4, 4, 3)) <= 1e-5
    assert model.training and len(in_process) == 1
    assert "retain" not in in_process[0][2]


def test_what_the_readme_says_works(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(bert, tmp_path / "this" / "folder")
    readme = (tmp_path / "this" / "folder" / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    batch = batches(3)[0]
    model.eval()
    torch.testing.assert_close(names["model"].eval()(**batch).logits, model(**batch).logits, atol=1e-5, rtol=0)
    assert "`labels.json` says" in readme and f"base_model: {bert}" in readme


@pytest.mark.parametrize(("part", "batch"), [("lora_B", 0), ("classifier", 1)])
def test_a_wrong_adapter_is_found(part: str, batch: int, bert: str, tmp_path: Path, in_process: list) -> None:
    model = classifier(bert, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = next(k for k in tensors if part in k and "weight" in k)
    tensors[key][-1] += 0.1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert store.check_adapter(tmp_path, model, batches(4, 4)) > 1e-3


def test_logits_that_are_no_numbers_are_no_agreement(bert: str, tmp_path: Path, in_process: list) -> None:
    model = classifier(bert, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    next(t for k, t in tensors.items() if "lora_A" in k).fill_(float("nan"))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert not store.check_adapter(tmp_path, model, batches(4, 4)) <= 1e-5


def test_an_adapter_that_does_not_load_is_reported(bert: str, tmp_path: Path, in_process: list) -> None:
    model = classifier(bert, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=f"{tmp_path}: this adapter does not load with peft: SafetensorError") as error:
        store.check_adapter(tmp_path, model, batches(1))
    assert "\n" not in str(error.value)


def test_a_clean_process_that_dies_without_a_word(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(bert, tmp_path)
    monkeypatch.setattr(store.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9, "", ""))
    with pytest.raises(StoreError, match="does not load with peft: exit status -9"):
        store.check_adapter(tmp_path, model, batches(1))


def test_an_own_loop_exports_a_language_model_with_the_same_check(tmp_path: Path, in_process: list) -> None:
    bare_llama().save_pretrained(tmp_path / "base")
    base = type(bare_llama()).from_pretrained(tmp_path / "base")
    model = filled(add_lora(base, r=2, target_modules=["q_proj", "v_proj"]))
    batch = {k: v for k, v in prompts(sizes=(2,)).train[0].items() if k != "labels"}
    assert store.export(model, tmp_path / "adapter", batch) <= 1e-5
    assert store.export(model, str(tmp_path / "adapter")) is None
    assert not (tmp_path / "adapter" / "labels.json").exists()
    readme = (tmp_path / "adapter" / "README.md").read_text()
    assert "num_labels" not in readme and "labels.json" not in readme


def test_a_classifier_that_needs_to_know_its_padding(tmp_path: Path, in_process: list) -> None:
    """A language model's classifier reads the last token that is no padding, and no checkpoint says which that is."""
    import transformers

    config = bare_llama(pad_token_id=None).config
    transformers.LlamaModel(config).save_pretrained(tmp_path / "base")
    model = filled(load_model(str(tmp_path / "base"), "text", [2, 3], {"r": 2, "target_modules": ["q_proj"]}))
    model.config.pad_token_id = 0
    store.write_adapter(tmp_path / "adapter", model, {"t": {}})
    assert store.check_adapter(tmp_path / "adapter", model, batches(4)) <= 1e-5
    assert "pad_token_id=0" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_base_that_comes_with_another_classifier(tmp_path: Path, in_process: list) -> None:
    bare_bert(num_labels=3).save_pretrained(tmp_path / "base")
    model = filled(load_model(str(tmp_path / "base"), "text", [2, 3], {"r": 2, "target_modules": ["query"]}))
    store.write_adapter(tmp_path / "adapter", model, {"t": {}})
    assert store.check_adapter(tmp_path / "adapter", model, batches(4)) <= 1e-5
