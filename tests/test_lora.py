"""The algebra of a site, what is refused, and what trains."""

from __future__ import annotations

import math
import re
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import models
from adapters import CASES, Case, changes, close, generator, outputs, twin, with_past
from retain.lora import Site, adapter_parameters, add_lora, lora_config_fields, sites


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def one_site(folds: int = 0, **lora: Any) -> Site:
    """The wide layer (48, 32) of a classifier, with a past."""
    return sites(with_past(CASES["bert"].model(**lora), folds))["bert.encoder.layer.0.intermediate.dense"]


def test_sites_have_the_names_and_the_order_of_the_base_model(case: Case) -> None:
    here = sites(case.model())
    assert list(here) == [n for n, _ in case.bare().named_modules() if n in here]
    assert len(here) >= 4


def test_asking_again_changes_nothing(case: Case) -> None:
    model = with_past(case.model())
    first, logits = sites(model), outputs(model, case.batch)
    assert sites(model) == first
    assert all(len(s.past[1]) == len(s.A) for s in first.values())
    assert torch.equal(outputs(model, case.batch), logits)


def test_patterns_give_every_site_its_own_rank_and_scale() -> None:
    plain, rooted = sites(CASES["patterns"].model()), sites(CASES["rslora"].model())
    ranks = {"query": 2, "value": 4, "0.intermediate.dense": 4, "1.intermediate.dense": 6}
    alphas = {"query": 8, "value": 3, "dense": 8}
    for name, site in plain.items():
        rank = next(r for n, r in ranks.items() if name.endswith(n))
        alpha = next(a for n, a in alphas.items() if name.endswith(n))
        assert site.A.shape[0] == site.B.shape[1] == rooted[name].A.shape[0] == rank
        assert site.scale == alpha / rank
        assert rooted[name].scale == alpha / math.sqrt(rank)


def test_two_folds_keep_the_function_and_add_up_to_the_sum_of_products(case: Case) -> None:
    model = case.model()
    here = sites(model)
    summed = {name: torch.zeros_like(s.delta()) for name, s in here.items()}
    for seed in (1, 2):
        models.filled(model, seed)
        for name, s in here.items():
            summed[name] += s.layer.scaling["default"] * (s.B @ s.A).detach()
        before = outputs(model, case.batch)
        assert [s.fold(generator()) for s in here.values()] == [0.0] * len(here)
        close(outputs(model, case.batch), before)
        assert not any(s.B.any() for s in here.values())
    for name, s in here.items():
        close(s.delta(), summed[name], 1e-6)
        assert s.past[0].shape[1] == 2 * s.B.shape[1]
    close(outputs(model, case.batch), outputs(twin(case, summed), case.batch))


def test_factors_and_delta_are_past_and_present_as_one(case: Case) -> None:
    model = with_past(case.model(), folds=2)
    for name, change in changes(model).items():
        site = sites(model)[name]
        B, A = site.factors()
        assert not B.requires_grad and not A.requires_grad
        assert torch.equal(B[:, : site.B.shape[1]], site.B) and torch.equal(A[: len(site.A)], site.A)
        close(site.scale * B @ A, change, 1e-6)
        close(site.delta(), change, 1e-6)
    close(outputs(model, case.batch), outputs(twin(case, changes(model)), case.batch))


def test_a_fresh_adapter_is_stock_lora_s_from_the_given_generator() -> None:
    site, state = one_site(), torch.get_rng_state()
    site.reset(generator(5))
    first = site.A.detach().clone()
    bound = 1 / math.sqrt(32)
    assert 0.9 * bound < first.abs().max() <= bound
    assert not site.B.any()
    site.reset(generator(6))
    assert not torch.equal(site.A, first)
    site.reset(generator(5))
    assert torch.equal(site.A, first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        made = out if isinstance(out, tuple | list) else [out]
        self.largest = max([self.largest, *(t.numel() for t in made if isinstance(t, Tensor))])
        return out


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_a_capped_past_is_the_best_of_its_rank_and_says_what_was_lost(rank: int) -> None:
    site = one_site(folds=2)
    dense = site.delta().double()
    singular = torch.linalg.svdvals(dense)
    with Sizes() as made:
        error = site.fold(generator(), rank)
    assert made.largest < dense.numel(), "no (out, in) matrix"
    assert error == pytest.approx((singular[rank:].norm() / singular.norm()).item(), rel=1e-4)
    assert (site.delta() - dense).norm() / dense.norm() == pytest.approx(error, rel=1e-4)
    assert [t.shape for t in site.past] == [(48, rank), (rank, 32)]


def test_a_cap_that_does_not_bind_changes_nothing() -> None:
    site = one_site(folds=2)
    before = site.factors()
    assert site.fold(generator(), rank=12) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(site.past, before, strict=True))


def test_dropout_does_not_touch_the_past() -> None:
    case = CASES["llama"]
    model = case.model(lora_dropout=0.5)
    before = outputs(model, case.batch)
    model.train()
    assert not torch.allclose(model(**case.batch).logits, before, atol=1e-3), "dropout drops the present"
    for site in sites(model).values():
        site.fold(generator())
    close(model(**case.batch).logits.detach(), before)


def test_only_the_present_trains_whatever_adapter_was_set() -> None:
    case = CASES["bert"]
    model = with_past(case.model())
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    model.set_adapter("default")
    model(**case.batch).loss.backward()
    assert all(s.A.grad is not None and s.B.grad is not None for s in sites(model).values())
    assert not any(t.requires_grad for s in sites(model).values() for t in s.past)
    mine = {n for n, p in model.named_parameters() if p.requires_grad}
    assert mine == set(adapter_parameters(model))
    assert sum("classifier" in n for n in mine) == 2


