"""Bases in 4 and 8 bits of bitsandbytes: never written; learned beside as beside the weights that they stand for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from models import adapted, bare_llama, filled, fit, prompts, seeded
from retain import METHODS, export, learn, sites
from retain.commands.export import export as export_run
from retain.commands.plan import plan
from retain.config import ConfigError, parse
from retain.hf import load_model
from retain.lora import load_adapter
from retain.run import run
from retain.workshop import prepare
from runs import quiet
from streams import chat_tokenizer
from test_learn import sft, tokens
from test_run_language import document

LORA = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
SIZES = {"hidden_size": 64, "intermediate_size": 64}  # blocks of bitsandbytes hold 64 numbers
EXACT = {"ewc-lora": {"fisher": {"samples": None}}}


@pytest.fixture(autouse=True)
def without_its_remarks() -> Iterator[None]:
    """On a CPU bitsandbytes says at every product of 8 bits that it casts, and of what kernels it goes without."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="bitsandbytes")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("base"))
    bare_llama(**SIZES).save_pretrained(folder)
    return folder


def quantised(base: str, bits: int) -> Any:
    few = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=few, dtype=torch.float32)


def plain(model: Any) -> Any:
    """A model in full precision with the weights that a 4-bit ``model`` stands for."""
    twin = bare_llama(**SIZES)
    state = {n: p for n, p in model.state_dict().items() if n in twin.state_dict()}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            state[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    twin.load_state_dict(state)
    return twin


def stream(model: Any, name: str) -> Any:
    method = METHODS[name](adapted(model, **LORA), seed=0, **EXACT.get(name, {}))
    for number, task in enumerate("ab"):
        fit(method, prompts(task, seed=number), learning_rate=1e-3)
    return method


def kept(method: Any) -> dict[str, Tensor]:
    return {name: site.delta() for name, site in method.sites.items()} | method.state_dict()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in ("ewc-lora", "eblora", "share")])
def test_beside_four_bits_a_method_learns_what_it_learns_beside_their_values(name: str, base: str) -> None:
    few = quantised(base, 4)
    whole = plain(few)
    ours, theirs = kept(stream(few, name)), kept(stream(whole, name))
    deltas = [key for key in ours if key in dict(sites(adapted(bare_llama(**SIZES), **LORA)))]
    assert len(deltas) == 6 and all(theirs[key].any() for key in deltas)
    for key in deltas:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("bits", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_a_boundary_keeps_the_function_and_the_base(bits: int, base: str, tmp_path: Path) -> None:
    model = quantised(base, bits)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method = METHODS["ewc-lora"](filled(adapted(model, **LORA)), mode="merge", seed=0)
    task = prompts()
    shown = outputs(method.model, task)
    method.end_task(task)
    assert all(site.past[0].any() and not site.B.any() for site in method.sites.values())
    torch.testing.assert_close(outputs(method.model, task), shown, rtol=0, atol=1e-4)
    method.begin_task(task)
    export(method.model, tmp_path / "adapter")
    reloaded = load_adapter(quantised(base, bits), tmp_path / "adapter")
    torch.testing.assert_close(outputs(reloaded, task), shown, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=f"merged into a Linear{bits}bit.* is rounded.*load the base without"):
        method.model.merge_and_unload()
    after = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): p
        for name, p in method.model.named_parameters()
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@torch.no_grad()
def outputs(model: Any, task: Any) -> Tensor:
    model.eval()
    return torch.cat([model(**batch).logits.float().flatten() for batch in task.train])


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs", "in_process")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_learns_beside_few_bits_and_its_adapter_loads_beside_them(bits: int, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    bare_llama(vocab_size=len(tokenizer), initializer_range=0.1, **SIZES).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = {"path": str(tmp_path / "model"), "kind": "causal-lm", "dtype": "float32"}
    content = document(model["path"], tmp_path / "rows", model=model | {"quantization": f"{bits}bit"})
    content["tasks"], content["method"] = content["tasks"][:2], {"name": "ewc-lora", "mode": "merge"}
    config = parse(content)
    made = plan(config, quiet()).found
    few, many = bitsandbytes_of(prepare(config).model), made.bytes_of("base")
    assert made.base_bytes == pytest.approx(few, rel=0.05) and few < many / 2
    matrix = np.array(run(config, quiet())["nats_per_token"]["matrix"])
    assert matrix[1, 0] < matrix[0, 0] and np.isfinite(matrix).all()
    assert export_run(tmp_path / "rows" / "out", console=quiet()) < 1e-3
    assert "load_in_" in (tmp_path / "rows" / "out" / "adapter" / "README.md").read_text()


def bitsandbytes_of(model: Any) -> int:
    """Bytes of the base, with the numbers that its bits are to be multiplied by."""
    states = [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    return sum(p.nbytes for p in model.parameters() if not p.requires_grad) + sum(s.absmax.nbytes for s in states)


def test_few_bits_are_for_language_models_and_take_bitsandbytes(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="model.quantization: '4bit' is not allowed with model.kind 'text': few bits"):
        parse(document(base, tmp_path / "rows", model={"path": base, "quantization": "4bit"}))
    monkeypatch.setattr("retain.hf.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r"model.quantization '4bit' needs bitsandbytes: pip install 'retain\[quant"):
        load_model(base, "causal-lm", [], {}, quantization="4bit")


@pytest.mark.slow
def test_what_sft_narrows_returns_with_the_values_that_it_had(base: str, tmp_path: Path) -> None:
    """TRL casts factors beside a 4-bit base to bfloat16 whenever a trainer is made."""
    method = METHODS["ewc-lora"](seeded(lambda: adapted(quantised(base, 4), **LORA)), seed=0)
    learn(sft(method.model, tokens(0), tmp_path), method, "a")
    exact = {name: site.delta() for name, site in method.sites.items()}
    trainer = sft(method.model, tokens(1), tmp_path, learning_rate=0.0)
    assert all(site.B.dtype == torch.bfloat16 for site in method.sites.values())
    learn(trainer, method, "b")
    for name, site in method.sites.items():
        assert site.B.dtype == torch.float32 and torch.equal(site.delta(), exact[name]), name


@pytest.mark.slow
def test_values_that_nobody_kept_are_missed_aloud(base: str, tmp_path: Path) -> None:
    method = METHODS["ewc-lora"](adapted(quantised(base, 4), **LORA), seed=0)
    fit(method, prompts("a"))
    with pytest.warns(UserWarning, match="were rounded to half precision when the trainer was made"):
        learn(sft(method.model, tokens(1), tmp_path), method, "b")
