"""Models that forecast: PatchTST (arXiv 2211.14730), which reads every channel by itself, and scales what it reads."""

from __future__ import annotations

from typing import Any

FORECASTS = "time-series"  # the kind of model
# What a checkpoint's configuration has to say for single channels to be its rows, in a unit that does not matter to it.
APART = {
    "channel_attention": False,
    "share_embedding": True,
    "share_projection": True,
    "scaling": "std",
    "loss": "mse",
}
CHANNELS = {"num_input_channels": 1}  # of a row, whatever the checkpoint was trained on: no weight depends on it


def check_forecaster(path: str, config: Any) -> None:
    """Refuse a checkpoint that forecasts in another way than windows of single channels need.

    Args:
        path: of the checkpoint.
        config: its configuration.

    Raises:
        ValueError: what it is or says, and what is expected.
    """
    if config.model_type != "patchtst":
        raise ValueError(
            f"model.kind is {FORECASTS!r}, and {path!r} is a {config.model_type} model: of those that forecast, "
            "patchtst alone is read"
        )
    for key, wanted in APART.items():
        if (found := getattr(config, key)) != wanted:
            raise ValueError(
                f"model.kind is {FORECASTS!r}, and {key} of {path!r} is {found!r}; expected {wanted!r}: a row is a "
                "window of one channel, which the model scales itself"
            )


def check_learned(path: str, missing: set[str] | list[str]) -> None:
    """Refuse a checkpoint in which weights are ``missing``: what is drawn anew is in no adapter.

    Raises:
        ValueError: one of them.
    """
    if missing:
        raise ValueError(f"the checkpoint at {path!r} has no {min(missing)}: it has not learned to forecast")
