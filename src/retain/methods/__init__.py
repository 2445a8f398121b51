"""Every method under the name that a configuration gives it."""

from retain.method import Method
from retain.methods.eblora import EBLoRA
from retain.methods.ewc import EWC
from retain.methods.ewc_lora import EWCLoRA
from retain.methods.joint import Joint
from retain.methods.per_task import PerTask
from retain.methods.sequential import Sequential

METHODS: dict[str, type[Method]] = {
    "sequential": Sequential,
    "per-task": PerTask,
    "joint": Joint,
    "ewc": EWC,
    "ewc-lora": EWCLoRA,
    "eblora": EBLoRA,
}
