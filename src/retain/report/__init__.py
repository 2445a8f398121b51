"""What a run comes to, on one page that needs no network."""

from retain.report.page import report

__all__ = ["report"]