@pytest.mark.parametrize("shapes", [((48, 3), (2, 32)), ((47, 2), (2, 32)), ((48, 2), (2, 31))])
def test_a_past_of_another_layer_is_refused(shapes: tuple) -> None:
    site = one_site()
    with pytest.raises(ValueError, match=r"0\.intermediate\.dense.*do not fit"):
        site.set_past(*(torch.zeros(s) for s in shapes))


def test_a_diverged_adapter_is_not_kept() -> None:
    site = one_site(folds=1)
    past = site.past
    site.B.data[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"0\.intermediate\.dense: .*not finite"):
        site.fold(generator())
    assert all(a is b for a, b in zip(site.past, past, strict=True))


def test_a_past_is_a_copy() -> None:
    site, B, A = one_site(), torch.ones(48, 2), torch.ones(2, 32)
    site.set_past(B, A)
    B.zero_()
    assert site.past[0].all()


class Doubled(nn.Module):
    """A parametrisation that can be undone."""

    def forward(self, X: Tensor) -> Tensor:
        return 2 * X

    def right_inverse(self, X: Tensor) -> Tensor:
        return X / 2


class Squared(nn.Module):
    """A parametrisation that cannot."""

    def forward(self, X: Tensor) -> Tensor:
        return X**2


def test_parametrised_factors_fold_exactly() -> None:
    site = one_site(folds=1)
    parametrize.register_parametrization(site.layer.lora_B["default"], "weight", Doubled())
    before = site.delta()
    site.fold(generator())
    assert not site.B.any()
    close(site.delta(), before, 1e-6)


def test_factors_that_cannot_be_set_are_no_silent_nothing() -> None:
    site = one_site()
    parametrize.register_parametrization(site.layer.lora_B["default"], "weight", Squared(), unsafe=True)
    with pytest.raises(RuntimeError, match="right_inverse"):
        site.reset(generator())


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "dora": (models.tiny_bert, {"use_dora": True}, r"bert\.encoder\.layer\.0\.\S+: .*plain LoRA.*DoRA"),
    "bias": (models.tiny_bert, {"lora_bias": True}, r"bert\.encoder\.layer\.0\.\S+: .*lora_bias"),
    "rank": (models.tiny_bert, {"r": 33}, r"attention\.self\.query: rank 33 is larger .*\(32, 32\)"),
    "embedding": (models.tiny_bert, {"target_modules": ["word_embeddings"]}, r"word_embeddings: .*Embedding.*Linear"),
    "parameter": (
        models.tiny_bert,
        {"target_modules": [], "target_parameters": ["query.weight"]},
        r"query: .*ParamWrapper",
    ),
    "pissa": (models.tiny_bert, {"init_lora_weights": "pissa"}, r"'pissa' changes the base.*gaussian"),
    "olora": (models.tiny_bert, {"init_lora_weights": "olora"}, r"'olora' changes the base.*gaussian"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_plain_lora_on_a_linear_map_is_refused_by_name(kind: str) -> None:
    build, lora, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        sites(build(**lora))


@pytest.mark.parametrize("initialisation", [True, False, "gaussian", "orthogonal"])
def test_initialisations_that_keep_the_base_are_taken(initialisation: bool | str) -> None:
    assert sites(models.tiny_bert(init_lora_weights=initialisation))


def test_other_adapters_and_none_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a model with a LoRA adapter .* got a BertForSequenceClassification"):
        sites(models.bare_bert())
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="LoRA.*PROMPT_TUNING"):
        sites(peft.get_peft_model(models.bare_llama(), prompts))
    scales = peft.IA3Config(target_modules=["value"], feedforward_modules=[])
    with pytest.raises(ValueError, match="LoRA.*IA3"):
        sites(peft.get_peft_model(models.bare_bert(), scales))


def test_several_active_adapters_are_refused() -> None:
    model = models.tiny_bert(modules_to_save=None, task_type=None)
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"exactly one adapter.*default.*second"):
        sites(model)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["quary"], r"'quary'.*dense, key, query, value.*did you mean 'query'"),
        (["query", "valeu"], r"'valeu'.*did you mean 'value'"),
        (r".*\.nothing", r"nothing.*dense, key, query, value"),
    ],
)
def test_targets_that_match_nothing_are_named_with_the_nearest(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(models.bare_bert(), target_modules=targets)


def test_the_linear_maps_of_gpt2_are_known() -> None:
    with pytest.raises(ValueError, match=r"c_attn, c_fc, c_proj.*did you mean 'c_attn'"):
        add_lora(models.bare_gpt2(), target_modules=["c_atn"])


@pytest.mark.parametrize("lora", [{"r": 64}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_a_refused_model_is_left_as_it_was(lora: dict) -> None:
    model, before = models.bare_bert(), models.bare_bert().state_dict()
    with pytest.raises(ValueError):
        add_lora(model, target_modules=["query"], **lora)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_add_lora_is_get_peft_model() -> None:
    model = add_lora(models.bare_bert(), r=3, target_modules="all-linear", task_type="SEQ_CLS")
    assert len(sites(model)) == 13
    assert {"r", "lora_alpha", "target_modules"} < lora_config_fields()
    assert re.search(r"rank 64 is larger", str(pytest.raises(ValueError, add_lora, models.bare_bert(), r=64).value))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_no_adapter_keeps_are_refused(bias: str) -> None:
    with pytest.raises(ValueError, match=f"bias='{bias}' trains biases"):
        sites(models.tiny_bert(bias=bias))
