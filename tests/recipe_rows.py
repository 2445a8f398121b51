"""A few rows in the form that each source of the recipes has, and what the script makes of them."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from retain.config import load

FOLDER = Path(__file__).parents[1] / "recipes"
SPEC = importlib.util.spec_from_file_location("recipe_data", FOLDER.parent / "scripts" / "recipe_data.py")
assert SPEC and SPEC.loader
recipe_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe_data)
WORDS = ["alpha beta", "gamma delta", "glad win", "sad loss"]


def pictures(classes: int) -> list[dict[str, Any]]:
    """Eight for each class."""
    noise = np.random.default_rng(0)
    image = datasets.Image().encode_example
    return [
        {"picture": image(Image.fromarray(noise.integers(0, 255, (8, 8, 3), dtype=np.uint8))), "class": i % classes}
        for i in range(8 * classes)
    ]


def folder_of_pictures(at: Path, classes: int) -> dict[str, Any]:
    for number, row in enumerate(pictures(classes)):
        path = at / f"class-{row['class']:03}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["picture"]["bytes"])
    return {"data_dir": str(at)}


def table_of_pictures(at: Path, image: str, label: str, classes: int) -> dict[str, Any]:
    rows = [{image: row["picture"], label: row["class"]} for row in pictures(classes)]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(num_classes=classes)})
    return table(at, rows, features)


def painted(at: Path) -> dict[str, Any]:
    """ArtBench's folders of one style."""
    for part, each in (("train", 4), ("test", 2)):
        folder = at / part / at.name.replace("-", "_")
        folder.mkdir(parents=True)
        for number, row in enumerate(pictures(1)[:each]):
            Image.open(io.BytesIO(row["picture"]["bytes"])).resize((256, 256)).save(folder / f"{number}.jpg")
    return {"data_files": {part: str(at / part / "*" / "*") for part in ("train", "test")}}


def table(at: Path, rows: list[dict[str, Any]], features: datasets.Features | None = None) -> dict[str, Any]:
    at.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(at / "rows.parquet")
    return {"path": "parquet", "data_files": str(at / "rows.parquet")}


def sentences(
    at: Path, *columns: str, label: str = "label", names: tuple[str, ...] = ("no", "yes"), **more: str
) -> dict[str, Any]:
    rows = [{c: WORDS[i % 4] for c in columns} | {label: i % len(names), "idx": i} | more for i in range(24)]
    classes = datasets.ClassLabel(names=list(names))
    texts = {c: datasets.Value("string") for c in (*columns, *more)}
    return table(at, rows, datasets.Features({**texts, label: classes, "idx": datasets.Value("int64")}))


def similarities(at: Path) -> dict[str, Any]:
    rows = [{"sentence1": WORDS[i % 4], "sentence2": WORDS[i % 3], "label": i % 6 * 0.8, "idx": i} for i in range(24)]
    texts = {c: datasets.Value("string") for c in ("sentence1", "sentence2")}
    numbers = {"label": datasets.Value("float32"), "idx": datasets.Value("int32")}
    return table(at, rows, datasets.Features(texts | numbers))


def prepared(at: Path, name: str, rows: list[dict[str, Any]] | datasets.Dataset) -> dict[str, Any]:
    """What the script makes of ``rows``, which are of the form that their source has; its part ``at.name``."""
    at.mkdir(parents=True, exist_ok=True)
    parts = recipe_data.SOURCES[name][1](
        rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows), name
    )
    parts[at.name].to_json(at / "rows.jsonl")
    return {"path": "json", "data_files": str(at / "rows.jsonl")}


def speeches(at: Path) -> dict[str, Any]:
    lines = [f"{who}:\n{WORDS[i % 4]}" for i in range(12) for who in ("ROMEO", "JULIET", "First Citizen")]
    return prepared(at, "personas", [{"text": line} for line in ["ACT I", *lines, "NURSE:\nalpha"]])


def alpaca(at: Path, **more: str) -> dict[str, Any]:
    return table(at, [{"instruction": WORDS[i % 4], "output": WORDS[3 - i % 4]} | more for i in range(12)])


