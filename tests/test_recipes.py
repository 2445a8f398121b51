"""Recipes are sound as they stand, fit their models, and run on a few rows in the form that their source has."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pytest
import transformers

from painting import StableDiffusion
from recipe_rows import DATA, FOLDER, OF_PICTURES, poses, rates, recipe_data, written
from retain import cli
from retain.commands.outlines import outline
from retain.config import RunConfig, load
from retain.run import run
from retain.sections import ModelConfig
from runs import quiet

RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
ORDERS = [name for name in RECIPES if name.startswith("llm-order")]
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
MOST = 3  # tasks of a stream that have rows of one form
# Two maps of 16 layers, seven of 32, two of the attention of 24 and 24, which have it twice, four of two attentions of
# ten blocks; else two of 12.
SITES = {"ibm-granite": 12, "meta-llama": 32, "HuggingFaceTB": 224, "llava-hf": 14, "google-t5": 144}
SITES |= {"stable-diffusion-v1-5": 80}


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


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs", "in_process")
@pytest.mark.parametrize(
    "name", sorted({*RECIPES} - {*ORDERS[1:], "imagenet-a.yaml", "ucit.yaml"})
)  # as one that is there
def test_a_recipe_runs_on_rows_of_its_sources_form(
    name: str, bert: str, vit: str, llama: str, t5: str, llava: str, patchtst: str, painter: str, tmp_path: Path
) -> None:
    config = load(FOLDER / name)
    kinds = {"text": bert, "image": vit, "causal-lm": llama, "seq2seq-lm": t5, "image-text-to-text": llava}
    kinds |= {"time-series": patchtst, "text-to-image": painter}
    folder = llama if name in ORDERS else kinds[config.model.kind]
    results = run(tiny(config, folder, tmp_path), quiet())
    assert len(results["tasks"]) >= 2 and (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    assert ("guard" in results) is (config.guard is not None)
