"""On a GPU as on the CPU: every method, importance, mixed precision, a run that was stopped. `make cuda` runs these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from models import adapted, bare_llama, filled, fit, layers, prompts, texts, tiny_bert, tiny_llama, train
from retain import METHODS, EBLoRA, EWCLoRA, Method, Share, Task, learn
from retain.fisher import measure
from retain.fisher.forms import FORMS
from retain.lora import adapter_parameters, sites
from retain.run import run
from runs import left_by, quiet, settings
from test_run_crashes import crashing

pytestmark = pytest.mark.cuda
LLAMA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}


def steady(device: str) -> Any:
    """A tiny model that draws nothing, on ``device``."""
    model = tiny_bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(device)


def on(task: Task, device: str) -> Task:
    return Task(task.name, [{k: v.to(device) for k, v in batch.items()} for batch in task.train])


def gathered(method: Method) -> dict[str, Tensor]:
    """What has been trained; of Share the change of every weight, for two decompositions may turn its bases apart."""
    found = {name: p.detach().cpu() for name, p in adapter_parameters(method.model).items()}
    if not isinstance(method, Share):
        return found
    changes = {name: site.delta().detach().cpu() for name, site in method.sites.items()}
    return changes | {name: p for name, p in found.items() if "classifier" in name}


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name].cpu(), other[name].cpu(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_learns_what_a_cpu_learns(name: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        method = METHODS[name](steady(device), seed=0)
        for task in (texts("a", seed=0), texts("b", seed=1)):
            fit(method, on(task, device), learning_rate=1e-3)
        found[device] = gathered(method)
    close(found["cpu"], found["cuda"], 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_gpu_remembers_continues_on_a_cpu(name: str) -> None:
    first, second = METHODS[name](steady("cuda"), seed=0), METHODS[name](steady("cpu"), seed=0)
    fit(first, on(texts("a"), "cuda"), learning_rate=1e-3)
    with torch.no_grad():
        for key, parameter in adapter_parameters(second.model).items():
            parameter.copy_(adapter_parameters(first.model)[key])
    second.load_state_dict({key: value.cpu() for key, value in first.state_dict().items()})
    fit(first, on(texts("b", seed=1), "cuda"), learning_rate=1e-3)
    fit(second, texts("b", seed=1), learning_rate=1e-3)
    close(gathered(first), gathered(second), 1e-4)


def test_a_budget_on_a_gpu_rolls_back_and_outlives_a_stop() -> None:
    method, other = (
        EWCLoRA(steady("cuda"), strength={"budget": 1e-4, "rollback": True}, fisher={"samples": None}) for _ in range(2)
    )
    fit(method, on(texts("a"), "cuda"))
    other.load_state_dict(method.state_dict())
    for number, name in enumerate("bc", 1):  # the second begins where the first has left the multiplier
        task = on(texts(name, seed=number), "cuda")
        for each in (method, other):
            each.begin_task(task)
        train(method, task, learning_rate=0.05)
        other.load_progress(method.progress())
        method.finish()
        other.load_progress(method.progress())
        assert other.strength == method.strength
        for each in (method, other):
            each.end_task(task)
            assert each.boundary["rolled_back"] > 0


@pytest.mark.parametrize("form", FORMS)
def test_importance_of_a_gpu_is_that_of_a_cpu(form: str) -> None:
    pulled = []
    for device in ("cpu", "cuda"):
        model = filled(tiny_llama()).to(device)
        task = on(prompts(sizes=(4, 4)), device)
        found = measure(model, layers(model), task, form=form, labels="data", samples=None)
        factors = {name: (site.B.detach(), site.A.detach()) for name, site in sites(model).items()}
        pulled.append({name: found.forms[name].quadratic(*factors[name]) for name in factors})
    close(pulled[0], pulled[1], 1e-3)


@pytest.mark.parametrize("make", [EWCLoRA, EBLoRA, Share])
def test_a_base_in_bfloat16_is_protected_as_one_in_float32(make: Any) -> None:
    changes, rises = [], []
    for dtype in (torch.float32, torch.bfloat16):
        method = make(adapted(bare_llama().to(dtype), **LLAMA).to("cuda"), seed=0)
        for task in (prompts("a"), prompts("b", seed=1)):
            fit(method, on(task, "cuda"), learning_rate=1e-3, epochs=4)
        changes.append(torch.cat([site.delta().flatten().float() for site in method.sites.values()]))
        rises.append(float(method.extra_loss()))
    assert torch.cosine_similarity(*changes, dim=0) > 0.95
    assert (rises[0] > 0) is (rises[1] > 0)
    assert rises[1] == pytest.approx(rises[0], rel=0.3)


def trained(folder: Path, strength: float, **arguments: Any) -> dict[str, Tensor]:
    """EWC-LoRA after two tasks of Trainer on the GPU."""
    method = EWCLoRA(steady("cuda"), seed=0, strength=strength)
    for number, name in enumerate("ab"):
        rows = [{k: v[i] for k, v in b.items()} for b in texts(name, (8, 8), number).train for i in range(8)]
        fixed = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "num_train_epochs": 8, "report_to": "none"}
        fixed |= {"disable_tqdm": True, "save_strategy": "no", "label_names": ["labels"], "logging_strategy": "no"}
        training = TrainingArguments(str(folder), per_device_train_batch_size=4, **fixed | arguments)
        learn(Trainer(method.model, training, train_dataset=rows), method, name)
    return {name: site.delta().detach() for name, site in method.sites.items()}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_and_its_scaler_leave_the_spring_as_strong_as_it_is(precision: str, tmp_path: Path) -> None:
    exact, free = trained(tmp_path, 1000.0, bf16=False), trained(tmp_path, 0.01, bf16=False)
    mixed = trained(tmp_path, 1000.0, **{precision: True})
    assert apart(mixed, exact) < 0.2 * apart(free, exact)


@pytest.mark.parametrize("name", ["ewc-lora", "eblora", "share", "replay"])
def test_a_run_that_stopped_on_a_gpu_ends_as_if_it_had_not(
    name: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (
        settings(bert, tmp_path, "mood sport", method={"name": name}, output=str(tmp_path / part))
        for part in ("whole", "broken")
    )
    run(whole, quiet())
    with monkeypatch.context() as patch:
        crashing(patch, "fit", 2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(broken, quiet())
    run(broken, quiet())
    ours, theirs = left_by(broken.output), left_by(whole.output)
    assert ours.pop("config.yaml") != theirs.pop("config.yaml")
    assert ours == theirs
