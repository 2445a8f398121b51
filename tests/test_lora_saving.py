"""What ``save_pretrained`` writes at any time, who can read it, and how training resumes from it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import Trainer, TrainingArguments

import models
from adapters import CASES, Case, changes, close, outputs, twin, with_past
from retain.lora import load_adapter, sites
from test_lora import Doubled

pytestmark = pytest.mark.versions

READER = """
import json, sys
from pathlib import Path

import torch, transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    kind = getattr(transformers, (folder / "kind").read_text())
    base = kind.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        logits = model(**load_file(folder / "batch.safetensors")).logits
    save_file({"logits": logits}, folder / "logits.safetensors")
assert "retain" not in sys.modules
"""


def second_adapter(case: Case) -> PeftModel:
    """Saved while another adapter of another scale is active; the default adapter's file must not mind."""
    model = with_past(case.model())
    config = copy.deepcopy(model.peft_config["default"])
    config.lora_alpha = 20
    model.add_adapter("second", config)
    return model


def parametrised(case: Case) -> PeftModel:
    model = with_past(case.model())
    for site in sites(model).values():
        parametrize.register_parametrization(site.layer.lora_B["default"], "weight", Doubled())
    return model


def merged(case: Case) -> PeftModel:
    model = with_past(case.model())
    model.merge_adapter()
    return model


def odd(case: Case) -> PeftModel:
    """An initialisation that only even ranks have, and a past that makes the rank odd."""
    return with_past(case.model(init_lora_weights="orthogonal"), rank=3)


def trained_head(case: Case) -> PeftModel:
    model = with_past(case.model(modules_to_save=["classifier", "pooler"]))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1
    return model


SAVED: dict[str, tuple[str, Callable[[Case], PeftModel]]] = {
    **{name: (name, lambda case: with_past(case.model(), folds=2)) for name in CASES},
    "no past": ("bert", lambda case: case.model()),
    "capped": ("rslora", lambda case: with_past(case.model(), folds=3, rank=5)),
    "head": ("patterns", trained_head),
    "second": ("bert", second_adapter),
    "parametrised": ("bert", parametrised),
    "merged": ("gpt2", merged),
    "odd": ("bert", odd),
}


