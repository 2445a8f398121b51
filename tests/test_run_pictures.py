"""Models that read a picture and a text: rows, tokens, answers, and runs on a tiny LLaVA."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace

from retain.answers import answers
from retain.config import ConfigError, parse
from retain.data import DataError, Stream
from retain.formats import Piece, Spoken
from retain.hf import CLASSES, load_processor
from retain.language import Encoder
from retain.pictures import Pictures
from retain.run import run
from retain.task import IGNORED, forward
from runs import quiet
from streams import WORDS, jsonl, stream

pytestmark = pytest.mark.usefixtures("fast_runs", "in_process")
PIECES = 4  # of an 8 by 8 picture


@pytest.fixture(scope="module")
def processor(llava: str) -> Any:
    return load_processor(llava, "image-text-to-text")


def pictured(folder: Path, form: str = "sharegpt", each: int = 10) -> str:
    """Rows of dark and of light pictures, whose answers say which they are."""
    rows = []
    for i in range(2 * each):
        light, path = i % 2, folder / f"{i}.png"
        shade = np.full((9, 12, 3), 40 + 150 * light + i, dtype=np.uint8)
        Image.fromarray(shade).save(path)
        asked, said = f"alpha {WORDS[i % 8]}", "win" if light else "loss"
        forms: dict[str, dict[str, Any]] = {
            "sharegpt": {
                "conversations": [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": said}]
            },
            "messages": {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]},
            "prompt": {"prompt": f"{asked} <image>", "completion": said},
            "alpaca": {"instruction": asked, "output": said},
        }
        rows.append({"image": str(path)} | forms[form])
    return jsonl(folder / f"{form}.jsonl", rows)


def made(processor: Any, *entries: dict[str, Any]) -> Stream:
    return stream(processor, *entries, kind="image-text-to-text")


@pytest.mark.parametrize("form", ["sharegpt", "messages", "prompt", "alpaca"])
def test_a_picture_stands_ahead_of_what_is_said_and_is_not_learned(form: str, processor: Any, tmp_path: Path) -> None:
    task = made(processor, {"data_files": pictured(tmp_path, form)}).tasks[0]
    row, tokenizer = task.train[1], processor.tokenizer
    learned = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(learned).split() in (["win", "<eos>"], ["loss", "<eos>"])
    text = tokenizer.decode(row["input_ids"])
    assert row["input_ids"].count(processor.image_token_id) == PIECES and text.startswith("<bos>")
    assert text.index("<image>") < text.index("alpha") and text.count("<bos>") == 1
    batch = task.collate([task.train[i] for i in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 8, 8) and batch["input_ids"].shape == batch["labels"].shape
    whole = processor(text=[text.replace("<image> " * (PIECES - 1), "")], images=[Image.open(row["image"]["path"])])
    assert np.allclose(batch["pixel_values"][1], whole["pixel_values"][0])


def test_pieces_are_the_tokens_of_the_whole_where_a_space_is_put_before_each(processor: Any) -> None:
    tokenizer = copy.deepcopy(processor.tokenizer)
    vocabulary = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3, "▁": 4, "▁USER:": 5, "▁alpha": 6, "▁win": 7, "▁a": 8}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Metaspace()
    tokenizer._tokenizer = words
    pieces = [Piece("USER: alpha", False), Piece(" win ", True), Piece("USER: alpha", False), Piece(" win ", True)]
    ids, labels, start = Encoder(tokenizer, "completion", pictures=Pictures(processor)).tokens(
        Spoken(pieces, "win", True)
    )
    assert [*ids[-7:-1]] == tokenizer("USER: alpha win USER: alpha win", add_special_tokens=False).input_ids
    assert ids[-1] == 3 and ids[start:] == [7, 3] and [x for x in labels if x != IGNORED] == [7, 7, 3]


def test_the_answers_of_a_model_are_to_its_pictures(llava: str, processor: Any, tmp_path: Path) -> None:
    entry = {"data_files": pictured(tmp_path), "metrics": ["exact_match"], "options": True, "max_new_tokens": 3}
    only = made(processor, entry)
    asked, task = only.asked["t0"], only.tasks[0]
    model = CLASSES["image-text-to-text"][0].from_pretrained(llava).eval()
    found = answers(model, asked, batch_size=3)
    assert found.keys() == {"exact_match", "option_accuracy"}
    losses = []
    for i in range(len(task.test)):
        for option in asked.rows[i]["options"]:
            prompt = asked.rows[i]["prompt"]
            row = {"input_ids": [*prompt, *option], "labels": [IGNORED] * len(prompt) + option}
            with torch.no_grad():
                outputs, targets = forward(model, task.collate([row | {"image": task.test[i]["image"]}]))
            losses.append(float(task.loss.nll(outputs, targets)))
    chosen = np.array(losses).reshape(-1, 2).argmin(1)
    assert found["option_accuracy"].tolist() == (chosen == np.array(asked.rows["right"])).astype(float).tolist()


def document(llava: str, folder: Path, **sections: Any) -> dict[str, Any]:
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    entry = {"path": "json", "metrics": ["exact_match"], "max_new_tokens": 2}
    tasks = [entry | {"name": name, "data_files": pictured(folder / name)} for name in "ab"]
    return {
        "model": {"path": llava, "kind": "image-text-to-text"},
        "lora": {"r": 2, "target_modules": r".*language_model.*\.(q|v)_proj"},
        "training": {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 0.03},
        "tasks": tasks,
        "output": str(folder / "out"),
    } | sections


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"name": "eblora"}),
        pytest.param({"name": "replay", "rows": 4}, marks=pytest.mark.slow),
        pytest.param({"name": "ewc-lora"}, marks=pytest.mark.slow),
    ],
    ids=lambda method: method["name"],
)
def test_a_run_on_pictures(method: dict[str, Any], llava: str, tmp_path: Path) -> None:
    results = run(parse(document(llava, tmp_path, method=method)), quiet())
    nats, exact = results["nats_per_token"]["scores"], results["metrics"]["exact_match"]["matrix"]
    assert nats["gained"] > 0.3 and exact[-1][1] > exact[0][1]
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "training row 0: it has no picture"),
        ({"image": "gone.png"}, "training row 0: its picture cannot be read: .*gone.png"),
        ({"prompt": "<image> <image> alpha"}, "<image> stands in it 2 times: a row has one picture"),
    ],
)
def test_rows_without_a_picture_are_refused(
    change: dict[str, Any], message: str, processor: Any, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    row = {"image": str(tmp_path / "0.png"), "prompt": "alpha", "completion": "win"} | change
    rows = [row, *[row | {"image": str(tmp_path / "0.png")}] * 4]
    with pytest.raises(DataError, match=message):
        made(processor, {"data_files": {"train": jsonl(tmp_path / "r.jsonl", rows), "test": str(tmp_path / "r.jsonl")}})


def test_columns_and_sections_that_mean_nothing_there(processor: Any, llama: str, tmp_path: Path) -> None:
    rows = [{"prompt": "alpha", "completion": "win", "image": 3}] * 5
    with pytest.raises(DataError, match="column 'image' holds Value.*neither pictures nor their paths"):
        made(processor, {"data_files": jsonl(tmp_path / "r.jsonl", rows)})
    with pytest.raises(ConfigError, match="'image-text-to-text', which learns every answer"):
        parse(document("m", tmp_path / "d", language={"packing": True}))
    with pytest.raises(ValueError, match="takes no pictures"):
        load_processor(llama, "image-text-to-text")
