"""The rules of vLLM's loader, on adapters of every kind that leaves, and on what others write."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters import tiny_resnet, with_past
from architectures import CASES
from models import tiny_bert, tiny_llama, tiny_mlp
from retain import export
from retain.vllm import Verdict, judge


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Verdict]:
    """The verdict on the export of a model, of whose adapter_config.json some keys are others."""

    def verdict(model: Any, **changes: Any) -> Verdict:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            export(model, tmp_path / "adapter")
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return judge(tmp_path / "adapter")

    return verdict


def test_an_adapter_of_a_language_model_needs_no_more_than_room_for_its_rank(judged):
    assert judged(tiny_llama()) == Verdict([], [], "--enable-lora")
    assert judged(with_past(tiny_llama(r=12), folds=1)).options == "--enable-lora --max-lora-rank 32"
    assert judged(tiny_llama(use_rslora=True)).obstacles == []


def test_one_linear_classifier_is_taken_and_others_are_not(judged):
    found = judged(tiny_bert())
    assert found.obstacles == [] and found.options == "--enable-lora --max-lora-cls-labels 3"
    (deep,) = judged(CASES["roberta"].model()).obstacles
    assert "classifier.dense, classifier.out_proj: leave it out" in deep and "merge_and_unload" in deep
    (head,) = judged(tiny_mlp()).obstacles
    assert "no other layer that was trained as a whole; here 4" in head
    two = judged(tiny_bert(modules_to_save=["classifier", "pooler"])).obstacles
    assert ["pooler" in line for line in two] == [True]


def test_encoder_decoders_of_texts_are_not_served(judged):
    (line,) = judged(CASES["t5"].model(), task_type="SEQ_2_SEQ_LM").obstacles
    assert "has no encoder-decoders that read texts" in line and "serve it with transformers" in line


def test_convolutions_are_named(judged):
    (classifier, maps) = judged(tiny_resnet()).obstacles
    assert "classifier.1" in classifier
    assert "resnet.embedder.embedder.convolution" in maps and " more: leave them out" in maps


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("use_dora", True, "train with use_dora=False, or serve the merged model"),
        ("bias", "all", "bias='none'"),
        ("lora_bias", True, "lora_bias=False"),
        ("init_lora_weights", "pissa", "init_lora_weights=True"),
        ("layer_replication", [[0, 1], [0, 2]], "layer_replication=None"),
        ("modules_to_save", ["lm_head"], "here lm_head: leave it out of training"),
    ],
)
def test_what_others_write_is_refused_with_a_way_around(judged, key, value, fix):
    (obstacle,) = judged(tiny_llama(), **{key: value}).obstacles
    assert key in obstacle and fix in obstacle


def test_ranks_beyond_the_largest_step(judged, monkeypatch):
    monkeypatch.setattr("retain.vllm.RANKS", (1, 8, 16))
    monkeypatch.setattr("retain.vllm.DEFAULT", 8)
    (obstacle,) = judged(with_past(tiny_llama(r=12), folds=1)).obstacles
    assert obstacle.startswith("rank 24: vLLM takes 16 at most; cap the past (method.rank)")
    assert judged(tiny_llama(r=16)).obstacles == []


def test_patterns_are_a_remark(judged):
    (remark,) = judged(tiny_llama(rank_pattern={"q_proj": 2})).remarks
    assert "0.10 did not" in remark


def test_python_warns_of_models_that_generate_and_of_no_others(tmp_path):
    with pytest.warns(UserWarning, match="vLLM would not load this adapter. modules_to_save: .* here lm_head"):
        export(tiny_llama(modules_to_save=["lm_head"]), tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export(tiny_llama(), tmp_path / "b")
        export(tiny_resnet(), tmp_path / "c")
