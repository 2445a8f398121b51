"""Two processes that hold a base in parts (FSDP2) end with the weights that one ends with."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import AutoConfig, Trainer, TrainingArguments

from models import fit, texts
from processes import can_fork, together
from retain import learn, ranks, whole
from retain.hf import fit as fit_with_trainer
from retain.hooks import attach
from retain.method import Method
from retain.methods import METHODS
from retain.progress import StepBar
from retain.run import run
from retain.sharding import is_sharded, keep_whole
from retain.task import Task, default_collate
from runs import left_by, quiet, settings, stock
from test_laws import outputs, steady_bert

pytestmark = [can_fork, pytest.mark.slow, pytest.mark.timeout(900)]
# As strong as to show in two steps; and passes of one row each, of which one process has four and the other three.
OPTIONS = {"ewc-lora": {"strength": 1e4, "fisher": {"batch_size": 1}}, "lwf": {"weight": 30.0}}
FIRST, SECOND = texts("first", (4, 3)), texts("second", (4, 3), seed=1)


def in_parts(model: Any) -> None:
    for layer in model.get_base_model().bert.encoder.layer:
        fully_shard(layer, ignored_params=whole(model))
    fully_shard(model, ignored_params=whole(model))


def begun(name: str) -> Method:
    method = METHODS[name](steady_bert(), seed=0, **OPTIONS.get(name, {}))
    fit(method, FIRST)
    return method


def ended(method: Method) -> dict[str, Tensor]:
    found = {f"delta of {name}": site.delta() for name, site in method.sites.items()}
    for name, form in getattr(method, "forms", {}).items():  # whose own factors may turn
        found[f"importance of {name}"] = form.quadratic(method.sites[name].B, method.sites[name].A).detach()
    found |= {name: p.detach().clone() for name, p in method.beside().items() if "lora_" not in name}
    found["in parts"] = torch.tensor(sum(isinstance(p, DTensor) for p in method.model.parameters()))
    with torch.no_grad():
        return found | {"outputs": outputs(method)}


def in_own_loop(name: str, folder: Path) -> dict[str, Tensor]:
    method, several = begun(name), torch.distributed.is_initialized()
    if several:
        in_parts(method.model)
    method.begin_task(SECOND)
    optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3)
    handles = attach(optimizer, method)
    method.model.train()
    for step, batch in enumerate(SECOND.train):
        method.steps = step
        part = {k: v[ranks.share()] for k, v in batch.items()}
        logits = method.model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        loss = SECOND.loss.nll(logits, part["labels"]).sum() * (1 + several) / len(batch["labels"])
        (loss + method.extra_loss()).backward()
        nn.utils.clip_grad_norm_([p for group in method.param_groups() for p in group["params"]], 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    method.end_task(SECOND)
    return ended(method)


def through_trainer(name: str, folder: Path, train: Callable[..., Any]) -> dict[str, Tensor]:
    several, method = torch.distributed.is_initialized(), begun(name)
    batches = SECOND.train
    rows = [{k: v[i] for k, v in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
    arguments = TrainingArguments(
        str(folder / name),
        use_cpu=True,
        per_device_train_batch_size=1 if several else 2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        label_names=["labels"],
        remove_unused_columns=False,
        **({"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}} if several else {}),
    )
    train(method, Task("second", [*rows, rows[0]], collate=default_collate), arguments)
    return ended(method)


def with_fit(method: Method, task: Task, arguments: TrainingArguments) -> None:
    method.begin_task(task)
    fit_with_trainer(method.model, task, method, arguments)
    method.end_task(task)


def with_learn(method: Method, task: Task, arguments: TrainingArguments) -> None:
    """A user's Trainer, stopped after its first step in every process and continued."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def trained(method: Method, **resume: Any) -> None:
        trainer = Trainer(method.model, arguments, train_dataset=task.train, compute_loss_func=loss)
        learn(trainer, method, task, **resume)

    trained(begun("ewc-lora"))
    trained(method, resume_from_checkpoint=os.path.join(arguments.output_dir, "checkpoint-1"))


CASES: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    **{name: partial(in_own_loop, name) for name in ("ewc-lora", "eblora", "share", "replay")},
    "fit": partial(through_trainer, "ewc-lora", train=with_fit),
    "learn": partial(through_trainer, "ewc-lora", train=with_learn),
}


def as_on_gpus() -> list[Trainer]:
    """Have trainers shard also on a CPU, where accelerate does not; the list of all that are made."""
    make, made = Trainer.create_accelerator_and_postprocess, list[Trainer]()

    def create(trainer: Trainer) -> None:
        made.append(trainer)
        if PartialState().distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        make(trainer)

    Trainer.create_accelerator_and_postprocess = create
    return made


def every_case(folder: Path) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    if torch.distributed.is_initialized():
        as_on_gpus()
    return {name: case(folder / name) for name, case in CASES.items()}


