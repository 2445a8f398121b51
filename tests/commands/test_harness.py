"""Tasks of the lm-evaluation-harness as guards; all but the first test run where it is installed."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

from retain.commands.check import Bound
from retain.commands.harness import check
from retain.config import parse
from retain.run import run
from runs import quiet
from streams import WORDS, jsonl
from test_run_language import document

INSTALLED = importlib.util.find_spec("lm_eval") is not None
COLOURS = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pip install 'retain\[eval\]'"):
        check(tmp_path, ["colours"], None, quiet())


@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval, which CI does not install")
@pytest.mark.usefixtures("fast_runs")
def test_a_task_of_ones_own_is_scored_before_and_now(llama: str, tmp_path: Path) -> None:
    rows = [
        {"question": WORDS[i % 8], "choices": [WORDS[(i + 3) % 8], WORDS[(i + 5) % 8]], "answer": i % 2}
        for i in range(16)
    ]
    own = tmp_path / "own"
    own.mkdir()
    (own / "colours.yaml").write_text(COLOURS.format(file=jsonl(tmp_path / "rows.jsonl", rows)))
    config = parse(document(llama, tmp_path))
    run(config, quiet())
    said = Console(file=io.StringIO(), width=200)
    folder = Path(config.output)
    assert check(folder, ["colours"], Bound(1.0, ""), said, include=own)
    line = said.file.getvalue()  # type: ignore[attr-defined]
    assert line.startswith("colours: 0.") and "allowed 1.000: fine" in line
