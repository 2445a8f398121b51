"""What lies beside the checkpoints of a transformers Trainer: a training that was stopped goes on to the bit.

A checkpoint counts as whole once its ``done`` is there, which names the hashes of all its files, Trainer's and ours.
Trainer unpickles some of its own (``optimizer.pt``), so it is handed a checkpoint only after these were checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from retain.files import drop_folder
from retain.lora import adapter_parameters, is_adapted
from retain.method import Method
from retain.store import DONE, StoreError, close, is_closed, read_json, read_tensors, verify_all, write_tensors

# What parametrised factors are made of, what the method has measured on the way, and where the task began.
ORIGINALS, PROGRESS, BOUNDARY = "originals.safetensors", "progress.safetensors", "boundary.safetensors"
RUNNING = "running{}.safetensors"  # the loss that a process has added up since Trainer last logged; steps left out
MODEL, STATE, TASK = "model/", "state/", "task/"
PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def boundary(method: Method, task: str | None = None) -> dict[str, Tensor]:
    """Where ``task`` begins, flat: what trains, and the state of ``method``. Take it before ``begin_task``."""
    model = {MODEL + name: p.detach().clone() for name, p in _owned(method.model).items()}
    state = {STATE + key: tensor.clone() for key, tensor in method.state_dict().items()}
    return model | state | ({} if task is None else {TASK + task: torch.tensor(method.number)})


@torch.no_grad()
def restore_boundary(method: Method, checkpoint: str | Path, task: str | None = None) -> None:
    """Put model and method back to where the task began in whose middle ``checkpoint`` was written.

    Call it before ``begin_task``, on a model and a method made as they were made then.

    Raises:
        StoreError: the file is missing or damaged.
        ValueError: it is of another model or method, or of another task than ``task``.
    """
    path, parameters = Path(checkpoint) / BOUNDARY, _owned(method.model)
    kept = read_tensors(path)
    if task is not None:
        _check_task(Path(checkpoint), method, kept, task)
    method.load_state_dict({k.removeprefix(STATE): v for k, v in kept.items() if k.startswith(STATE)})
    model = {k.removeprefix(MODEL): v for k, v in kept.items() if k.startswith(MODEL)}
    shapes = {name: p.shape for name, p in parameters.items()}
    if {name: tensor.shape for name, tensor in model.items()} != shapes:
        raise ValueError(f"{path}: its parameters are not those of this model, made anew for {type(method).__name__}")
    for name, parameter in parameters.items():
        parameter.copy_(model[name])


def write_beside(checkpoint: Path, method: Method, began: Mapping[str, Tensor]) -> None:
    """Write what Trainer does not; ``began`` is the ``boundary`` before the task, empty where it is kept elsewhere."""
    for file, found in ((ORIGINALS, originals(method)), (PROGRESS, method.progress()), (BOUNDARY, began)):
        if found:
            write_tensors(checkpoint / file, found)


def restore_beside(checkpoint: Path, method: Method) -> None:
    """Take back what was written beside ``checkpoint``, whose stock factors Trainer has loaded.

    Raises:
        ValueError: it was written after other tasks than ``method`` has learned.
    """
    if (path := checkpoint / BOUNDARY).exists():
        before = _named(read_tensors(path), f"{STATE}learned/")
        if before != method.learned.keys():
            raise ValueError(
                f"{checkpoint} was written after {_listed(before)}, and this method has learned "
                f"{_listed(method.learned)}: use retain.learn, or call retain.checkpoints.restore_boundary(method, "
                "checkpoint) before begin_task"
            )
    restore_originals(method, checkpoint)
    restore_progress(method, checkpoint)


def write_running(checkpoint: Path, trainer: Any, left_out: int) -> None:
    """Write what ``trainer`` is about to log, which it forgets with its process; each of several has its own."""
    if "_tr_loss" in vars(trainer):  # else of a transformers that keeps it elsewhere
        since = trainer.state.global_step - trainer._globalstep_last_logged
        counts = {"steps": torch.tensor(since), "left_out": torch.tensor(left_out)}
        write_tensors(checkpoint / _running(trainer), {"loss": trainer._tr_loss} | counts)


def restore_running(checkpoint: Path, trainer: Any) -> int:
    """Let ``trainer`` log what it would have, had it not been stopped at ``checkpoint``; the steps left out before."""
    if not (path := checkpoint / _running(trainer)).exists():
        return 0
    kept = read_tensors(path)
    trainer._tr_loss = kept["loss"].to(trainer.args.device)
    trainer._globalstep_last_logged -= int(kept["steps"])
    return int(kept["left_out"])


def _running(trainer: Any) -> str:
    return RUNNING.format(f"-{trainer.args.process_index}" if trainer.args.world_size > 1 else "")


def originals(method: Method) -> dict[str, nn.Parameter]:
    """The parameters of parametrised factors, by their names in the model."""
    if not method.sites:
        return {}
    return {name: p for name, p in adapter_parameters(method.model).items() if ".parametrizations." in name}


@torch.no_grad()
def restore_originals(method: Method, checkpoint: Path) -> None:
    """Put the parameters of parametrised factors back to the bit, as they were when ``checkpoint`` was written.

    Its stock factors have been loaded. Where the file is missing, or belongs to other factors (Trainer may continue
    from a folder that is not its own), they stay as they are and a warning says so.
    """
    parameters, path = originals(method), checkpoint / ORIGINALS
    if not parameters:
        return
    loaded = {name: site.B.detach().clone() for name, site in method.sites.items()}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    kept = read_tensors(path) if path.exists() else {}
    if kept.keys() == parameters.keys():
        for name, p in parameters.items():
            p.copy_(kept[name])
        if all(torch.allclose(site.B, loaded[name], rtol=1e-4, atol=1e-7) for name, site in method.sites.items()):
            return
        for name, p in parameters.items():
            p.copy_(before[name])
    warnings.warn(
        f"{path} is missing or of another training: it continues, but not to the bit, with factors made of stock ones",
        stacklevel=2,
    )


def restore_progress(method: Method, checkpoint: Path) -> None:
    """Give back what ``method`` had measured when ``checkpoint`` was written; warn if that is lost."""
    if not method.progress():
        return
    if (path := checkpoint / PROGRESS).exists():
        method.load_progress(read_tensors(path))
    else:
        warnings.warn(f"{path} is missing: what the method measured before is lost, and it measures on", stacklevel=2)


def seal(checkpoint: Path) -> None:
    """Declare ``checkpoint`` whole, once all of it is written."""
    if checkpoint.is_dir():
        close(checkpoint)


def check(checkpoint: str | Path) -> None:
    """Refuse a checkpoint that is not as it was written. Call it before Trainer loads anything of one that travelled.

    Raises:
        StoreError: a file that was changed, is missing, or came later and would be unpickled; or nothing says what was
            written, because of a kill, an older version, or a trainer without a method beside it.
    """
    folder = Path(checkpoint)
    if not is_closed(folder):
        raise StoreError(f"{folder}: has no `{DONE}` that names the hashes of its files; nothing of it is loaded")
    named = verify_all(folder)
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLED and path.relative_to(folder).as_posix() not in named:
            raise StoreError(f"{path}: came after the checkpoint was written, and would be unpickled; remove it")


def checkpoint_folder(arguments: Any, state: Any) -> Path:
    """Where Trainer writes what it has at this step."""
    return Path(arguments.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class Latest(TrainerCallback):
    """Keeps the latest ``limit`` checkpoints: older ones go when a newer one is whole, where Trainer does not wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every = sorted(_checkpoints(Path(args.output_dir)), key=_step)
        for path in every[: -self.limit] if state.is_world_process_zero else ():
            if str(path) != state.best_model_checkpoint:
                drop_folder(path)