def questions(benchmark: str, folder: str, train: str, test: str) -> Callable[[Path], dict[str, Any]]:
    """What the script makes of the task ``at.name`` of a benchmark of pictures, unpacked as its source says."""

    def make(at: Path) -> dict[str, Any]:
        task = next(task for task in recipe_data.BENCHMARKS[benchmark] if task.lower() == at.name)
        texts, place = at / folder / task, at / ("datasets" if folder else task) / "images"
        for there in (texts, place):
            there.mkdir(parents=True, exist_ok=True)
        named = f"./images/{task}.png" if folder else f"{task}.png"
        Image.new("RGB", (9, 8)).save(place / f"{task}.png")
        turns = [{"from": "human", "value": "<image>\nalpha beta"}, {"from": "gpt", "value": "win"}]
        (texts / train).write_text(
            json.dumps([{"id": str(i), "image": named, "conversations": turns} for i in range(8)])
        )
        asked = {"image": named, "text": "alpha", "answer": "win"}
        (texts / test).write_text(json.dumps([{"question_id": i} | asked for i in range(3)]))
        recipe_data.pictured(task, at, at / "made")
        return {"data_files": {part: str(at / "made" / f"{task.lower()}.{part}.jsonl") for part in ("train", "test")}}

    return make


def classified(at: Path) -> dict[str, Any]:
    """What the script makes of the task ``at.name`` of O-LoRA's benchmark, which has a folder for each."""
    for place, _ in recipe_data.CLASSIFIED.values():
        folder = at / place
        folder.mkdir(parents=True)
        (folder / "labels.json").write_text('["glad", "sad"]')
        for part, each in (("train", 8), ("test", 4)):
            rows = [{"label": ("glad", "sad")[i % 2], "sentence": f"Title: {WORDS[i % 4]}\n"} for i in range(each)]
            (folder / f"{part}.json").write_text(json.dumps(rows))
    recipe_data.classified(at, at / "made")
    return {"data_files": {part: str(at / "made" / f"{at.name}.{part}.jsonl") for part in ("train", "test")}}


def poses(at: Path) -> dict[str, Any]:
    """What the script makes of an action of Human3.6M, of whose pictures every 64th is taken."""
    noise, folder, frames = np.random.default_rng(0), "s_01_act_02_subact_01_ca_01", range(0, 64 * 6, 32)
    (at / "images" / folder).mkdir(parents=True)
    (at / "annotations").mkdir()
    for n in frames:
        Image.new("RGB", (12, 10), (n % 255, 0, 0)).save(at / "images" / folder / f"{folder}_{n + 1:06}.jpg")
    where = {
        "action_name": at.name.title(),
        "action_idx": 2,
        "subaction_idx": 1,
        "cam_idx": 1,
        "width": 12,
        "height": 10,
    }
    for subject in (1, 5, 6, 7, 8, 9, 11):
        pictures = [
            where | {"id": n, "file_name": f"{folder}/{folder}_{n + 1:06}.jpg", "subject": subject, "frame_idx": n}
            for n in frames
        ]
        boxes = [{"id": n, "image_id": n, "keypoints_vis": [True] * 17, "bbox": [2.0, -1.0, 4.0, 8.0]} for n in frames]
        camera = {"R": [[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]], "t": [1.0, 2, 3], "f": [1.0, 1], "c": [6.0, 5]}
        joints = {"2": {"1": {str(n): (300 * noise.normal(size=(17, 3))).tolist() for n in frames}}}
        told = {"data": {"images": pictures, "annotations": boxes}, "camera": {"1": camera}, "joint_3d": joints}
        for kind, content in told.items():
            (at / "annotations" / f"Human36M_subject{subject}_{kind}.json").write_text(json.dumps(content))
    recipe_data.posed(at, at / "made")
    return {"data_files": {part: str(at / "made" / f"{at.name}.{part}.parquet") for part in ("train", "test")}}


