"""Files that anybody may have written: what is too large, too deep, elsewhere, or no file is refused in time."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from retain import intake, store, yamls
from retain.files import StoreError
from retain.workshop import check_folder
from runs import settings


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A finished stage beside a file that is not its own."""
    store.write(tmp_path / "secret", "of somebody else")
    store.write(tmp_path / "stage" / "scores.json", "{}")
    store.close(tmp_path / "stage")
    return tmp_path / "stage"


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", ".", "", "a/../../secret", "link", "loop", "nul\0"])
def test_a_path_that_was_read_does_not_leave_its_folder(name: str, stage: Path) -> None:
    (stage / "link").symlink_to(stage.parent / "secret")
    (stage / "loop").symlink_to(stage / "loop")
    with pytest.raises(StoreError, match=f"{stage}: .* (leads out of this folder|is no path of a file)"):
        intake.inside(stage, name)
    assert intake.inside(stage, "deep/file") == stage / "deep" / "file"


def test_a_manifest_that_names_files_elsewhere_reads_none_of_them(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"state/../../secret": store.hash_of(stage.parent / "secret")}
    store.write_json(stage / "done", hashes)
    monkeypatch.setattr(store, "hash_of", None)
    for verify in (lambda: store.verify(stage, "state"), lambda: store.verify_all(stage)):
        with pytest.raises(StoreError, match="leads out of this folder"):
            verify()
    for damaged in ("[]", '{"a": 1}', "3"):
        (stage / "done").write_text(damaged)
        with pytest.raises(StoreError, match="done: damaged"):
            store.verify_all(stage)


def test_a_stage_that_is_a_link_out_of_the_run_is_refused(bert: str, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, "mood")
    (tmp_path / "elsewhere" / "state").mkdir(parents=True)
    (tmp_path / "out" / "tasks").mkdir(parents=True)
    store.write(tmp_path / "out" / "config.yaml", "")
    (tmp_path / "out" / "tasks" / "00-mood").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="'tasks/00-mood' leads out of this folder"):
        check_folder(config)


@pytest.mark.parametrize("read", [intake.read_json, intake.read_tensors, intake.hash_of, intake.read_yaml])
def test_what_is_no_file_is_not_waited_for(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(StoreError, match=f"{name}.*: not a file"):
            read(tmp_path / name)


def test_json_that_is_too_deep_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    path.write_text("[" * 10**5 + "]" * 10**5)
    with pytest.raises(StoreError, match="scores.json: not readable as JSON .nested too deeply"):
        store.read_json(path)
    monkeypatch.setattr(intake, "JSON", 10)
    path.write_text('"12345678"')
    assert store.read_json(path) == "12345678"
    path.write_text('"123456789"')
    with pytest.raises(StoreError, match="scores.json: larger than 10 bytes"):
        store.read_json(path)


def header(entries: Any, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize("length", [2**63, 10**8, 3000])
def test_an_absurd_header_is_refused_before_anything_is_made_of_it(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, length))
    with pytest.raises(StoreError, match=f"x.safetensors: not readable as safetensors .a header of {length:,} bytes"):
        store.read_tensors(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(10**4, 10**3)}, r"'a' is \[10000, 1000\], expected \[2, 3\]"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, r"'b' is \[1\], expected none"),
        ({"b": torch.zeros(1)}, r"'a' is missing, expected \[2, 3\]"),
    ],
)
def test_shapes_that_are_not_expected_are_refused_before_they_are_allocated(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_tensors(tmp_path / "x.safetensors", tensors)
    monkeypatch.setattr(safetensors.torch, "load_file", None)
    with pytest.raises(StoreError, match=message):
        store.read_tensors(tmp_path / "x.safetensors", {"a": (2, 3)})


LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"more than 100,000 values .line 5"),
        (CHAIN, r"more than 32 sections in each other .line 32"),
        ("[" * 10**5, "more than 32 sections in each other"),
        ("a: &a [*a]", r"the alias \*a stands for what it is part of"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("a: !!timestamp never", "the tag .*timestamp is not allowed .line 1"),
        ("? [a]\n: b", "a key is a word or a number .line 1"),
        ("a: " + ":".join(["1"] * 10**4), "a value of 19,999 characters"),
        ("#" * 2**17 + "\na: 1", "131,077 characters; at most 131,072 are read"),
    ],
)
def test_yaml_that_would_run_or_explode_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        yamls.read(text)


def test_aliases_that_are_small_stand_for_what_they_are_of() -> None:
    assert yamls.read("a: &a {x: [1]}\nb: *a\nc: [*a, *a]\nd: &d 1\ne: *d") == {
        "a": {"x": [1]},
        "b": {"x": [1]},
        "c": [{"x": [1]}] * 2,
        "d": 1,
        "e": 1,
    }
