"""Every kind of linear map that can be captured, against autograd, and the others, by name."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from captured import Collected, caught, one_by_one
from retain.fisher.capture import capture

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1), "bias": False},
    {"kernel_size": 2, "dilation": (2, 1), "padding": 1},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "reflect"},
    {"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 1},
]


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolutions(settings):
    model = nn.Sequential(nn.Conv2d(2, 3, **settings), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2)).double()
    for name, inputs in (("0", images(3, 2, 7, 6)), ("2", images(3, 2, 7, 6)), ("0", images(1, 2, 7, 6))):
        module, loss = model.get_submodule(name), lambda outputs: outputs.sin().sum()
        ours = caught(model, {name: module}, inputs, loss).per_example(name)
        assert ours.shape[1:] == (module.out_channels, module.weight[0].numel())
        torch.testing.assert_close(ours, one_by_one(model, module.weight, inputs, loss).flatten(2))


def test_a_convolution_of_one_image_without_a_batch():
    model, inputs = nn.Conv2d(2, 3, 3).double(), images(2, 5, 5)
    received = Collected()
    with capture(model, {"": model}, received) as tape:
        tape.start(1)
        model(inputs).sin().sum().backward()
    expected = torch.autograd.grad(model(inputs).sin().sum(), model.weight)[0]
    torch.testing.assert_close(received.per_example("")[0], expected.flatten(1))


def test_an_adapter_on_a_convolution():
    base = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).double()
    module, inputs = model.get_submodule("base_model.model.0"), images(3, 2, 6, 5)
    ours = caught(model, {"0": module}, inputs, torch.sum).per_example("0")
    weight = module.base_layer.weight.requires_grad_()
    torch.testing.assert_close(ours, one_by_one(model, weight, inputs, torch.sum).flatten(2))


def test_conv1d_has_the_shape_of_a_linear_map():
    model, inputs = nn.Sequential(Conv1D(5, 4), nn.Tanh(), Conv1D(3, 5)).double(), images(6, 2, 4)
    ours = caught(model, {"0": model[0]}, inputs, torch.sum).per_example("0")
    torch.testing.assert_close(ours, one_by_one(model, model[0].weight, inputs, torch.sum).mT)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(input=self.layer(input=x).tanh())


def test_modules_called_by_keyword():
    model, inputs = ByKeyword(), torch.randn(5, 4)
    ours = caught(model, {"layer": model.layer}, inputs, torch.sum).per_example("layer")
    torch.testing.assert_close(ours, one_by_one(model, model.layer.weight, inputs, torch.sum))


def test_two_modules_with_one_weight_are_two_maps():
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(5, 4)
    model[2].weight = model[0].weight
    received = caught(model, {"0": model[0], "2": model[2]}, inputs, torch.sum)
    both = received.per_example("0") + received.per_example("2")
    torch.testing.assert_close(both, one_by_one(model, model[0].weight, inputs, torch.sum))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: {"c": nn.Conv2d(4, 4, 3, groups=2)}, "c: a convolution in 2 groups .* known: groups=1"),
        (lambda: {"c": nn.Conv1d(4, 4, 3)}, "c: a Conv1d is not supported; known: Linear, Conv1D, Conv2d"),
        (lambda: {"e": nn.Embedding(4, 4)}, "e: a Embedding is not supported"),
        (lambda: dict.fromkeys(["a", "b"], nn.Linear(4, 4)), "a and b are one module"),
    ],
)
def test_other_kinds_are_refused_by_name(build, complaint):
    modules = build()
    model = nn.ModuleList(modules.values())
    with pytest.raises(ValueError, match=complaint), capture(model, modules, Collected()):
        pass
    assert all(p.requires_grad for p in model.parameters())


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_an_output_that_is_no_tensor_is_refused_by_name():
    model = nn.Sequential(Pair())
    with pytest.raises(ValueError, match="0: a linear map gives a tensor, this one a tuple"):
        caught(model, {"0": model[0]}, torch.randn(2, 4), torch.sum)
