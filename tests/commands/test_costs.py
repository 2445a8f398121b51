"""Shapes, bytes and flops without weights are those of the real thing."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models
from retain.commands import costs
from retain.commands.costs import cost, machine
from retain.commands.outlines import Outline, outline
from retain.config import ModelConfig
from retain.fisher.capture import capture
from retain.fisher.forms import FORMS
from retain.hf import load_model
from retain.lora import sites
from retain.methods.ewc_lora import EWCLoRA

CPU, TOKENS = torch.device("cpu"), 9
BODY = models.BODY | {"vocab_size": models.VOCABULARY, "max_position_embeddings": 32}
TINY: dict[str, transformers.PretrainedConfig] = {
    "bert": transformers.BertConfig(**BODY),
    "roberta": transformers.RobertaConfig(**BODY),
    "gpt2": transformers.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=2, n_positions=32),
    "llama": transformers.LlamaConfig(**BODY, num_key_value_heads=1, pad_token_id=0),
    "vit": transformers.ViTConfig(**models.BODY, image_size=8, patch_size=4),
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
}
TARGETS = {"resnet": ["convolution"]}
FORM_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("diagonal", {"storage": storage}) for storage in ("float32", "bfloat16", "uint8")),
    ("factored", {"components": 1}),
    ("factored", {"components": 3}),
    *(("kronecker", {"rank": rank}) for rank in (4, 30, 31, 40, None)),
]


def qwen(layers: int, d: int, kv: int, mlp: int) -> transformers.PretrainedConfig:
    return transformers.Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=d,
        intermediate_size=mlp,
        num_attention_heads=d // 64,
        num_key_value_heads=kv // 64,
        dtype="bfloat16",
    )


def llama(layers: int, d: int, kv: int, mlp: int) -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=d,
        intermediate_size=mlp,
        num_attention_heads=d // 128,
        num_key_value_heads=kv // 128,
        vocab_size=128256,
        dtype="bfloat16",
    )


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PATIENCE", 0)
    monkeypatch.setattr(costs, "SAMPLE", {"cpu": 48})


def outlined(config: transformers.PretrainedConfig, folder: Path, kind: str = "text", **lora: Any) -> Outline:
    config.save_pretrained(folder)
    assert [file.name for file in folder.iterdir()] == ["config.json"], "no weights"
    lora = {"r": 2, "target_modules": "all-linear"} | lora
    return outline(ModelConfig(path=str(folder), kind=kind), lora, 5, TOKENS)  # type: ignore[arg-type]


@pytest.fixture(params=TINY)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Outline, Any, dict[str, Any]]:
    """A tiny model without weights, the same model as a run loads it, and one example of its input."""
    kind = "image" if request.param in ("vit", "resnet") else "text"
    targets = TARGETS.get(request.param, "all-linear")
    found = outlined(TINY[request.param], tmp_path, kind, target_modules=targets)
    auto = transformers.AutoModelForImageClassification if kind == "image" else transformers.AutoModel
    auto.from_config(TINY[request.param]).base_model.save_pretrained(tmp_path)
    real = load_model(str(tmp_path), kind, [3, 2], {"r": 2, "target_modules": targets})
    size = 224 if request.param == "resnet" else 8
    tokens, pixels = {"input_ids": torch.ones(1, TOKENS).long()}, {"pixel_values": torch.zeros(1, 3, size, size)}
    return found, real, tokens if kind == "text" else pixels


@pytest.mark.slow
def test_the_model_is_the_one_that_a_run_loads(pair: Any) -> None:
    found, real, _ = pair
    here, there = sites(found.model), sites(real)
    assert list(here) == list(there)
    assert all(here[n].A.shape == s.A.shape and here[n].B.shape == s.B.shape for n, s in there.items())
    trained = {n: p for n, p in real.named_parameters() if p.requires_grad}
    factors = sum(p.nbytes for n, p in trained.items() if "lora_" in n)
    assert found.bytes_of("adapter") == factors
    assert found.bytes_of("heads") == sum(p.nbytes for p in trained.values()) - factors
    frozen = [p for n, p in real.named_parameters() if not p.requires_grad and "original_module" not in n]
    assert found.bytes_of("base") == sum(p.nbytes for p in frozen)
    assert all(p.is_meta for p in found.model.parameters())


@pytest.mark.slow
def test_a_forward_is_the_real_one(pair: Any) -> None:
    found, real, example = pair
    real.eval()
    # A CPU's fused attention is not counted: take it apart.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        real(**example)
    assert found.flops == counter.get_total_flops() > 0
    met: dict[str, int] = {}
    with capture(real, models.layers(real), lambda name, x, _: met.update({name: x.shape[1]})) as tape:
        tape.start(1)
        real(**example).logits.sum().backward()
        tape.finish()
    assert found.places == met


@pytest.mark.slow
@pytest.mark.parametrize(("form", "options"), FORM_OPTIONS)
def test_bytes_are_those_of_real_forms(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = outlined(TINY["bert"], tmp_path)
    kept = sums = made = 0
    for site in sites(found.model).values():
        out, in_ = len(site.B), site.A.shape[1]
        collector = FORMS[form].collector(out, in_, CPU, torch.float32, **options)
        collector.add(torch.rand(1, 1, in_), torch.rand(1, 1, out))  # one token: factors fit it exactly
        before = {t.data_ptr(): t.nbytes for t in collector.sums()}
        state = collector.done(1.0).state_dict()
        kept += sum(t.nbytes for t in state.values())
        sums += sum(before.values())
        made += sum(t.nbytes for t in state.values() if t.data_ptr() not in before)
    planned = cost(form, options, found, CPU)
    assert (planned.kept, planned.sums, planned.made) == (kept, sums, made)
    assert planned.boundary == kept + sums + made
    assert planned.making > 0 < planned.penalty


def test_a_boundary_keeps_what_was_planned(bert: str) -> None:
    found = outline(ModelConfig(path=bert), {"r": 2, "target_modules": ["query", "value"]}, 3, TOKENS)
    model = load_model(bert, "text", [3], {"r": 2, "target_modules": ["query", "value"]})
    models.filled(model)
    for form, options in FORM_OPTIONS[:3] + FORM_OPTIONS[5:6]:
        method = EWCLoRA(model, fisher={"form": form, **options})
        method.end_task(models.texts(sizes=(4,)))
        kept = sum(t.nbytes for key, t in method.state_dict().items() if key.startswith("fisher/"))
        assert cost(form, options, found, CPU).kept == kept


def test_products_of_a_dense_diagonal(tmp_path: Path) -> None:
    found = outlined(TINY["bert"], tmp_path, target_modules=["query", "intermediate.dense"])
    planned = cost("diagonal", {"storage": "uint8"}, found, CPU)
    assert planned.measuring == 2 * 2 * TOKENS * (32 * 32 + 48 * 32)


def twin(layers: int, d: int, kv: int, mlp: int, targets: str) -> tuple[int, int]:
    """Entries of F and of an adapter of rank 1, from the shapes alone, as in docs/fisher.md."""
    shapes = {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d), "up": (mlp, d), "gate": (mlp, d), "down": (d, mlp)}
    chosen = [shapes[t] for t in targets.split()]
    return layers * sum(o * i for o, i in chosen), layers * sum(o + i for o, i in chosen)


LARGE = {  # docs/fisher.md, "How large": GiB of F in fp32, MiB of an adapter of rank 16
    "0.5B": (qwen, (24, 896, 128, 4864), "q k v o up gate down", 1.3, 34),
    "8B": (llama, (32, 4096, 1024, 14336), "q k v o up gate down", 26.0, 160),
    "70B": (llama, (80, 8192, 1024, 28672), "q k v o up gate down", 255, 790),
}


@pytest.mark.parametrize("name", ["0.5B", *(pytest.param(size, marks=pytest.mark.slow) for size in ("8B", "70B"))])
def test_large_models_take_what_the_docs_say_and_nothing_here(name: str, tmp_path: Path) -> None:
    build, shape, targets, gibibytes, mebibytes = LARGE[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = outlined(build(*shape), tmp_path, r=16, target_modules=[f"{t}_proj" for t in targets.split()])
    entries, factors = twin(*shape, targets)
    forms = {storage: cost("diagonal", {"storage": storage}, found, CPU) for storage in ("float32", "bfloat16")}
    assert forms["float32"].kept == forms["float32"].sums == 4 * entries
    assert forms["bfloat16"].kept == forms["bfloat16"].made == 2 * entries
    assert forms["float32"].kept / 2**30 == pytest.approx(gibibytes, rel=0.04)
    assert found.bytes_of("adapter") == 4 * 16 * factors
    assert found.bytes_of("adapter") / 2**20 == pytest.approx(mebibytes, rel=0.02)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "KiB"
    assert found.dtype == torch.bfloat16


def test_a_rank_above_a_layer_is_refused_as_a_run_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"query: rank 33 is larger than the layer, \(32, 32\)"):
        outlined(TINY["bert"], tmp_path, r=33, target_modules=["query"])


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [("no/such/model", "text", "no configuration of a text model at 'no/such/model': "), ("vit", "text", "text model")],
)
def test_what_is_no_model_is_one_line(path: str, kind: Any, message: str, vit: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        outline(ModelConfig(path=vit if path == "vit" else path, kind=kind), {}, 2, 8)
    assert "\n" not in str(error.value)


def test_the_weights_type_is_the_configured_one_or_the_checkpoint_s(tmp_path: Path) -> None:
    transformers.BertConfig(**BODY, dtype="float16").save_pretrained(tmp_path)
    for dtype, expected in ((None, "float16"), ("auto", "float16"), ("bfloat16", "bfloat16")):
        model = ModelConfig(path=str(tmp_path), dtype=dtype)  # type: ignore[arg-type]
        found = outline(model, {"r": 2, "target_modules": ["query"]}, 2, 99)
        assert found.dtype == getattr(torch, expected)
        assert {p.dtype for s in sites(found.model).values() for p in s.parameters} == {torch.float32}
        assert found.example == "32 tokens" and found.longest == 32


@pytest.mark.slow
def test_a_machine_is_asked() -> None:
    here = machine([torch.float32, torch.float32, torch.bfloat16])
    assert here.rates.keys() == {torch.float32, torch.bfloat16}
    assert 1e8 < here.rates[torch.float32] < 1e16
    assert here.seconds(here.rates[torch.float32]) == 1
    assert here.seconds(here.rates[torch.bfloat16], torch.bfloat16) == 1
    assert here.memory is None or here.memory > 2**28
