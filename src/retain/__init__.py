"""Fine-tune one LoRA adapter on task after task without losing the earlier ones."""

# Names are brought in when they are asked for: torch and transformers take seconds, `retain --help` needs neither.
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retain.callback import ContinualCallback
    from retain.guard import learn_base
    from retain.hooks import attach
    from retain.learn import learn
    from retain.lora import Site, sites
    from retain.method import Method
    from retain.methods import METHODS
    from retain.methods.dwd import DWD
    from retain.methods.eblora import EBLoRA
    from retain.methods.ewc import EWC
    from retain.methods.ewc_lora import EWCLoRA
    from retain.methods.inflora import InfLoRA
    from retain.methods.joint import Joint
    from retain.methods.lwf import LwF
    from retain.methods.olora import OLoRA
    from retain.methods.per_task import PerTask
    from retain.methods.replay import Replay
    from retain.methods.sdlora import SDLoRA
    from retain.methods.sequential import Sequential
    from retain.methods.share import Share
    from retain.sharding import whole
    from retain.store import export
    from retain.task import AmongTexts, CrossEntropy, NoisePrediction, SquaredError, Task, joined

__all__ = [
    "DWD",
    "EWC",
    "METHODS",
    "AmongTexts",
    "ContinualCallback",
    "CrossEntropy",
    "EBLoRA",
    "EWCLoRA",
    "InfLoRA",
    "Joint",
    "LwF",
    "Method",
    "NoisePrediction",
    "OLoRA",
    "PerTask",
    "Replay",
    "SDLoRA",
    "Sequential",
    "Share",
    "Site",
    "SquaredError",
    "Task",
    "attach",
    "export",
    "joined",
    "learn",
    "learn_base",
    "sites",
    "whole",
]

_HOMES = {
    "retain.callback": "ContinualCallback",
    "retain.guard": "learn_base",
    "retain.hooks": "attach",
    "retain.learn": "learn",
    "retain.lora": "Site sites",
    "retain.method": "Method",
    "retain.methods": "METHODS",
    "retain.methods.dwd": "DWD",
    "retain.methods.eblora": "EBLoRA",
    "retain.methods.ewc": "EWC",
    "retain.methods.ewc_lora": "EWCLoRA",
    "retain.methods.inflora": "InfLoRA",
    "retain.methods.joint": "Joint",
    "retain.methods.lwf": "LwF",
    "retain.methods.olora": "OLoRA",
    "retain.methods.per_task": "PerTask",
    "retain.methods.replay": "Replay",
    "retain.methods.sdlora": "SDLoRA",
    "retain.methods.sequential": "Sequential",
    "retain.methods.share": "Share",
    "retain.sharding": "whole",
    "retain.store": "export",
    "retain.task": "AmongTexts CrossEntropy NoisePrediction SquaredError Task joined",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
