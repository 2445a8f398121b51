"""Forwards that are ready: what they compare, when noise is new, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from architectures import CASES, TEXTS
from retain.task import AmongTexts, NoisePrediction, forward

STEPS = 50


class Scheduler:
    """x + noise, so that what was drawn can be told from what the model is given."""

    def __init__(self, prediction_type: str = "epsilon") -> None:
        self.config = SimpleNamespace(num_train_timesteps=STEPS, prediction_type=prediction_type)

    def add_noise(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return clean + noise

    def get_velocity(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return noise - 2 * clean


class Echo(nn.Module):
    """Gives what it was given, behind it a variance, and keeps the time."""

    def forward(self, sample: Tensor, time: Tensor, **others: Any) -> Any:
        self.time, self.others = time, others
        return SimpleNamespace(sample=torch.cat([sample, sample.exp()], 1))


def rows(*numbers: int) -> dict[str, Tensor]:
    found = [torch.full((1, 4, 4), float(n)) for n in numbers]
    return {"sample": torch.stack(found), "row": torch.tensor(numbers), "class_labels": torch.tensor(numbers)}


def test_the_model_is_given_noise_and_has_to_say_it():
    model, noise = Echo(), NoisePrediction(Scheduler())
    outputs, targets = noise(model, rows(3, 1))
    torch.testing.assert_close(outputs, rows(3, 1)["sample"] + targets)
    assert list(model.others) == ["class_labels"]


@pytest.mark.parametrize(
    ("kind", "target"), [("v_prediction", lambda x, e: e - 2 * x), ("sample", lambda x, e: x)], ids=["v", "sample"]
)
def test_what_a_scheduler_predicts(kind, target):
    clean = rows(5, 6)["sample"]
    model = Echo().eval()
    _, noise = NoisePrediction(Scheduler())(model, rows(5, 6))
    _, targets = NoisePrediction(Scheduler(kind))(model, rows(5, 6))
    torch.testing.assert_close(targets, target(clean, noise))
    with pytest.raises(ValueError, match="prediction_type 'flow' is not supported; known: epsilon, v_prediction"):
        NoisePrediction(Scheduler("flow"))(model, rows(1))


def test_in_eval_mode_a_row_has_its_own_noise_whatever_stands_beside_it():
    model = Echo().eval()
    _, together = NoisePrediction(Scheduler())(model, rows(4, 9, 2))
    times = model.time
    torch.manual_seed(5)
    _, alone = NoisePrediction(Scheduler())(model, rows(9))
    assert torch.equal(alone[0], together[1]) and model.time[0] == times[1]
    _, other = NoisePrediction(Scheduler(), seed=7)(model, rows(9))
    assert not torch.equal(other, alone)


def test_in_training_mode_noise_is_new_every_time():
    model = Echo().train()
    first, second = (NoisePrediction(Scheduler())(model, rows(4))[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_noise_is_normal_and_every_timestep_occurs():
    model, many = Echo().eval(), {"sample": torch.zeros(4000, 1, 2, 2), "row": torch.arange(4000)}
    _, noise = NoisePrediction(Scheduler())(model, many)
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert model.time.unique().tolist() == list(range(STEPS))
    with pytest.raises(ValueError, match="`sample` .* and `row`"):
        NoisePrediction(Scheduler())(model, {"sample": torch.zeros(1, 1, 2, 2)})


def test_a_contrastive_loss_is_refused_and_fixed_texts_are_measured_one_by_one():
    case = CASES["clip"]
    model, (batch, _) = case.bare(), case.task().train
    with pytest.raises(ValueError, match="CLIPModel compares the rows of a batch .*AmongTexts"):
        forward(model, batch | TEXTS)
    among = AmongTexts(TEXTS)
    with pytest.raises(ValueError, match="one_by_one=True"):
        among(model.eval(), batch)
    outputs, targets = among(model.train(), batch)
    assert outputs.shape == (3, 3) and torch.equal(targets, batch["labels"])
    with torch.no_grad():
        torch.testing.assert_close(among(model.eval(), batch)[0], outputs)
