"""Methods side by side: one stream, equal tuning, the same seeds and test rows."""

from retain.commands.compare.command import compare

__all__ = ["compare"]