LAUNCHED = {  # what `accelerate launch` says of a configuration file to its processes
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def runs(base: str, folder: Path, at_once: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Results and files of runs, of two processes one stopped at a checkpoint; how many of their trainers sharded."""
    made = as_on_gpus() if torch.distributed.is_initialized() else []
    training = {"max_steps": 2, "per_device_train_batch_size": at_once, "use_cpu": True, "learning_rate": 0.01}
    ended, found, left = StepBar.on_step_end, dict[str, Any](), dict[str, Any]()

    def stopping(self: Any, arguments: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and "sport" in arguments.output_dir:
            raise KeyboardInterrupt
        ended(self, arguments, state, *rest, **kwargs)

    for name, options in {"ewc-lora": {"strength": 30.0, "fisher": {"samples": 8}}, "eblora": {}}.items():
        saving = {"save_strategy": "steps", "save_steps": 1} if name == "ewc-lora" else {}
        method = {"name": name} | options
        config = settings(base, folder / name, "mood sport", training=training | saving, method=method)
        with torch.random.fork_rng():
            if saving and torch.distributed.is_initialized():
                with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(StepBar, "on_step_end", stopping)
                    run(config, quiet())
            found[name] = run(config, quiet())
        left[name] = sorted(left_by(folder / name / "out"))
    return found, left, sum(is_sharded(trainer.model) for trainer in made)


@pytest.mark.usefixtures("fast_runs")
def test_runs_with_their_base_in_parts_write_what_one_process_writes(bert: str, tmp_path: Path) -> None:
    base = str(shutil.copytree(bert, tmp_path / "base"))
    steady = AutoConfig.from_pretrained(base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    steady.save_pretrained(base)
    (one, files, sharded), (other, *_) = together(partial(runs, base, tmp_path / "two", 3), tmp_path, **LAUNCHED)
    _, expected, _ = runs(base, tmp_path / "one", 6)
    assert one == other and files == expected and sharded == 3 + 2
    for name in expected:
        ours, theirs = (load_adapted(base, tmp_path / which / name / "out/adapter") for which in ("two", "one"))
        for key, delta in theirs.items():
            torch.testing.assert_close(ours[key], delta, rtol=1e-4, atol=1e-5)


def load_adapted(base: str, adapter: Path) -> dict[str, Tensor]:
    """The weight changes of a stock adapter, and its head."""
    model = stock(base, adapter, 4)
    found = {name: m.get_delta_weight("default") for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    return found | {"head": model.get_base_model().classifier.weight}


def refusals() -> dict[str, str]:
    """What the door says, by what came."""
    mesh = init_device_mesh("cpu", (2,))

    def tensor_parallel(model: Any) -> None:
        parallelize_module(model.get_base_model().bert.encoder.layer[0].output.dense, mesh, ColwiseParallel())

    ways: dict[str, Callable[[Any], Any]] = {
        "whole model": fully_shard,
        "tensor parallel": tensor_parallel,
    }
    said = {}
    for way, cut in ways.items():
        method = METHODS["ewc-lora"](steady_bert(), seed=0)
        cut(method.model)
        with pytest.raises(ValueError) as error:
            attach(torch.optim.SGD(method.param_groups()), method)
        said[way] = str(error.value)
    return said


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fsdp")
    return together(partial(every_case, folder), folder)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_a_base_in_parts_train_what_one_trains(name: str, shared: Any, tmp_path: Path) -> None:
    alone, (one, other) = CASES[name](tmp_path), (found[name] for found in shared)
    assert one.pop("in parts") == other.pop("in parts") > 30 and not alone.pop("in parts")
    assert one.keys() == other.keys() == alone.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(one[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        assert torch.equal(one[key], other[key]), key


def test_an_adapter_in_parts_is_refused(tmp_path: Path) -> None:
    for said in together(refusals, tmp_path):
        assert re.search(
            r"lora_A.default.weight is in parts.*ignored_params=retain.whole\(model\)", said["whole model"]
        )
        assert "those of tensor parallelism are in parts" in said["tensor parallel"]


def test_a_model_that_fsdp1_has_flattened_is_refused() -> None:
    method = METHODS["ewc-lora"](steady_bert(), seed=0)
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # making one takes a GPU
    nn.Module.__init__(wrapper)
    method.model.get_base_model().add_module("wrapped", wrapper)
    with pytest.raises(ValueError, match="FSDP1 flattens them"):
        attach(torch.optim.SGD(method.param_groups()), method)


class Plugin:
    fsdp_version, cpu_ram_efficient_loading, ignored_modules = 2, False, None


@pytest.mark.parametrize(
    ("key", "value", "message"), [("fsdp_version", 1, "to 2"), ("cpu_ram_efficient_loading", True, "false")]
)
def test_what_accelerate_would_do_to_an_adapter_is_refused_before_it_does(key: str, value: Any, message: str) -> None:
    accelerator: Any = type("Accelerator", (), {"state": type("State", (), {"fsdp_plugin": Plugin()})})
    setattr(accelerator.state.fsdp_plugin, key, value)
    with pytest.raises(ValueError, match=message):
        keep_whole(accelerator, steady_bert())