def last_checkpoint(folder: str | Path) -> str | None:
    """The latest checkpoint in ``folder`` that was written to its end and can be continued, if there is one.

    Raises:
        StoreError: it is not as it was written; see ``check``.
    """
    for latest in sorted(_checkpoints(Path(folder)), key=_step, reverse=True):
        if not is_closed(latest):
            continue
        try:
            check(latest)
        except StoreError as error:
            raise StoreError(f"{error}; without the folder {latest} training goes on from what is before it") from error
        if _goes_on(latest):
            return str(latest)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdecimal()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _goes_on(checkpoint: Path) -> bool:
    """Whether Trainer continues it well: after the last step, in the middle of an epoch, it would take another one."""
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    return bool(state["global_step"] < state["max_steps"]) or float(state["epoch"]).is_integer()


def _owned(model: Any) -> dict[str, nn.Parameter]:
    """What a checkpoint of ``model`` holds: its adapter, or everything where there is none."""
    return adapter_parameters(model) if is_adapted(model) else dict(model.named_parameters())


def _check_task(checkpoint: Path, method: Method, kept: Mapping[str, Tensor], task: str) -> None:
    """Refuse a boundary that is ``kept`` of another task than ``task``, which would be over after no step of its own.

    Boundaries of earlier versions name no task: of these, what came before must be all that ``method`` has learned.
    """
    named, before = _named(kept, TASK), _named(kept, f"{STATE}learned/")
    told = f"of task {_listed(named)}, begun" if named else "written"
    if named != {task} if named else method.learned.keys() - before:
        raise ValueError(
            f"{checkpoint} was {told} after {_listed(before)}, and expected is one of task {task}, after "
            f"{_listed(method.learned)}: use one output_dir per task, or leave resume_from_checkpoint out"
        )


def _named(kept: Mapping[str, Tensor], prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in kept if key.startswith(prefix)}


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