@pytest.mark.slow
def test_a_clean_process_reads_what_was_saved(tmp_path: Path) -> None:
    """Its logits are those here, though it never heard of this package; all in one process, which takes its time."""
    here = {}
    for name, (of, build) in SAVED.items():
        case, folder = CASES[of], tmp_path / name
        model = build(case)
        sites(model)
        model.save_pretrained(folder)
        bare = case.bare()
        bare.save_pretrained(folder / "base")
        (folder / "kind").write_text(type(bare).__name__)
        inputs = {k: v for k, v in case.batch.items() if k != "labels"}
        save_file(inputs, folder / "batch.safetensors")
        here[name] = outputs(model, case.batch)
    command = [sys.executable, "-c", READER, *(str(tmp_path / name) for name in SAVED)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=200)
    for name, logits in here.items():
        there = load_file(tmp_path / name / "logits.safetensors")["logits"]
        torch.testing.assert_close(there, logits, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_files_are_stock_lora(tmp_path: Path) -> None:
    parametrised(CASES["patterns"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    factors = {k for k in tensors if "lora_" in k}
    assert all(k.endswith(("lora_A.weight", "lora_B.weight")) for k in factors)
    assert {k.split(".")[-2] for k in tensors.keys() - factors} == {"classifier"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 8
    assert {tensors[k].shape[0] for k in factors if "A" in k.split(".")[-2]} == {4, 8, 12}


def test_without_a_past_the_configuration_is_the_user_s(tmp_path: Path) -> None:
    model = CASES["bert"].model()
    model.save_pretrained(tmp_path / "stock")
    sites(model)
    model.save_pretrained(tmp_path / "ours")
    stock, ours = (json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("stock", "ours"))
    assert ours == {**stock, "target_modules": ours["target_modules"]}
    assert set(ours["target_modules"]) == set(stock["target_modules"])


class Nested(nn.Module):
    """A module whose name ends like another's: ``inner.fc`` and ``fc``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = nn.ModuleDict({"fc": nn.Linear(4, 4)}), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.inner["fc"](x)))


def test_names_that_end_alike_keep_their_own_ranks(tmp_path: Path) -> None:
    lora: dict[str, Any] = {"r": 2, "target_modules": ["fc"], "rank_pattern": {"^fc": 1}}
    model = with_past(models.filled(models.adapted(models.seeded(Nested), **lora)))
    model.save_pretrained(tmp_path)
    x = torch.randn(3, 4)
    close(outputs(load_adapter(models.seeded(Nested), tmp_path), (x,)), outputs(model, (x,)))


@pytest.mark.parametrize("active", ["default", "second"])
def test_every_adapter_s_file_has_the_past(active: str, tmp_path: Path) -> None:
    case = CASES["bert"]
    model = models.filled(second_adapter(case), seed=40)
    model.set_adapter(active)
    model.save_pretrained(tmp_path)
    for adapter, folder in {"default": tmp_path, "second": tmp_path / "second"}.items():
        model.set_adapter(adapter)
        close(outputs(load_adapter(case.bare(), folder), case.batch), outputs(model, case.batch))
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert not (tmp_path / "one" / "adapter_config.json").exists()


def test_factors_in_a_given_state_are_the_ones_saved(tmp_path: Path) -> None:
    case = CASES["bert"]
    model = with_past(case.model())
    state = {k: 2 * v if "lora_B" in k else v for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    past, both = changes(model, present=False), changes(model)
    doubled = {name: past[name] + 2 * (both[name] - past[name]) for name in both}
    close(outputs(load_adapter(case.bare(), tmp_path), case.batch), outputs(twin(case, doubled), case.batch))


@pytest.mark.parametrize("fails", [False, True])
def test_saving_leaves_the_model_as_it_was(fails: bool, tmp_path: Path) -> None:
    case = CASES["rslora"]
    model = with_past(case.model())
    config, before, logits = model.peft_config["default"], copy.deepcopy(model.peft_config), outputs(model, case.batch)
    target = tmp_path / "taken"
    if fails:
        target.write_text("a file")
        with pytest.raises(ValueError, match="should be a directory"):
            model.save_pretrained(target)
    else:
        model.save_pretrained(target, safe_serialization=False)
        assert (target / "adapter_model.bin").exists()
    assert model.peft_config["default"] is config
    assert model.peft_config == before
    assert torch.equal(outputs(model, case.batch), logits)


def test_a_native_state_brings_back_the_present_and_leaves_the_past() -> None:
    case = CASES["bert"]
    model = with_past(case.model())
    state, before = copy.deepcopy(model.state_dict()), outputs(model, case.batch)
    models.filled(model, seed=50)
    assert not torch.allclose(outputs(model, case.batch), before, atol=1e-3)
    assert model.load_state_dict(state) == ([], [])
    close(outputs(model, case.batch), before, 0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "patterns", "rslora"])
def test_a_baked_adapter_loads_into_a_wrapped_model_as_present_and_past(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    saved = with_past(case.model(), folds=2)
    saved.save_pretrained(tmp_path)
    for model in (case.model(), with_past(case.model(), folds=3)):
        here = sites(model)
        result = model.load_adapter(tmp_path, "default", is_trainable=True)
        assert not result.unexpected_keys and not result.missing_keys
        for there, site in zip(sites(saved).values(), here.values(), strict=True):
            assert torch.equal(site.A, there.A) and torch.equal(site.B, there.B)
            assert all(torch.equal(a, b) for a, b in zip(site.past, there.past, strict=True))
        close(outputs(model, case.batch), outputs(saved, case.batch), 0)
        assert all(s.A.requires_grad and s.B.requires_grad for s in here.values())


def test_training_resumes_with_the_past(tmp_path: Path) -> None:
    case = CASES["bert"]
    rows = [{k: v[0] for k, v in batch.items()} for batch in models.texts(sizes=[1] * 24).train]

    def trainer(model: PeftModel) -> Trainer:
        settings = dict(per_device_train_batch_size=4, max_steps=6, learning_rate=1e-2, save_steps=3, seed=3)
        quiet = dict(use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no")
        return Trainer(model, TrainingArguments(str(tmp_path), **settings, **quiet), train_dataset=rows)

    straight = with_past(case.model(lora_dropout=0.1), folds=2)
    past = [t.clone() for s in sites(straight).values() for t in s.past]
    trainer(straight).train()
    resumed = case.adapted(lora_dropout=0.1)
    sites(resumed)
    trainer(resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(
        torch.equal(a, b) for a, b in zip(past, (t for s in sites(resumed).values() for t in s.past), strict=True)
    )
    for (name, a), (_, b) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    stock = load_adapter(case.bare(), tmp_path / "checkpoint-6")
    close(outputs(stock, case.batch), outputs(straight, case.batch))
    assert isinstance(stock, peft.PeftModelForSequenceClassification)
