"""What every test stands on: no network, one seed, one thread, and no trace in the user's cache."""

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

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Most tensors here are tiny, where threads only cost; and sums come out alike whatever the number of cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
