"""Heads: rows that belong to tasks inside, one stock linear layer outside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from adapters import close, outputs
from models import BODY, VOCABULARY, adapted, bare_bert, bare_llama, bare_vit, seeded, texts
from retain.heads import Heads, heads_of, install_heads
from retain.hf import load_model
from retain.lora import adapter_parameters
from retain.run import run
from retain.workshop import prepare
from runs import quiet, settings
from streams import word_tokenizer

SIZES = [2, 3, 4]


def heads(bias: bool = True, seed: int = 0) -> Heads:
    made = Heads(nn.Linear(5, 9, bias=bias), SIZES, torch.Generator().manual_seed(seed))
    for block in made.biases:
        nn.init.normal_(block)
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_outside_it_is_a_stock_linear_layer(bias: bool) -> None:
    ours, stock, back = heads(bias), nn.Linear(5, 9, bias=bias), heads(bias, seed=1)
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(7, 5)
    close(ours(x), stock(x), 1e-6)
    back.load_state_dict(stock.state_dict())
    assert torch.equal(back(x), ours(x)) and ours(x).shape == (7, 9)
    assert [tuple(w.shape) for w in back.weights] == [(2, 5), (3, 5), (4, 5)]


def test_it_saves_inside_other_modules_and_keeps_gradients_if_asked() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(heads()))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    assert not model.state_dict()["1.0.weight"].requires_grad
    assert model.state_dict(keep_vars=True)["1.0.weight"].requires_grad
    other = nn.Sequential(nn.Linear(5, 5), nn.Sequential(heads(seed=1)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[1][0].weights[2], model[1][0].weights[2])
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*1.0.weights.0"):
        other.load_state_dict(nn.Sequential(nn.Linear(5, 5)).state_dict())


def test_it_starts_as_a_classifier_does() -> None:
    like = nn.Linear(500, 9, dtype=torch.float64)
    made = Heads(like, SIZES, torch.Generator().manual_seed(0), std=0.05)
    state = made.state_dict()
    assert state["weight"].dtype == torch.float64 and not state["bias"].any()
    assert float(state["weight"].std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_no_optimizer_moves_a_frozen_block(kind: Any) -> None:
    """Masked gradients would not do: weight decay and momentum move what has none."""
    made, x, options = heads(), torch.randn(6, 5), {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(made.parameters(), lr=0.1, weight_decay=0.5, **options)
    for current in range(3):
        before = copy.deepcopy(made.state_dict())
        made.train_only([current])
        for _ in range(3):
            optimizer.zero_grad()
            made(x).logsumexp(1).mean().backward()
            optimizer.step()
        rows = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
        for key, tensor in made.state_dict().items():
            assert torch.equal(tensor[rows != current], before[key][rows != current])
            assert (tensor[rows == current] != before[key][rows == current]).any()
    made.train_only(range(3))
    assert all(p.requires_grad for p in made.parameters())


def roberta() -> Any:
    config = transformers.RobertaConfig(**BODY, vocab_size=VOCABULARY, max_position_embeddings=40, num_labels=5)
    return transformers.RobertaForSequenceClassification(config)


def distilbert() -> Any:
    shape = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 40}
    config = transformers.DistilBertConfig(**shape, vocab_size=VOCABULARY, num_labels=5)
    return transformers.DistilBertForSequenceClassification(config)


def llama() -> Any:
    config = bare_llama(num_labels=5, max_position_embeddings=40).config
    return transformers.LlamaForSequenceClassification(config)


BASES = {
    "bert": (lambda: bare_bert(num_labels=5), "classifier"),
    "roberta": (roberta, "classifier.out_proj"),
    "distilbert": (distilbert, "classifier"),
    "llama": (llama, "score"),
    "vit": (lambda: bare_vit(num_labels=5), "classifier"),
}


@pytest.mark.parametrize("kind", BASES)
def test_the_final_classifier_is_found_and_replaced(kind: str) -> None:
    build, name = BASES[kind]
    model = seeded(build)
    assert install_heads(model, [2, 3], seed=4) == name
    found, twin = heads_of(model), seeded(build)
    install_heads(twin, [2, 3], seed=4)
    assert found is model.get_submodule(name) and len(found.weights) == 2
    assert torch.equal(found.weights[1], heads_of(twin).weights[1])
    install_heads(twin := seeded(build), [2, 3], seed=5)
    assert not torch.equal(found.weights[1], heads_of(twin).weights[1])


def test_a_model_without_such_a_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="BertForSequenceClassification has no linear classifier with 4 outputs"):
        install_heads(bare_bert(num_labels=5), [2, 2], 0)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no linear classifier with 32 outputs"):
        install_heads(bare_llama(), [32], 0)  # its projections have so many, inside the backbone


def test_heads_of_a_model_without_any() -> None:
    assert heads_of(bare_bert()) is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_saved_by_peft_it_loads_without_a_line_of_ours_and_back(kind: str, tmp_path: Path) -> None:
    """The checkpoint holds the backbone only, as those of pretrained models do."""
    model = seeded(BASES[kind][0])
    model.base_model.save_pretrained(tmp_path / "base")
    lora = {"r": 2, "target_modules": "all-linear"}
    trained, back = (load_model(str(tmp_path / "base"), "text", [2, 3], lora, seed=s) for s in (0, 1))
    for parameter in adapter_parameters(trained).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(tmp_path / "adapter")
    base = type(model).from_pretrained(tmp_path / "base", num_labels=5)
    stock = PeftModel.from_pretrained(base, tmp_path / "adapter")
    batch = {k: v for k, v in texts(sizes=(1,)).train[0].items() if k != "labels"}
    close(outputs(stock, batch), outputs(trained, batch))
    back.load_adapter(tmp_path / "adapter", "default")
    close(outputs(back, batch), outputs(trained, batch))
    assert len(heads_of(back).weights) == 2


def test_the_copy_that_peft_keeps_is_not_the_one_that_trains() -> None:
    base = bare_bert(num_labels=5)
    install_heads(base, [2, 3], 0)
    model = adapted(base, target_modules=["query"], modules_to_save=["classifier"])
    wrapper = model.base_model.model.classifier
    assert heads_of(model) is wrapper.modules_to_save["default"] is not wrapper.original_module


@pytest.mark.usefixtures("fast_runs")
def test_a_new_hidden_layer_is_trained_with_the_first_task_only_and_saved(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    shape = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 40}
    backbone = transformers.DistilBertModel(transformers.DistilBertConfig(**shape, vocab_size=len(tokenizer)))
    backbone.save_pretrained(tmp_path / "base")
    names = ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, pad_token="[PAD]", model_input_names=names
    ).save_pretrained(tmp_path / "base")
    config = settings(str(tmp_path / "base"), tmp_path, "mood sport", lora={"r": 2, "target_modules": ["q_lin"]})
    fresh = prepare(config).model.state_dict()
    run(config, quiet())
    hidden = []
    for stage in ("00-mood", "01-sport"):
        base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=4)
        saved = PeftModel.from_pretrained(base, Path(config.output, "tasks", stage, "adapter")).state_dict()
        hidden.append(next(t for key, t in saved.items() if "pre_classifier.modules_to_save" in key))
    start = next(t for key, t in fresh.items() if "pre_classifier.modules_to_save" in key)
    assert (hidden[0] != start).any() and torch.equal(hidden[1], hidden[0])
