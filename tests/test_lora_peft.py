"""The past under all that peft and torch do to a model: other adapters, merging, moving, copying, checkpointing."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from torch import Tensor

import models
from adapters import CASES, Case, changes, close, generator, outputs, twin, with_past
from retain.lora import sites

pytestmark = pytest.mark.versions


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def with_second(model: PeftModel, **config: object) -> PeftModel:
    """``model`` with a fresh second adapter (B = 0), active."""
    second = copy.deepcopy(model.peft_config["default"])
    for key, value in config.items():
        setattr(second, key, value)
    model.add_adapter("second", second)
    model.set_adapter("second")
    return model


def weights(model: PeftModel) -> list[Tensor]:
    return [site.layer.get_base_layer().weight.detach().clone() for site in sites(model).values()]


def test_the_past_is_on_under_any_adapter_and_off_without(case: Case) -> None:
    model = with_past(case.model())
    past_alone = outputs(twin(case, changes(model, present=False)), case.batch)
    full, base = outputs(model, case.batch), outputs(case.bare(), case.batch)
    assert (full - past_alone).abs().max() > 1e-3 < (past_alone - base).abs().max()
    close(outputs(with_second(model), case.batch), past_alone)
    with model.disable_adapter():
        close(outputs(model, case.batch), base)
    close(outputs(model, case.batch), past_alone)
    model.set_adapter("default")
    close(outputs(model, case.batch), full)
    model.base_model.disable_adapter_layers()
    close(outputs(model, case.batch), base)
    model.base_model.enable_adapter_layers()
    close(outputs(model, case.batch), full)


def test_mixed_batches_get_the_past_row_by_row(case: Case) -> None:
    model = with_second(with_past(case.model()))
    second = outputs(model, case.batch)
    model.set_adapter("default")
    expected = torch.stack(
        [outputs(model, case.batch)[0], outputs(case.bare(), case.batch)[1], second[2], outputs(model, case.batch)[3]]
    )
    names = ["default", "__base__", "second", "default"]
    close(outputs(model, case.batch, adapter_names=names), expected)


@pytest.mark.parametrize("adapter", ["default", "second"])
def test_merging_and_unmerging_is_a_round_trip(case: Case, adapter: str) -> None:
    model = with_second(with_past(case.model()))
    model.set_adapter(adapter)
    before, unmerged = outputs(model, case.batch), weights(model)
    for _ in range(2):
        model.merge_adapter()
        assert not any(torch.equal(a, b) for a, b in zip(weights(model), unmerged, strict=True))
        close(outputs(model, case.batch), before)
        model.unmerge_adapter()
        for a, b in zip(weights(model), unmerged, strict=True):
            close(a, b, 1e-6)
        close(outputs(model, case.batch), before)


def test_merging_twice_merges_once() -> None:
    case = CASES["bert"]
    model = with_past(case.model())
    before = outputs(model, case.batch)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    close(outputs(model, case.batch), before)


def test_merging_meets_disabling_in_either_order(case: Case) -> None:
    model = with_past(case.model())
    full, base = outputs(model, case.batch), outputs(case.bare(), case.batch)
    model.merge_adapter()
    with model.disable_adapter():
        close(outputs(model, case.batch), base)
    close(outputs(model, case.batch), full)
    with model.disable_adapter():
        model.merge_adapter()
        close(outputs(model, case.batch), base)
    close(outputs(model, case.batch), full)


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_and_unload_leaves_a_plain_model_with_the_past(case: Case, safe_merge: bool) -> None:
    model = with_past(case.model())
    expected, dense = outputs(model, case.batch), changes(model)
    plain = model.merge_and_unload(safe_merge=safe_merge)
    assert type(plain) is type(case.bare())
    assert plain.state_dict().keys() == case.bare().state_dict().keys()
    assert not any("past" in n for n, _ in plain.named_buffers())
    close(outputs(plain, case.batch), expected)
    for name, weight in twin(case, dense).state_dict().items():
        close(plain.state_dict()[name], weight, 1e-6)


def test_layers_that_the_active_adapter_leaves_out_keep_their_past() -> None:
    case = CASES["bert"]
    model = with_second(with_past(case.model()), target_modules={"query"})
    expected = outputs(model, case.batch)
    assert {n.rsplit(".", 1)[-1] for n in sites(model)} == {"query"}
    model.merge_adapter()
    close(outputs(model, case.batch), expected)
    with model.disable_adapter():
        close(outputs(model, case.batch), outputs(case.bare(), case.batch))
    close(outputs(model, case.batch), expected)
    close(outputs(model.merge_and_unload(), case.batch), expected)


def test_a_safe_merge_refuses_what_is_not_finite() -> None:
    model = with_past(CASES["bert"].model())
    unmerged = weights(model)
    list(sites(model).values())[-1].B.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    for a, b in zip(weights(model), unmerged, strict=True):
        close(a, b, 1e-6)


def test_a_merged_adapter_does_not_fold() -> None:
    model = with_past(CASES["bert"].model())
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"query: .*merged.*unmerge_adapter"):
        next(iter(sites(model).values())).fold(generator())


def test_unload_drops_everything(case: Case) -> None:
    plain = with_past(case.model()).unload()
    assert all(torch.equal(plain.state_dict()[n], w) for n, w in case.bare().state_dict().items())


def test_an_adapter_of_another_scale_counts_the_past_in_its_own_units() -> None:
    case = CASES["bert"]
    model = with_second(with_past(case.model()), lora_alpha=20)
    models.filled(model, seed=30)
    before, dense = outputs(model, case.batch), changes(model)
    close(outputs(twin(case, dense), case.batch), before)
    for name, site in sites(model).items():
        close(site.delta(), dense[name], 1e-6)
        site.fold(generator())
        close(site.delta(), dense[name], 1e-6)
    close(outputs(model, case.batch), before)


def test_deleting_an_adapter_deletes_its_own_past_only() -> None:
    case = CASES["bert"]
    model = with_second(with_past(case.model()))
    model.delete_adapter("second")
    model.set_adapter("default")
    assert all(len(s.past[1]) for s in sites(model).values())
    with_second(model).delete_adapter("default")
    model.set_adapter("second")
    close(outputs(model, case.batch), outputs(case.bare(), case.batch))
    before = outputs(models.filled(model), case.batch)
    model.merge_adapter()
    close(outputs(model, case.batch), before)
    model.unmerge_adapter()
    model.load_state_dict(model.state_dict())
    with_past(model)
    assert all(len(s.past[1]) for s in sites(model).values())
    assert not torch.allclose(outputs(model, case.batch), before)


def test_rescaling_an_adapter_rescales_its_past() -> None:
    case = CASES["bert"]
    model = with_past(case.model())
    halves = {name: change / 2 for name, change in changes(model).items()}
    with rescale_adapter_scale(model, 0.5):
        close(outputs(model, case.batch), outputs(twin(case, halves), case.batch))


def test_the_past_moves_with_the_model_and_stays_out_of_its_state() -> None:
    case = CASES["bert"]
    model = with_past(case.model())
    before = outputs(model, case.batch)
    assert not any("past" in name for name in model.state_dict())
    assert not any("past" in name for name, _ in model.named_parameters())
    model.to(torch.float64)
    assert all(t.dtype == torch.float64 for s in sites(model).values() for t in s.past)
    close(outputs(model, case.batch), before.double())
    model.to("meta")
    assert all(t.is_meta for s in sites(model).values() for t in s.past)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_lives_on_its_own(how: str) -> None:
    case = CASES["gpt2"]
    model = with_past(case.model())
    before, file = outputs(model, case.batch), io.BytesIO()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    close(outputs(other, case.batch), before)
    for site in sites(other).values():
        site.set_past(*(2 * t for t in site.past))
        site.fold(generator())
    assert not torch.allclose(outputs(other, case.batch), before)
    close(outputs(model, case.batch), before)
    assert all(s.past[0].shape[1] == 4 for s in sites(model).values())


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    case = CASES[name]
    model = with_past(case.model(lora_dropout=0.1)).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        torch.manual_seed(7)
        model(**case.batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    for a, b in zip(*gradients, strict=True):
        close(a, b, 1e-6)


def test_low_precision_runs_the_past_too() -> None:
    case = CASES["llama"]
    model = with_past(case.model())
    before, base = outputs(model, case.batch), outputs(case.bare(), case.batch)
    with torch.autocast("cpu", torch.bfloat16):
        close(outputs(model, case.batch).float(), before, 0.05)
    model(**case.batch).loss.backward()
    model.get_base_model().to(torch.bfloat16)
    after = outputs(model, case.batch)
    assert after.dtype == torch.bfloat16
    close(after.float(), before, 0.05)
    assert (base - before).abs().max() > 0.2, "the tolerance can tell the past from none"


def test_half_precision_bases_keep_full_precision_pasts() -> None:
    case = CASES["llama"]
    targets = ["q_proj", "v_proj"]
    model = models.adapted(case.bare().to(torch.bfloat16), target_modules=targets, task_type="CAUSAL_LM")
    with_past(models.filled(model))
    assert {t.dtype for s in sites(model).values() for t in (s.A, s.B, *s.past)} == {torch.float32}
    assert outputs(model, case.batch).dtype == torch.bfloat16
    assert {w.dtype for w in weights(model)} == {torch.bfloat16}
