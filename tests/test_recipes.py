"""Recipes are sound as they stand, fit their models, and run on a few rows in the form that their source has."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from PIL import Image

from retain import cli
from retain.commands.outlines import outline
from retain.config import RunConfig, load
from retain.run import run
from retain.sections import ModelConfig
from runs import quiet

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
ORDERS = [name for name in RECIPES if name.startswith("llm-order")]
MODELS: dict[str, transformers.PretrainedConfig] = {
    "google/vit-base-patch16-224-in21k": transformers.ViTConfig(),
    "facebook/dinov2-small": transformers.Dinov2Config(hidden_size=384, num_attention_heads=6),
    "FacebookAI/roberta-base": transformers.RobertaConfig(),
    "meta-llama/Llama-3.2-1B-Instruct": transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
    ),
    "google-t5/t5-large": transformers.T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16),
    "HuggingFaceTB/SmolLM2-360M-Instruct": transformers.LlamaConfig(
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5
    ),
    "llava-hf/llava-1.5-7b-hf": transformers.LlavaConfig(  # of two layers each, of its widths
        text_config=transformers.LlamaConfig(num_hidden_layers=2),
        vision_config=transformers.CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=16, hidden_size=1024),
    ),
}
# Two maps of 16 layers, seven of 32, two of the attention of 24 and 24, which have it twice; else two of 12.
SITES = {"meta-llama": 32, "HuggingFaceTB": 224, "llava-hf": 14, "google-t5": 144}
SPEC = importlib.util.spec_from_file_location("recipe_data", FOLDER.parent / "scripts" / "recipe_data.py")
assert SPEC and SPEC.loader
recipe_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe_data)
MOST = 3  # tasks of a stream that have rows of one form
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


def table(at: Path, rows: list[dict[str, Any]], features: datasets.Features | None = None) -> dict[str, Any]:
    at.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(at / "rows.parquet")
    return {"path": "parquet", "data_files": str(at / "rows.parquet")}


def sentences(at: Path, *columns: str, label: str = "label", **more: str) -> dict[str, Any]:
    rows = [{c: WORDS[i % 4] for c in columns} | {label: i % 2, "idx": i} | more for i in range(24)]
    classes = datasets.ClassLabel(names=["no", "yes"])
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


def questions(task: str, folder: str, train: str, test: str) -> Callable[[Path], dict[str, Any]]:
    """What the script makes of a task of a benchmark of pictures, unpacked as its source says."""

    def make(at: Path) -> dict[str, Any]:
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
    "mnli": lambda at: sentences(at, "premise", "hypothesis"),
    "dbpedia": lambda at: sentences(at, "title", "content"),
    "amazon": lambda at: sentences(at, "title", "content"),
    "yahoo": lambda at: sentences(at, "question_title", "question_content", label="topic", best_answer="gamma"),
    "ag": lambda at: sentences(at, "text"),
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
}


def written(at: Path) -> dict[str, Any]:
    """What a model that writes is asked of rows that others classify."""
    return prepared(at, at.name, datasets.Dataset.from_parquet(DATA[at.name](at / "source")["data_files"]))


OF_PICTURES = {
    task.lower(): questions(task, *form)
    for benchmark, form in (
        ("ucit", ("instructions", "train_4w.json", "test_3000.json")),
        ("mllm-dcl", ("", "train.json", "test.json")),
    )
    for task in recipe_data.BENCHMARKS[benchmark]
}


def tiny(config: RunConfig, model: str, tmp_path: Path) -> RunConfig:
    """``config`` on a tiny model, and rows of the same form in files; one step a task."""
    kept = ("path", "data_files", "data_dir")
    data = DATA | (OF_PICTURES if config.model.kind == "image-text-to-text" else {})
    data |= dict.fromkeys(("dbpedia", "amazon", "yahoo", "ag"), written) if config.model.kind == "seq2seq-lm" else {}

    def local(entry: Any) -> Any:
        off = dict.fromkeys((*kept, "config", "train", "test", "validation")) | {"path": entry.path}
        more = {"training": {}, "max_train": None, "max_test": None, "max_length": None}
        more |= {"max_new_tokens": 4} if getattr(entry, "metrics", None) else {}
        return entry.model_copy(update=off | more | data[entry.name](tmp_path / entry.name))

    alike = [[entry.name for entry in config.tasks if data[entry.name] is make] for make in data.values()]
    few = [entry for entry in config.tasks if any(entry.name in names[:MOST] for names in alike)]
    training = {"max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "use_cpu": True}
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": model, "dtype": None if config.model.dtype is None else "float32"}
            ),
            "tasks": [local(entry) for entry in few],
            "guard": local(config.guard) if config.guard else None,
            "training": training,
            "output": str(tmp_path / "out"),
        }
    )


def test_a_dry_run_checks_the_file_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["retain", "run", str(FOLDER / "cifar100.yaml"), "--dry-run"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    assert (
        "cifar100.yaml is sound: ewc-lora on google/vit-base-patch16-224-in21k, tasks cifar" in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_model_that_it_names(name: str) -> None:
    config = load(FOLDER / name)
    assert adapted(config.model.model_dump_json(), json.dumps(config.lora)) == SITES.get(
        config.model.path.split("/")[0], 24
    )


@cache
def adapted(model: str, lora: str) -> int:
    """How many layers a LoRA adapts of a model, which several recipes share."""
    named = ModelConfig.model_validate_json(model)
    with TemporaryDirectory() as folder:
        MODELS[named.path].save_pretrained(folder)
        found = outline(named.model_copy(update={"path": folder}), json.loads(lora), 10, 32)
    return sum(found.shapes.values())


def test_the_orders_of_a_stream_differ_in_order_alone() -> None:
    first, *others = (load(FOLDER / name) for name in ORDERS)
    same = {"tasks": first.tasks, "output": first.output}
    assert [one.model_copy(update=same) for one in others] == [first] * 2
    tasks = [[task.name for task in one.tasks] for one in (first, *others)]
    assert len({*map(tuple, tasks)}) == 3 and len({tuple(sorted(names)) for names in tasks}) == 1
    assert all(task in first.tasks for one in others for task in one.tasks)


def test_answers_follow_what_was_said_before() -> None:
    rows = datasets.Dataset.from_list([{"text": t} for t in ("A:\nHello.\nYou?", "B:\nI.", "Exeunt", "A:\nWell.")])
    made = recipe_data.personas(rows, "personas")
    said = [[(m["role"], m["content"]) for m in row["messages"]] for part in made.values() for row in part]
    assert said == [
        [("user", "Hello.\nYou?"), ("assistant", "I.")],
        [("user", "I."), ("assistant", "Well.")],
    ]


def test_questions_about_pictures_are_made_of_what_the_benchmark_has(tmp_path: Path) -> None:
    files = OF_PICTURES["clevr"](tmp_path)["data_files"]
    train, test = (json.loads(Path(files[part]).read_text().splitlines()[0]) for part in ("train", "test"))
    assert [m["content"] for m in train["messages"]] == ["alpha beta", "win"]
    assert [m["content"] for m in test["messages"]] == ["alpha", "win"] and Path(test["image"]).exists()
    with pytest.raises(SystemExit, match="has no IconQA"):
        recipe_data.pictured("IconQA", tmp_path, tmp_path / "made")


def test_poses_are_as_the_camera_sees_them_from_the_pelvis(tmp_path: Path) -> None:
    files = poses(tmp_path / "directions")["data_files"]
    train, test = (datasets.Dataset.from_parquet(files[part]) for part in ("train", "test"))
    assert len(train) == 5 * 6 and len(test) == 2 * 6 and train.features["image"] == datasets.Image()
    joints = json.loads((tmp_path / "directions/annotations/Human36M_subject1_joint_3d.json").read_text())["2"]["1"][
        "64"
    ]
    pelvis, knee = joints[0], joints[2]
    right, down, away = (k - p for k, p in zip(knee, pelvis, strict=True))
    assert train[1]["pose"][2] == pytest.approx([down, -right, away], rel=1e-5) and train[1]["pose"][0] == [0, 0, 0]
    left, top, *_ = train[1]["image"].resize((8, 8)).getpixel((1, 4))  # the box is 8 by 8 from (0, -1)
    assert train[1]["image"].size == (224, 224) and left > 40 and top < 30
    with pytest.raises(SystemExit, match="has no annotations/Human36M_subject1_data.json"):
        recipe_data.posed(tmp_path, tmp_path / "made")


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs", "in_process")
@pytest.mark.parametrize(
    "name", sorted({*RECIPES} - {*ORDERS[1:], "imagenet-a.yaml", "ucit.yaml"})
)  # as one that is there
def test_a_recipe_runs_on_rows_of_its_sources_form(
    name: str, bert: str, vit: str, llama: str, t5: str, llava: str, tmp_path: Path
) -> None:
    config = load(FOLDER / name)
    kinds = {"text": bert, "image": vit, "causal-lm": llama, "seq2seq-lm": t5, "image-text-to-text": llava}
    folder = llama if name in ORDERS else kinds[config.model.kind]
    results = run(tiny(config, folder, tmp_path), quiet())
    assert len(results["tasks"]) >= 2 and (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    assert ("guard" in results) is (config.guard is not None)