HEADER = (
    "Date,USD,JPY,BGN,CYP,CZK,DKK,EEK,GBP,HUF,LTL,LVL,MTL,PLN,ROL,RON,SEK,SIT,SKK,CHF,ISK,NOK,HRK,RUB,TRL,TRY,AUD,BRL,"
    "CAD,CNY,HKD,IDR,ILS,INR,KRW,MXN,MYR,NZD,PHP,SGD,THB,ZAR"
)


def rates(at: Path) -> dict[str, Any]:
    """What the script makes of a period of the European Central Bank's file, whose lines end with a comma."""
    at.mkdir(parents=True)
    known, noise, lines = HEADER.split(","), np.random.default_rng(0), [f"{HEADER},"]
    for year in range(2024, 1998, -1):
        for day in range(28, 22, -1):
            values = ["N/A" if name == "CYP" else f"{1 + noise.random():.4f}" for name in known[1:]]
            lines += [",".join([f"{year}-{month:02}-{day:02}", *values, ""]) for month in (10, 3)]
    (at / "eurofxref-hist.csv").write_text("\n".join(lines))
    recipe_data.rates(at, at / "made")
    return {"data_files": str(at / "made" / f"{at.name}.csv")}


def dialogues(at: Path) -> dict[str, Any]:
    turns = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "glad win"}]
    return table(at, [{"prompt": "alpha", "prompt_id": str(i), "messages": turns} for i in range(12)])


DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "cifar": lambda at: table_of_pictures(at, "img", "fine_label", 20),
    "imagenet-r": lambda at: folder_of_pictures(at, 40),
    "domainnet": lambda at: folder_of_pictures(at, 138),
    "digits": lambda at: table_of_pictures(at, "image", "label", 10),
    "clothes": lambda at: table_of_pictures(at, "image", "label", 10),
    "cola": lambda at: sentences(at, "sentence"),
    "mrpc": lambda at: sentences(at, "sentence1", "sentence2"),
    "stsb": similarities,
    "rte": lambda at: sentences(at, "sentence1", "sentence2"),
    "qnli": lambda at: sentences(at, "question", "sentence"),
    "sst2": lambda at: sentences(at, "sentence"),
    "qqp": lambda at: sentences(at, "question1", "question2"),
    "mnli": lambda at: sentences(at, "premise", "hypothesis", names=("entailment", "neutral", "contradiction")),
    **dict.fromkeys(recipe_data.CLASSIFIED, classified),
    "summaries": lambda at: table(at, [{"prompt": WORDS[i % 4], "completion": WORDS[3 - i % 4]} for i in range(12)]),
    "translation": lambda at: prepared(
        at, "translation", [{"id": str(i), "translation": {"en": WORDS[i % 4], "fr": "glad"}} for i in range(12)]
    ),
    "answers": lambda at: prepared(
        at,
        "answers",
        [
            {"id": str(i), "title": "a", "context": WORDS[i % 4], "question": "delta"}
            | {"answers": {"text": ["beta", "b"], "answer_start": [1, 1]}}
            for i in range(12)
        ],
    ),
    "persona-1": speeches,
    "persona-2": speeches,
    "persona-3": speeches,
    "reasoning": lambda at: alpaca(at, source="data/CoT/gsm_train.json"),
    "code": lambda at: alpaca(at, input="", prompt="gamma"),
    "dialogue": dialogues,
    "guard": lambda at: table(at, [{"text": WORDS[i % 4]} for i in range(12)]),
    **{task.name: poses for task in load(FOLDER / "poses.yaml").tasks},
    **{task.name: rates for task in load(FOLDER / "regimes.yaml").tasks},
    **{task.name: painted for task in load(FOLDER / "styles.yaml").tasks},
}


OF_PICTURES = {
    task.lower(): make
    for benchmark, make in (
        ("ucit", questions("ucit", "instructions", "train_4w.json", "test_3000.json")),
        ("mllm-dcl", questions("mllm-dcl", "", "train.json", "test.json")),
    )
    for task in recipe_data.BENCHMARKS[benchmark]
}
