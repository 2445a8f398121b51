"""B as s Q on stock factors: the parametrisation and its inverse, and files of plain factors that go in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments

from adapters import CASES, generator, outputs
from retain import EBLoRA, Sequential
from retain.balanced import Balanced, balance, originals
from retain.callback import ContinualCallback
from retain.checkpoints import ORIGINALS, write_beside
from retain.lora import load_adapter, sites


@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 1, 1)])
@pytest.mark.parametrize("s", [0.003, -2.0])
def test_the_inverse_of_a_balanced_weight_is_orthonormal_and_gives_it_back(shape: tuple[int, ...], s: float) -> None:
    Q = torch.linalg.qr(torch.randn(9, 4)).Q
    weight = (s * Q).reshape(shape)
    found, size = Balanced().right_inverse(weight)
    torch.testing.assert_close(Balanced()(found, size), weight, rtol=1e-6, atol=0)
    assert size.item() == pytest.approx(abs(s)) and found.is_contiguous()
    torch.testing.assert_close(found.flatten(1).T @ found.flatten(1), torch.eye(4), atol=1e-6, rtol=0)


def test_the_inverse_of_zeros_is_zero_times_axes_and_of_any_other_weight_the_weight() -> None:
    Q, s = Balanced().right_inverse(torch.zeros(5, 2))
    assert s.item() == 0 and torch.equal(Q, torch.eye(5, 2))
    weight = torch.randn(5, 2)
    torch.testing.assert_close(Balanced()(*Balanced().right_inverse(weight)), weight)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_plain_adapter_file_is_read_into_a_balanced_model_past_and_present(case: Any, tmp_path: Path) -> None:
    """As Trainer does when it continues; peft alone would take every B for an unexpected key."""
    saved, model = (case.model() for _ in range(2))
    for adapter in (saved, model):
        EBLoRA(adapter)
    for site in sites(saved).values():
        B, A = site.B.detach().clone(), site.A.detach().clone()
        site.fold(generator())
        site.set_factors(0.5 * B, 2.0 * A)
    saved.save_pretrained(tmp_path)
    result = model.load_adapter(tmp_path, "default", is_trainable=True)
    assert result.unexpected_keys == []
    for name, site in sites(saved).items():
        torch.testing.assert_close(sites(model)[name].B, site.B, rtol=1e-6, atol=1e-7)
        assert torch.equal(sites(model)[name].A, site.A)
        assert all(torch.equal(a, b) for a, b in zip(sites(model)[name].past, site.past, strict=True))
    torch.testing.assert_close(outputs(model, case.batch), outputs(saved, case.batch), atol=1e-5, rtol=0)
    stock = load_adapter(case.bare(), tmp_path)
    torch.testing.assert_close(outputs(stock, case.batch), outputs(saved, case.batch), atol=1e-5, rtol=0)


def test_a_second_method_on_a_balanced_model_finds_it_so() -> None:
    model = CASES["bert"].model()
    one, two = EBLoRA(model), EBLoRA(model)
    assert all(originals(site)[0] is originals(two.sites[name])[0] for name, site in one.sites.items())


def test_another_parametrisation_of_b_is_refused_by_name() -> None:
    model = CASES["bert"].model()
    site = next(iter(sites(model).values()))
    torch.nn.utils.parametrize.register_parametrization(site.layer.lora_B["default"], "weight", torch.nn.Identity())
    with pytest.raises(ValueError, match=f"{site.name}: B has another parametrisation already"):
        balance(site)


class Optimizer(torch.optim.SGD):
    """What a callback is given beside the state."""


def continued(method: Any, folder: Path, step: int = 3) -> None:
    """What Trainer calls when it has loaded a checkpoint."""
    optimizer = Optimizer(method.model.parameters(), lr=0.1)
    arguments, state = TrainingArguments(str(folder), report_to="none"), TrainerState(global_step=step)
    callback = ContinualCallback(method)
    callback.on_train_begin(arguments, state, None, optimizer=optimizer)
    callback.on_train_end(arguments, state, None)


def test_what_factors_are_made_of_goes_beside_a_checkpoint_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    method, other = (EBLoRA(CASES["bert"].model()) for _ in range(2))
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    write_beside(tmp_path / "checkpoint-3", method, {})
    assert len(load_file(checkpoint / ORIGINALS)) == 2 * len(method.sites)
    for name, site in other.sites.items():
        site.set_factors(method.sites[name].B.detach() * (1 + 1e-7), site.A.detach())
    continued(other, tmp_path)
    for name, site in other.sites.items():
        assert all(torch.equal(a, b) for a, b in zip(originals(site), originals(method.sites[name]), strict=True))


def test_originals_that_are_missing_or_of_another_training_are_left_with_a_warning(tmp_path: Path) -> None:
    method = EBLoRA(CASES["bert"].model())
    before = {name: site.B.detach().clone() for name, site in method.sites.items()}
    with pytest.warns(UserWarning, match="originals.safetensors is missing or of another training"):
        continued(method, tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    other = EBLoRA(CASES["bert"].model())
    for site in other.sites.values():
        site.set_factors(2 * site.B.detach(), site.A.detach())
    write_beside(tmp_path / "checkpoint-3", other, {})
    with pytest.warns(UserWarning, match="is missing or of another training"):
        continued(method, tmp_path)
    assert all(torch.equal(site.B, before[name]) for name, site in method.sites.items())


def test_without_parametrised_factors_nothing_is_written(tmp_path: Path) -> None:
    method = Sequential(CASES["bert"].model())
    write_beside(tmp_path / "checkpoint-3", method, {})
    assert list(tmp_path.iterdir()) == []
