"""A task: its rows, and how a model's outputs on them become a likelihood."""

from retain.task.forwards import AmongTexts, NoisePrediction
from retain.task.likelihood import IGNORED, CrossEntropy, Draws, Labels, Loss, SquaredError, precise
from retain.task.rows import (
    Batch,
    Data,
    Forward,
    Task,
    aligned,
    default_collate,
    evaluating,
    forward,
    has_decoder,
    joined,
    on_device,
    rows_in,
    rows_of,
    said_in,
)

__all__ = [
    "IGNORED",
    "AmongTexts",
    "Batch",
    "CrossEntropy",
    "Data",
    "Draws",
    "Forward",
    "Labels",
    "Loss",
    "NoisePrediction",
    "SquaredError",
    "Task",
    "aligned",
    "default_collate",
    "evaluating",
    "forward",
    "has_decoder",
    "joined",
    "on_device",
    "precise",
    "rows_in",
    "rows_of",
    "said_in",
]
