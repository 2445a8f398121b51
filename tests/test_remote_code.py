"""Code that comes with a checkpoint never runs, whoever is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retain.commands.outlines import outline
from retain.hf import load_model, load_processor
from retain.sections import ModelConfig

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import PretrainedConfig
class Own(PretrainedConfig):
    model_type = "own"
"""


def test_code_that_comes_with_a_checkpoint_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, transformers would ask whoever sits at the terminal."""
    folder, marker = tmp_path / "own", tmp_path / "marker"
    folder.mkdir()
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    auto = {"AutoConfig": "code.Own", "AutoTokenizer": ["code.Own", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (
        lambda: load_model(str(folder), "causal-lm", [], {}),
        lambda: load_processor(str(folder), "text"),
        lambda: outline(ModelConfig(path=str(folder), kind="causal-lm"), {}, 0, 8),
    ):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load()
    assert not marker.exists()
