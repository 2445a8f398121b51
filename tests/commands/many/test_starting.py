"""How runs start: as copies of a server, or each from nothing; either way with the same word and the same end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from retain.commands.many.starting import Begin, copied, launched
from runs import document, yaml_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no run is a copy of a server"),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("begin", [copied, launched])
def test_what_went_wrong_is_in_the_log_and_in_the_exit_code(begin: Begin, tmp_path: Path) -> None:
    process = begin(["run", "nowhere.yaml"], tmp_path / "log", ENVIRONMENT, ())
    assert process.wait(120) == process.poll() == 1
    assert (tmp_path / "log").read_text().startswith("error: cannot read the configuration 'nowhere.yaml'")


def test_a_copy_runs_holds_what_it_was_given_and_can_be_killed(bert: str, tmp_path: Path) -> None:
    content: dict[str, Any] = document(bert, tmp_path, "mood sport", training={"max_steps": 1})
    read, write = os.pipe()
    arguments = ["run", yaml_file(content, tmp_path / "run.yaml")]
    process = copied(arguments, tmp_path / "log", ENVIRONMENT, [write])
    os.close(write)
    while not (tmp_path / "out" / "base" / "done").exists():
        assert process.poll() is None
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):  # its end is open as long as someone holds it
        os.read(read, 1)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL and os.read(read, 1) == b""
    os.close(read)
    again = copied(arguments, tmp_path / "log", ENVIRONMENT, ())
    assert again.wait(120) == 0 and (tmp_path / "out" / "results.json").exists()
    assert "sport" in (tmp_path / "log").read_text()
