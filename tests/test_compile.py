"""Models that torch.compile has compiled: trained and measured as they are without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from models import fit, layers, prompts, tiny_llama
from retain import METHODS
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
