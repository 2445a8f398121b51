"""Every method under the name that a configuration gives it."""

from retain.method import Method
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
from retain.nearest import did_you_mean

METHODS: dict[str, type[Method]] = {
    "sequential": Sequential,
    "per-task": PerTask,
    "joint": Joint,
    "ewc": EWC,
    "ewc-lora": EWCLoRA,
    "dwd": DWD,
    "eblora": EBLoRA,
    "olora": OLoRA,
    "inflora": InfLoRA,
    "sdlora": SDLoRA,
    "share": Share,
    "replay": Replay,
    "lwf": LwF,
}


def method_named(name: object) -> type[Method]:
    """The method of that name.

    Raises:
        ValueError: there is none; with those that there are, and the nearest.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    return METHODS[name]
