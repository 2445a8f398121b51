"""Models that learn to draw: rows, runs, adapters, plans and verdicts, on a tiny Stable Diffusion pipeline."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from rich.console import Console

from painting import SIDE, TOKENS, style
from retain import hf, scores
from retain.commands import costs
from retain.commands.check import Bound, check
from retain.commands.compare.measure import measure_in, measure_of
from retain.commands.export import export
from retain.commands.plan import plan
from retain.commands.table import print_scores
from retain.config import ConfigError, RunConfig, parse
from retain.continuing import restore
from retain.data import DataError, Stream, load_stream
from retain.hf import load_processor
from retain.pipelines import Encoders
from retain.report.page import page
from retain.report.read import read_run
from retain.run import run
from retain.task import evaluating
from retain.workshop import prepare
from runs import left_by, quiet
from test_run_crashes import stopped

pytestmark = pytest.mark.usefixtures("fast_runs", "in_process")
KIND = "text-to-image"
PROMPTS = {"lying": {"prompt": "lying"}, "standing": {"prompt": "standing"}}


def document(painter: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Two styles of eight pictures each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"path": "json", "test_fraction": 0.5}
    tasks = [{"name": name, "data_files": style(folder, name)} | files | more for name, more in PROMPTS.items()]
    training = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    fixed = {
        "model": {"path": painter, "kind": KIND},
        "lora": {"r": 2},
        "training": training | {"save_strategy": "steps", "save_steps": 2},
        "tasks": tasks,
        "output": str(folder / "out"),
    }
    return fixed | sections


def stream(painter: str, folder: Path, *entries: dict[str, Any], **model: Any) -> Stream:
    tasks = [{"name": f"t{i}", "path": "json"} | entry for i, entry in enumerate(entries)]
    config = parse(document(painter, folder / "other", tasks=tasks, model={"path": painter, "kind": KIND} | model))
    return load_stream(config, load_processor(painter, KIND))


def test_rows_are_what_a_pipeline_makes_of_them(painter: str, tmp_path: Path) -> None:
    captions = ["a red cat", "a dog"]
    file = style(tmp_path, "lying", caption=captions, kind=["new", "old"])
    entries = (
        {"data_files": file, "prompt": captions[1], "label": "kind", "classes": ["old"], "test_fraction": 0.25},
        {"data_files": {"train": file, "test": file}, "text": "caption"},
    )
    said, captioned = stream(painter, tmp_path, *entries).tasks
    assert (len(said.train), len(said.test), len(captioned.train)) == (3, 1, 8)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(painter, safety_checker=None)
    picture = Image.open(tmp_path / "lying" / "1.png")
    pixels = pipe.image_processor.preprocess(ImageOps.fit(picture, (SIDE, SIDE)))
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        words = pipe.encode_prompt(captions[1], "cpu", 1, False)[0]
    batch = captioned.collate([captioned.train[i] for i in (0, 1)])
    assert batch["row"].tolist() == [0, 1] and batch["sample"].shape == (2, 4, 4, 4)
    torch.testing.assert_close(batch["sample"][1], latents[0])
    torch.testing.assert_close(batch["encoder_hidden_states"][1], words[0])
    assert not torch.equal(batch["encoder_hidden_states"][0], words[0]) and words.shape == (1, TOKENS, 16)
    torch.testing.assert_close(said.collate([said.test[0]])["encoder_hidden_states"], words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoders, "latents", None)  # rows are made once
        again = stream(painter, tmp_path, *entries).tasks[1]
        assert torch.equal(again.train[1]["sample"], captioned.train[1]["sample"])
        with pytest.raises(TypeError):
            stream(painter, tmp_path, *entries, resolution=2 * SIDE)


@pytest.fixture(scope="module")
def whole(painter: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "bootstrap", partial(scores.bootstrap, replicates=20))
        config = parse(document(painter, tmp_path_factory.mktemp("styles")))
        run(config, quiet())
    return config


def test_styles_are_learned_and_scored_by_their_loss(whole: RunConfig) -> None:
    results = json.loads(Path(whole.output, "results.json").read_text())
    found = results["nats_per_example"]
    assert found["better"] == "lower" and found["scores"]["gained"] > 0
    assert "accuracy" not in results and "perplexity" not in found
    assert np.allclose(found["matrix"], results["loss"]["matrix"], atol=1e-4)
    console = Console(file=(told := io.StringIO()), width=100)
    print_scores(console, results)
    assert "test rows, nats an example, lower is better" in told.getvalue()
    assert "Nats an example" in page([read_run(Path(whole.output))], 5)
    assert measure_of(KIND, []) is measure_in("nats an example")


@pytest.mark.slow
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(whole: RunConfig, tmp_path: Path) -> None:
    broken = whole.model_copy(update={"output": str(tmp_path / "broken")})
    stopped(broken, "_save_checkpoint", 3, owner=hf.Saving)
    assert len(list(Path(broken.output).glob("tasks/01*/trainer/checkpoint-2"))) == 1
    run(broken, quiet())
    ours, theirs = left_by(broken.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml") and ours == theirs


@pytest.mark.slow
def test_the_adapter_is_a_stock_one_of_the_unet(whole: RunConfig, painter: str, tmp_path: Path) -> None:
    console = Console(file=(told := io.StringIO()), width=100)
    assert export(Path(whole.output), tmp_path / "export", console=console) < 1e-5
    assert "vLLM serves no models that draw" in told.getvalue()
    shop = prepare(whole)
    restore(shop, shop.stages()[-1].folder)
    unet = diffusers.UNet2DConditionModel.from_pretrained(painter, subfolder="unet")
    task, folder = shop.stream.tasks[1], Path(whole.output, "adapter")
    stock = PeftModel.from_pretrained(unet, str(folder)).eval()
    batch = task.collate([task.test[i] for i in range(3)])
    with evaluating(shop.model), torch.no_grad():
        ours, theirs = (task.forward(model, batch)[0] for model in (shop.model, stock))
        assert torch.equal(ours, theirs)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(painter, safety_checker=None)
    how = {"num_inference_steps": 2, "height": SIDE, "width": SIDE, "output_type": "np"}
    pipe.set_progress_bar_config(disable=True)
    before = pipe("standing", generator=torch.Generator().manual_seed(0), **how).images
    pipe.unet = PeftModel.from_pretrained(pipe.unet, str(folder))
    after = pipe("standing", generator=torch.Generator().manual_seed(0), **how).images
    assert before.shape == (1, SIDE, SIDE, 3) and (before != after).any()
    readme = (folder / "README.md").read_text()
    assert f'UNet2DConditionModel.from_pretrained("{painter}", subfolder=' in readme and "pipe.unet = model" in readme


@pytest.mark.slow
def test_it_is_planned_and_checked_as_any_run(whole: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PATIENCE", 0)
    monkeypatch.setattr(costs, "SAMPLE", {"cpu": 48})
    made = plan(whole, quiet())
    assert [task.rows for task in made.tasks] == [4, 4] and made.found.example == f"{SIDE} x {SIDE} pixels"
    assert made.found.bytes_of("adapter") and made.found.flops > 0
    console = Console(file=(told := io.StringIO()), width=200)
    assert check(Path(whole.output), Bound(1000.0, "nats"), console) and "lying: " in told.getvalue()
    with pytest.raises(ValueError, match="no accuracy: give --max-forgetting as a rise of their loss, such as 2nats"):
        check(Path(whole.output), None, console)


@pytest.mark.slow
def test_halves_are_trained_in_as_wholes_are(painter: str, tmp_path: Path) -> None:
    model = {"path": painter, "kind": KIND, "dtype": "bfloat16"}
    more = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": True,
    }
    results = run(parse(document(painter, tmp_path, model=model, training=more)), quiet())
    assert results["nats_per_example"]["scores"]["final"] > 0
    assert "torch_dtype=torch.bfloat16" in (tmp_path / "out" / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"heads": {"learning_rate": 0.1}}, "heads: a section is not allowed .*'text-to-image', which has no heads"),
        ({"scenario": "class"}, "scenario: 'class' is not allowed with model.kind 'text-to-image'"),
        ({"language": {"packing": True}}, "language: .*'text-to-image', which learns to draw pictures"),
        ({"guard": {"path": "p"}}, "guard: a section is not allowed with model.kind 'text-to-image'; with causal-lm"),
        ({"method": {"name": "replay"}}, "method.name: 'replay' is not allowed with model.kind 'text-to-image'"),
        ({"method": {"strength": {"budget": "2%"}}}, "a loss has no share to lose; expected nats"),
        ({"model": {"path": "m", "kind": KIND, "quantization": "4bit"}}, "model.quantization: '4bit' is not allowed"),
        ({"model": {"path": "m", "resolution": 64}}, "model.resolution: 64 is not allowed with model.kind 'text'"),
        ({"tasks": [{"name": "a", "path": "p", "metric": "pearson"}]}, "tasks.0.metric: .*, which draws pictures"),
        ({"tasks": [{"name": "a", "path": "p", "max_length": 7}]}, "tasks.0.max_length: .*, which draws pictures"),
        ({"tasks": [{"name": "a", "path": "p", "prompt": "x", "text": "y"}]}, "tasks.0.prompt: 'x' beside text 'y'"),
        ({"tasks": [{"name": "a", "path": "p", "label": "y"}]}, "tasks.0.label: 'y' without `classes`"),
    ],
)
def test_keys_that_mean_nothing_there(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(document("m", tmp_path, **sections))


def test_its_adapter_is_on_attention_unless_told_otherwise(tmp_path: Path) -> None:
    given = document("m", tmp_path)
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    assert parse(given).lora == {"r": 2, "target_modules": attention}
    assert parse({key: value for key, value in given.items() if key != "lora"}).lora["target_modules"] == attention
    assert parse(given | {"lora": {"target_modules": ["conv1"]}}).lora == {"r": 8, "target_modules": ["conv1"]}


def test_rows_and_sizes_that_it_cannot_take(painter: str, tmp_path: Path) -> None:
    file = style(tmp_path, "lying", caption=["a", None])
    for entry, message in (
        ({}, "no column 'text' of texts; name one with `text`, or say what all pictures are with `prompt`"),
        ({"text": "caption"}, "column 'caption' holds no text in"),
        ({"prompt": "x", "image": "caption"}, "row 1: it has no picture|row 0: its picture cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            stream(painter, tmp_path, {"data_files": file} | entry)
    with pytest.raises(DataError, match="model.resolution 9 is no multiple of 2"):
        stream(painter, tmp_path, {"data_files": file, "prompt": "x"}, resolution=9)


def test_pipelines_of_another_form_are_refused(painter: str, llama: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text-to-image model at"):
        load_processor(llama, KIND)
    other = shutil.copytree(painter, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "Flux"]}))
    with pytest.raises(ValueError, match="whose unet is Flux: known is the form of Stable Diffusion 1 and 2"):
        load_processor(str(other), KIND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retain.pipelines.find_spec", lambda _: None)
        with pytest.raises(ValueError, match=r"needs diffusers: pip install 'retain\[diffusion\]'"):
            load_processor(painter, KIND)
