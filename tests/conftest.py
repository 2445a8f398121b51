"""What every test stands on: no network, one seed, one thread, and no trace in the user's cache."""

import gc
import os
import random
import tempfile

# Read when the libraries are imported, so set before any of them is.
_CACHE = tempfile.TemporaryDirectory(prefix="retain-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_CACHE=_CACHE.name,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)

import accelerate.utils.memory  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Most tensors here are tiny, where threads only cost; and sums come out alike whatever the number of cores.
torch.set_num_threads(1)
os.fsync = lambda _: None  # waits for the disk, and a test is not cut off from power
accelerate.utils.memory.clear_device_cache = lambda **_: None  # goes through all objects, for memory of no device

LEARNS_FAST = 0.1  # spread of a backbone's weights: with the usual 0.02 all rows look alike to it


def pytest_collection_finish() -> None:
    """What the imports have made stays to the end: no collection of garbage need look at all of it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a two-layer text backbone, dropout 0.1, and a tokenizer of the words of ``streams``."""
    from models import bare_bert
    from streams import word_tokenizer

    folder = str(tmp_path_factory.mktemp("bert"))
    tokenizer = word_tokenizer()
    bare_bert(vocab_size=len(tokenizer), initializer_range=LEARNS_FAST).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a two-layer image backbone of 8 by 8 pixels, and its image processor."""
    from transformers import ViTImageProcessor

    from models import bare_vit

    folder = str(tmp_path_factory.mktemp("vit"))
    bare_vit(initializer_range=LEARNS_FAST).base_model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def patchtst(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a forecaster of one layer, which was made for three channels."""
    from models import bare_patchtst

    folder = str(tmp_path_factory.mktemp("patchtst"))
    bare_patchtst(init_std=LEARNS_FAST).save_pretrained(folder)
    return folder


@pytest.fixture
def fast_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without what takes most of the time of tiny ones: 1000 bootstrap replicates."""
    from functools import partial

    from retain import scores

    monkeypatch.setattr(scores, "bootstrap", partial(scores.bootstrap, replicates=20))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The script of the clean process that checks an adapter runs in this one, a lot faster; returns its commands."""
    import runpy
    import subprocess
    import sys
    from pathlib import Path

    from retain import store

    commands = []

    def simulate(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        script, complaint = Path(command[-1]).with_suffix(".py"), ""
        script.write_text(command[2])
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["-c", *command[3:]])
            try:
                runpy.run_path(str(script))
            except Exception as error:
                complaint = f"Traceback\n  ...\n{type(error).__name__}: {error}\n"
        return subprocess.CompletedProcess(command, int(bool(complaint)), "", complaint)

    monkeypatch.setattr(store.subprocess, "run", simulate)
    return commands


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny encoder-decoder and a tokenizer of the words of ``streams``."""
    from models import bare_t5
    from streams import pair_tokenizer

    folder, tokenizer = str(tmp_path_factory.mktemp("t5")), pair_tokenizer()
    bare_t5(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model that reads pictures of 8 by 8 pixels, and its processor."""
    from models import bare_llava
    from streams import picture_processor

    folder, processor = str(tmp_path_factory.mktemp("llava")), picture_processor()
    tokenizer = processor.tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    bare_llava(vocab_size=len(tokenizer), initializer_range=LEARNS_FAST, **ids).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a two-layer causal language model and a tokenizer of the words of ``streams``, with a template."""
    from models import bare_llama
    from streams import chat_tokenizer

    folder, tokenizer = str(tmp_path_factory.mktemp("llama")), chat_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    bare_llama(vocab_size=len(tokenizer), initializer_range=LEARNS_FAST, **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Stable Diffusion pipeline."""
    from painting import save_pipeline

    folder = tmp_path_factory.mktemp("painter")
    save_pipeline(folder)
    return str(folder)
