"""What `import retain` offers, and what it does not load before it is asked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import retain


def test_every_public_name_has_a_home() -> None:
    assert sorted(retain.__all__) == sorted(name for names in retain._HOMES.values() for name in names.split())
    assert all(getattr(retain, name) is not None for name in retain.__all__)
    assert set(retain.__all__) <= set(dir(retain))


def test_the_page_on_python_has_every_public_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    missing = [name for name in retain.__all__ if not re.search(rf"retain\.{name}\b", page)]
    assert not missing


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'EWCLora'"):
        _ = retain.EWCLora  # type: ignore[attr-defined]


def test_help_needs_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, typer.testing, retain.cli\n"
        "assert typer.testing.CliRunner().invoke(retain.cli.app, ['run', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
