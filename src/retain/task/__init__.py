"""A task: its rows, and how a model's outputs on them become a likelihood."""

from retain.task.likelihood import IGNORED, CrossEntropy, Draws, Labels, Loss, SquaredError, precise
from retain.task.rows import (
    Batch,
    Data,
    Task,
    aligned,
    default_collate,
    evaluating,
    forward,
    joined,
    on_device,
    rows_of,
)

__all__ = [
    "IGNORED",
    "Batch",
    "CrossEntropy",
    "Data",
    "Draws",
    "Labels",
    "Loss",
    "SquaredError",
    "Task",
    "aligned",
    "default_collate",
    "evaluating",
    "forward",
    "joined",
    "on_device",
    "precise",
    "rows_of",
]
