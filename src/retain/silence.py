"""Libraries that load models without a bar and a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silenced(logging: Any) -> Iterator[None]:
    """The block shows nothing of what ``logging``, that of transformers or of diffusers, is told.

    That a classifier is new is what continual learning is about.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
