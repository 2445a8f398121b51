"""Fine-tune one LoRA adapter on task after task without losing the earlier ones."""

from retain.callback import ContinualCallback
from retain.hooks import attach
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
    "sites",
]
