"""What tests of sweeps that train nothing share."""

import pytest

from retain.commands.many import cells
from retain.commands.sweep import command


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep looks for finished runs at once, and draws nothing."""
    monkeypatch.setattr(cells, "PAUSE", 0.001)
    monkeypatch.setattr(command, "draw", lambda content, folder: None)
