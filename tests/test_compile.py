"""Models that torch.compile has compiled: trained and measured as they are without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import Trainer, TrainingArguments, default_data_collator

from models import fit, layers, prompts, tiny_llama
from retain import METHODS, ContinualCallback, Task
from retain.fisher import measure
from retain.lora import sites

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(name: str, compiled: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = tiny_llama()
    if compiled:
        model.compile(backend="aot_eager")
    method = METHODS[name](model, seed=0)
    counters.clear()
    for number, task in enumerate("ab"):
        fit(method, prompts(task, seed=number, sizes=(4, 4)), learning_rate=1e-3)
    assert bool(counters["frames"]["ok"]) == compiled
    return {n: site.delta() for n, site in method.sites.items()} | {
        key: value for key, value in method.state_dict().items() if key.startswith("fisher/")
    }


def test_a_compiled_model_learns_what_it_learns_without() -> None:
    eager, compiled = (trained("ewc-lora", on) for on in (False, True))
    assert eager.keys() == compiled.keys()
    for key, tensor in eager.items():
        torch.testing.assert_close(compiled[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def through_trainer(folder: Path, compiled: bool) -> dict[str, Tensor]:
    """Two tasks through Trainer with the callback, which compiles the model or does not."""
    torch.manual_seed(0)
    method = METHODS["ewc-lora"](tiny_llama(), seed=0, strength=1e3)
    counters.clear()
    for number, name in enumerate("ab"):
        batch = prompts(name, seed=number, sizes=(8,)).train[0]
        rows = [{key: x[i] for key, x in batch.items()} for i in range(8)]
        task = Task(name, rows, collate=default_data_collator)
        method.begin_task(task)
        arguments = TrainingArguments(
            str(folder),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **({"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}),
        )
        trainer = Trainer(
            method.model,
            arguments,
            train_dataset=rows,
            data_collator=default_data_collator,
            callbacks=[ContinualCallback(method)],
            optimizers=(torch.optim.AdamW(method.param_groups(), lr=1e-3), None),
        )
        trainer.train()
        method.end_task(task)
    assert bool(counters["frames"]["ok"]) == compiled
    return {name: site.delta() for name, site in method.sites.items()}


def test_trainers_torch_compile_trains_what_trainer_trains_without(tmp_path: Path) -> None:
    eager, compiled = (through_trainer(tmp_path, on) for on in (False, True))
    for name, delta in eager.items():
        torch.testing.assert_close(compiled[name], delta, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_importance_is_measured_of_a_model_that_was_compiled_before() -> None:
    """Code that was compiled without hooks does not call them."""
    found, task = [], prompts(sizes=(4,))
    for compiled in (False, True):
        model = tiny_llama()
        if compiled:
            model.compile(backend="aot_eager")
        model.eval()(**task.train[0])
        found.append(measure(model, layers(model), task, form="diagonal", samples=None))
    for name, form in found[0].forms.items():
        torch.testing.assert_close(found[1].forms[name].state_dict(), form.state_dict(), rtol=1e-4, atol=1e-8)


def test_the_wrapper_that_torch_compile_gives_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="OptimizedModule.*the model that torch.compile was given"):
        sites(torch.compile(tiny_llama(), backend="eager"))
