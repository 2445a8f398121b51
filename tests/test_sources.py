"""Entries become labelled splits; bad data give one clear line."""

import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from retain.sources import natural, stratified
from streams import jsonl, labels_of, refused, rows, stream, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer()


@pytest.fixture
def sport(tmp_path: Path) -> str:
    return jsonl(tmp_path / "sport.jsonl", rows(["win", "loss"]))


@pytest.fixture
def mood(tmp_path: Path) -> str:
    return jsonl(tmp_path / "mood.jsonl", rows(["sad", "glad", "win"]))


def test_csv_and_parquet_say_the_same_as_json(tokenizer: Any, tmp_path: Path) -> None:
    content = rows(["x", "y"])
    names = {
        "json": jsonl(tmp_path / "a.jsonl", content),
        "csv": str(tmp_path / "a.csv"),
        "parquet": str(tmp_path / "a.parquet"),
    }
    with open(names["csv"], "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(content)
    datasets.Dataset.from_list(content).to_parquet(names["parquet"])
    made = [stream(tokenizer, {"path": path, "data_files": file}).tasks[0] for path, file in names.items()]
    assert made[0].train[:] == made[1].train[:] == made[2].train[:]
    assert made[0].test[:] == made[1].test[:] == made[2].test[:]


def test_a_folder_with_train_and_test_files(tokenizer: Any, tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", rows(["x", "y"], 3))
    jsonl(tmp_path / "test.jsonl", rows(["x", "y"], 2))
    task = stream(tokenizer, {"path": str(tmp_path)}).tasks[0]
    assert (len(task.train), len(task.test)) == (6, 4)


def test_splits_that_are_named(tokenizer: Any, tmp_path: Path, sport: str, mood: str) -> None:
    files = {"train": sport, "validation": jsonl(tmp_path / "v.jsonl", rows(["win", "loss"], 2))}
    sizes = {
        None: (20, 4),
        ("train", "train[:14]"): (14, 4),
        ("train", "validation"): (3, 1),
        ("test", "validation[:3]"): (20, 3),
    }
    for named, expected in sizes.items():
        task = stream(tokenizer, {"data_files": files} | dict([named] if named else [])).tasks[0]
        assert (len(task.train), len(task.test)) == expected
    task = stream(tokenizer, {"data_files": sport, "train": "train[:15]", "test": "train[15:]"}).tasks[0]
    assert (len(task.train), len(task.test)) == (15, 5)


def test_rows_held_out_are_seeded_stratified_and_apart(tokenizer: Any, tmp_path: Path) -> None:
    skewed = [{"text": f"word {i}", "label": "rare" if i % 10 == 0 else "often"} for i in range(100)]
    entry = {"data_files": jsonl(tmp_path / "s.jsonl", skewed), "test_fraction": 0.3}
    one, same, other = (stream(tokenizer, entry, seed=seed).tasks[0] for seed in (0, 0, 1))
    assert one.test[:] == same.test[:] != other.test[:]
    assert np.bincount(labels_of(one.test)).tolist() == [27, 3] and len(one.train) == 70
    ids = [{tuple(row["input_ids"]) for row in part} for part in (one.train, one.test)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 100


def test_stratified_keeps_every_class_and_nests() -> None:
    names = np.array(["a"] * 90 + ["b"] * 9 + ["c"])
    assert set(names[stratified(names, 3, seed=0)]) == {"a", "b", "c"}
    small, large = stratified(names, 20, seed=5), stratified(names, 50, seed=5)
    assert set(small) < set(large) and len(small) == 20
    assert [sum(names[large] == c) for c in "abc"] == [44, 5, 1]
    assert (stratified(names, 20, seed=6) != small).any()


def test_at_most(tokenizer: Any, sport: str) -> None:
    task = stream(tokenizer, {"data_files": sport, "max_train": 5, "max_test": 2}).tasks[0]
    assert (len(task.train), len(task.test)) == (5, 2)
    task = stream(tokenizer, {"data_files": sport, "max_train": 500, "max_test": 500}).tasks[0]
    assert (len(task.train), len(task.test)) == (16, 4)


def test_class_names_have_one_order(tokenizer: Any, tmp_path: Path) -> None:
    assert sorted(["b", "10", "-1", "9", "a"], key=natural) == ["-1", "9", "10", "a", "b"]
    truth = jsonl(tmp_path / "b.jsonl", rows([True, False]))
    assert stream(tokenizer, {"data_files": truth}).labels == [["False", "True"]]
    feature = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["z", "unused", "a"]))
    coded = [{"text": "t", "label": 2 * (i % 2)} for i in range(10)]
    datasets.Dataset.from_list(coded, features=feature).to_parquet(tmp_path / "c.parquet")
    entry = {"path": "parquet", "data_files": str(tmp_path / "c.parquet")}
    assert stream(tokenizer, entry).labels == [["z", "a"]]
    assert stream(tokenizer, entry, scenario="domain").labels == [["z", "a"]]


def test_files_that_are_not_there(tokenizer: Any, sport: str, tmp_path: Path) -> None:
    gone = str(tmp_path / "sprot.jsonl")
    message = refused(tokenizer, {"data_files": gone})
    assert gone in message and message.endswith("did you mean 'sport.jsonl'?")
    assert gone in refused(tokenizer, {"data_files": {"train": sport, "test": [gone]}})
    assert "*.nothing" in refused(tokenizer, {"data_files": str(tmp_path / "*.nothing")})
    assert "no such file or folder" in refused(tokenizer, {"path": "imagefolder", "data_dir": str(tmp_path / "gone")})
    assert "no such file or folder" in refused(tokenizer, {"path": "./gone"})
    assert "cannot load 'nobody/nothing', which is no folder here" in refused(tokenizer, {"path": "nobody/nothing"})


def test_files_on_the_web_are_not_looked_for_here(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **keywords: Any) -> None:
        raise ConnectionError("no route\nto that host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refused(tokenizer, {"data_files": "https://example.invalid/x.json"})
    assert message == "task 't0': cannot read https://example.invalid/x.json as json: no route"


def test_a_path_that_is_no_format(tokenizer: Any, sport: str) -> None:
    assert "is a file; path takes its format (json, " in refused(tokenizer, {"path": sport})
    assert "needs data_files" in refused(tokenizer, {"path": "json"})
    assert refused(tokenizer, {"path": "jsonl", "data_files": sport}).endswith("did you mean 'json'?")


@pytest.mark.parametrize(
    ("format", "content"),
    [("json", ""), ("json", "[]"), ("json", '{"text": 1'), ("csv", ""), ("csv", "text,label\n"), ("parquet", "text")],
)
def test_files_without_rows(tokenizer: Any, tmp_path: Path, format: str, content: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(content)
    message = refused(tokenizer, {"path": format, "data_files": str(file)})
    assert str(file) in message or "empty" in message


def test_columns_that_are_not_there(tokenizer: Any, sport: str) -> None:
    assert refused(tokenizer, {"data_files": sport, "text": "txt"}) == (
        "task 't0': no column 'txt'; columns: text, label; did you mean 'text'?"
    )
    assert refused(tokenizer, {"data_files": sport, "label": "lable"}).endswith("did you mean 'label'?")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([{"text": "t", "label": None}], "row 20 has no label in column 'label'"),
        ([{"text": None, "label": "win"}], "column 'text' holds no text in 1 of "),
    ],
)
def test_holes(tokenizer: Any, tmp_path: Path, content: list[dict[str, Any]], complaint: str) -> None:
    holed = jsonl(tmp_path / "h.jsonl", rows(["win", "loss"]) + content)
    assert complaint in refused(tokenizer, {"data_files": holed})


def test_columns_of_another_type(tokenizer: Any, tmp_path: Path) -> None:
    numbers = jsonl(tmp_path / "n.jsonl", [{"text": "t", "n": i % 2, "label": i / 2} for i in range(10)])
    assert "expected text, whole numbers or booleans" in refused(tokenizer, {"data_files": numbers})
    assert "column 'n' holds Value('int64'), not text" in refused(
        tokenizer, {"data_files": numbers, "label": "n", "text": "n"}
    )


def test_labels_never_seen_in_training(tokenizer: Any, sport: str, mood: str) -> None:
    message = refused(tokenizer, {"data_files": {"train": sport, "test": mood}})
    assert message == "task 't0': test label 'glad' is never seen in training; labels there: loss, win"
    kept = stream(tokenizer, {"data_files": {"train": mood, "test": sport}, "classes": ["win", "sad"]})
    assert set(labels_of(kept.tasks[0].test)) == {1}


def test_classes_that_cannot_be(tokenizer: Any, sport: str, mood: str) -> None:
    assert refused(tokenizer, {"data_files": sport, "classes": ["win", "los"]}).endswith("did you mean 'loss'?")
    assert "nothing to tell apart" in refused(tokenizer, {"data_files": sport, "classes": ["win"]})
    assert "nothing to tell apart" in refused(tokenizer, {"data_files": mood, "split_by_class": 2})
    assert "max_train 1 is less than its 2 classes" in refused(tokenizer, {"data_files": sport, "max_train": 1})


def test_splits_that_cannot_be(tokenizer: Any, sport: str) -> None:
    assert refused(tokenizer, {"data_files": sport, "train": "trian[:3]"}).endswith("did you mean 'train'?")
    assert "name the rest with `train`" in refused(tokenizer, {"data_files": sport, "test": "train[:3]"})
    assert "no split 'train'" in refused(tokenizer, {"data_files": {"a": sport, "b": sport}})
    assert "the test split is empty" in refused(tokenizer, {"data_files": sport, "test_fraction": 0.01})
    assert "train[:" in refused(tokenizer, {"data_files": sport, "train": "train[:"})


# --- Validation rows -------------------------------------------------------------------------------------------------


def texts_of(tokenizer: Any, data: Any) -> set[str]:
    return {tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data}


VALIDATION = {"evaluation": {"rows": "validation"}}


def test_validation_rows_are_held_out_of_the_training_rows_and_test_rows_of_both(tokenizer: Any, sport: str) -> None:
    entry = {"data_files": sport, "test_fraction": 0.25}
    for seed in (0, 1):
        final, tuning = (stream(tokenizer, entry, seed=seed, **config).tasks[0] for config in ({}, VALIDATION))
        train, test, less, validation = (
            texts_of(tokenizer, rows) for rows in (final.train, final.test, tuning.train, tuning.test)
        )
        assert (len(test), len(train), len(validation), len(less)) == (5, 15, 4, 11)
        assert not test & (less | validation) and not less & validation and less | validation == train


def test_rows_for_the_gauge_are_the_validation_rows_beside_the_test_rows(tokenizer: Any, sport: str) -> None:
    entry = {"data_files": sport, "test_fraction": 0.25, "split_by_class": 2, "max_test": 3}
    final, tuning, both = (
        stream(tokenizer, entry, **config) for config in ({}, VALIDATION, {"evaluation": {"gauge": "validation"}})
    )
    assert final.gauge is None and both.gauge is not None and both.gauge.tasks.keys() == {"t0-0"}
    gauge, task = both.gauge.tasks["t0-0"], both.tasks[0]
    assert texts_of(tokenizer, gauge.test) == texts_of(tokenizer, tuning.tasks[0].test)
    assert texts_of(tokenizer, task.train) == texts_of(tokenizer, tuning.tasks[0].train)
    assert texts_of(tokenizer, task.test) == texts_of(tokenizer, final.tasks[0].test)
    assert stream(tokenizer, entry, evaluation={"rows": "validation", "gauge": "validation"}).gauge is None


def test_a_file_of_test_rows_is_not_opened_for_validation(tokenizer: Any, sport: str, tmp_path: Path) -> None:
    (tmp_path / "gone.jsonl").write_text("no JSON")
    files = {"train": sport, "test": str(tmp_path / "gone.jsonl")}
    task = stream(tokenizer, {"data_files": files}, **VALIDATION).tasks[0]
    assert (len(task.train), len(task.test)) == (16, 4)
    assert "cannot read" in refused(tokenizer, {"data_files": files})


def test_a_validation_split_is_used_where_there_is_one(tokenizer: Any, sport: str, mood: str, tmp_path: Path) -> None:
    few = jsonl(tmp_path / "v.jsonl", rows(["win", "loss"], 2))
    gone = str(tmp_path / "gone.jsonl")
    sizes = [
        ({"data_files": {"train": sport, "validation": few, "test": gone}}, (20, 4)),
        ({"data_files": {"train": sport, "validation": few}}, (16, 4)),  # these are the test rows
        ({"data_files": {"train": sport, "dev": few, "test": gone}, "validation": "dev[:3]"}, (20, 3)),
        ({"data_files": {"train": sport, "dev": few}, "validation": "dev"}, (16, 4)),  # and no test split
        ({"data_files": sport, "train": "train[:12]", "test": "train[16:]", "validation": "train[12:16]"}, (12, 4)),
    ]
    for entry, expected in sizes:
        task = stream(tokenizer, entry, **VALIDATION).tasks[0]
        assert (len(task.train), len(task.test)) == expected
    odd = {"data_files": {"train": sport, "validation": mood, "test": few}}
    assert "validation label 'glad' is never seen in training" in refused(tokenizer, odd, **VALIDATION)
    assert "validation 'train[:3]' is part of 'train'" in refused(
        tokenizer, {"data_files": sport, "validation": "train[:3]"}
    )


def test_subsets_are_taken_of_what_is_left(tokenizer: Any, sport: str) -> None:
    task = stream(tokenizer, {"data_files": sport, "max_train": 12, "max_test": 2}, **VALIDATION).tasks[0]
    assert (len(task.train), len(task.test)) == (12, 2)


def test_a_seed_of_its_own_fixes_the_rows_whatever_the_seed_of_the_run(tokenizer: Any, sport: str) -> None:
    entry = {"data_files": sport, "max_train": 6}
    one, same, other = (
        stream(tokenizer, entry, **seeds).tasks[0] for seeds in ({"seed": 0}, {"seed": 3, "split_seed": 0}, {"seed": 3})
    )
    assert (one.train[:], one.test[:]) == (same.train[:], same.test[:]) != (other.train[:], other.test[:])
