"""The stability-plasticity curve of methods over a knob, each branch from what all branches share."""

from retain.commands.sweep.command import sweep

__all__ = ["sweep"]
