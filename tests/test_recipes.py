"""Recipes are sound as they stand, fit their models, and run on a few rows in the form that their source has."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pytest
import torch
import transformers

from painting import StableDiffusion
from recipe_rows import DATA, FOLDER, OF_PICTURES, classified, poses, rates, recipe_data
from retain import cli
from retain.commands.outlines import outline
from retain.config import ConfigError, RunConfig, load, make_method, training_arguments, training_of
from retain.hf import fit
from retain.methods import METHODS
from retain.run import run
from retain.sections import ModelConfig
from retain.workshop import Workshop, choose_trainable, prepare
from runs import quiet

RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
ORDERS = {of: [name for name in RECIPES if name.startswith(f"{of}-order")] for of in ("llm", "llm-t5")}
AS_ANOTHER = {"imagenet-a.yaml", *(name for names in ORDERS.values() for name in names[1:])}
MODELS: dict[str, Any] = {
    "google/vit-base-patch16-224-in21k": transformers.ViTConfig(),
    "facebook/dinov2-small": transformers.Dinov2Config(hidden_size=384, num_attention_heads=6),
    "ibm-granite/granite-timeseries-patchtst": transformers.PatchTSTConfig(
        context_length=512, prediction_length=96, patch_length=12, patch_stride=12, num_input_channels=7
    ),
    "FacebookAI/roberta-base": transformers.RobertaConfig(),
    "meta-llama/Llama-3.2-1B-Instruct": transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": StableDiffusion(),
    "google-t5/t5-large": transformers.T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16),
    "HuggingFaceTB/SmolLM2-360M-Instruct": transformers.LlamaConfig(
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5
    ),
    "llava-hf/llava-1.5-7b-hf": transformers.LlavaConfig(  # of two layers each, of its widths
        text_config=transformers.LlamaConfig(num_hidden_layers=2),
        vision_config=transformers.CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=16, hidden_size=1024),
    ),
}
EACH_KIND = ["glue.yaml", "cifar100.yaml", "poses.yaml", "personas.yaml", "llm-t5-order-1.yaml", "ucit.yaml"]
EACH_KIND += ["regimes.yaml", "styles.yaml"]
REFUSED = {
    ("glue.yaml", "joint"): "classes and numbers have no loss in common",
    ("styles.yaml", "replay"): "no state holds what noise is",
}
FEWER = {"dwd": ", probes: 4, rows: 4"}  # of what takes longest
MOST = 3  # tasks of a stream that have rows of one form
# Two maps of 16 layers, seven of 32, two of the attention of 24 and 24, which have it twice, four of two attentions of
# ten blocks; else two of 12.
SITES = {"ibm-granite": 12, "meta-llama": 32, "HuggingFaceTB": 224, "llava-hf": 14, "google-t5": 144}
SITES |= {"stable-diffusion-v1-5": 80}


def tiny(config: RunConfig, model: str, tmp_path: Path) -> RunConfig:
    """``config`` on a tiny model, and rows of the same form in files; one step a task."""
    kept = ("path", "data_files", "data_dir")
    data = DATA | (OF_PICTURES if config.model.kind == "image-text-to-text" else {})

    def local(entry: Any) -> Any:
        off = dict.fromkeys((*kept, "config")) | {"path": entry.path}
        more = {"training": {}, "max_train": max(16, entry.split_by_class or 0), "max_test": 4, "max_length": None}
        more |= {"max_new_tokens": 4} if getattr(entry, "metrics", None) else {}
        made = data[entry.name](tmp_path / entry.name)
        if entry.test:  # a split of its source's name
            made["data_files"] = dict.fromkeys((entry.train or "train", entry.test), made["data_files"])
        return entry.model_copy(update=off | more | made)

    alike = [[entry.name for entry in config.tasks if data[entry.name] is make] for make in data.values()]
    few = [entry for entry in config.tasks if any(entry.name in names[:MOST] for names in alike)]
    training = {"max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "use_cpu": True}
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": model, "dtype": config.model.dtype and "float32", "resolution": None}
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
    said = "is sound: ewc-lora on google/vit-base-patch16-224-in21k, tasks cifar; data and model were not opened"
    assert said in capsys.readouterr().out


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


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_of_every_task_can_begin(name: str, tmp_path: Path) -> None:
    config = load(FOLDER / name, ["training.use_cpu=true"])  # else Trainer refuses bf16 where there is no GPU
    for number, task in enumerate(config.tasks):
        arguments = training_arguments(config, number, task.name, tmp_path)
        told = training_of(config, task.name)
        assert {key: getattr(arguments, key) for key in told} == told


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_the_orders_of_a_stream_differ_in_order_alone(names: list[str]) -> None:
    first, *others = (load(FOLDER / name) for name in names)
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


def test_a_class_is_asked_for_in_the_prompt_of_the_benchmark(tmp_path: Path) -> None:
    files = classified(tmp_path / "ag")["data_files"]
    rows = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    assert len(rows) == 4 and rows[1]["completion"] == "sad"
    assert rows[1]["prompt"] == (
        "Task:TC\nDataset:agnews\nWhat is the topic of the following paragraph? Choose one from the option.\n"
        "Option: glad, sad \nTitle: gamma delta\n\nAnswer:"
    )
    with pytest.raises(SystemExit, match="has no TC/dbpedia/labels.json"):
        recipe_data.classified(tmp_path, tmp_path / "made")


def test_questions_about_pictures_are_made_of_what_the_benchmark_has(tmp_path: Path) -> None:
    files = OF_PICTURES["clevr"](tmp_path / "clevr")["data_files"]
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


def test_rates_are_in_order_of_time_and_of_one_period(tmp_path: Path) -> None:
    lines = Path(rates(tmp_path / "crisis")["data_files"]).read_text().splitlines()
    assert lines[0] == "date,USD,JPY,GBP,CHF,SEK,NOK,CAD,AUD" and all(line.count(",") == 8 for line in lines)
    days = [line.split(",")[0] for line in lines[1:]]
    assert days == sorted(days) and days[0] == "2007-10-23" and days[-1] == "2012-10-28"
    source = (tmp_path / "crisis/eurofxref-hist.csv").read_text().splitlines()
    by_name = dict(zip(source[0].split(","), next(x for x in source if x.startswith(days[0])).split(","), strict=True))
    assert lines[1].split(",")[1:] == [by_name[name] for name in recipe_data.CURRENCIES]
    with pytest.raises(SystemExit, match="has no eurofxref-hist.csv"):
        recipe_data.rates(tmp_path, tmp_path / "made")


@pytest.fixture
def folders(bert: str, vit: str, llama: str, t5: str, llava: str, patchtst: str, painter: str) -> dict[str, str]:
    """A tiny model of every kind."""
    kinds = {"text": bert, "image": vit, "causal-lm": llama, "seq2seq-lm": t5, "image-text-to-text": llava}
    return kinds | {"time-series": patchtst, "text-to-image": painter}


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs", "in_process")
@pytest.mark.parametrize("name", sorted({*RECIPES} - AS_ANOTHER))
def test_a_recipe_runs_on_rows_of_its_sources_form(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    config = load(FOLDER / name)
    results = run(tiny(config, folders[config.model.kind], tmp_path), quiet())
    assert len(results["tasks"]) >= 2 and (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    assert ("guard" in results) is (config.guard is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH_KIND)
def test_every_method_takes_a_step_on_a_recipe_of_every_kind(
    name: str, folders: dict[str, str], tmp_path: Path
) -> None:
    own = {called: [f"method={{name: {called}{FEWER.get(called, '')}}}"] for called in METHODS}
    for called in (called for recipe, called in REFUSED if recipe == name):
        with pytest.raises(ConfigError, match=REFUSED[name, called]):
            load(FOLDER / name, own.pop(called))
    recipe = load(FOLDER / name, own["sequential"])
    small = tiny(recipe, folders[recipe.model.kind], tmp_path)
    shop = prepare(small.model_copy(update={"tasks": small.tasks[:2], "lora": small.lora | {"r": 2}}))
    for called, override in own.items():
        config = shop.config.model_copy(update={"method": load(FOLDER / name, override).method})
        model = copy.deepcopy(shop.model)
        takes_a_step(replace(shop, config=config, model=model, method=make_method(config, model)), called)


def takes_a_step(shop: Workshop, called: str) -> None:
    """In each of two tasks, between which is a boundary."""
    for number, stage in enumerate(shop.stages()[1:]):
        choose_trainable(shop, stage.number)
        shop.method.begin_task(stage.task)
        named = dict(shop.model.named_parameters())
        before = {name: p.detach().clone() for name, p in named.items() if p.requires_grad}
        assert fit(shop.model, stage.task, shop.method, stage.arguments) == 1, called
        after = {name: p.detach() for name, p in shop.model.named_parameters() if name in before}
        assert all(p.isfinite().all() for p in after.values()), called
        assert any(not torch.equal(p, before[name]) for name, p in after.items()), called
        if not number:
            shop.method.end_task(stage.task)
