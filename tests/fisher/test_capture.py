"""Per-example gradients from hooks against autograd, and that the model is left as it was found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captured import Collected, caught, one_by_one, state_of
from models import MLP, tiny_llama
from retain.fisher.capture import capture, only_these_require_grad


class Twice(nn.Module):
    """One linear map met twice in a forward; ``cut`` takes the second meeting out of the loss."""

    def __init__(self, cut=False):
        super().__init__()
        self.cut, self.shared, self.head = cut, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        first = self.shared(x).tanh()
        second = self.shared(first).tanh()
        return self.head(first if self.cut else second)


class InPlace(nn.Module):
    """The output of the linear map is overwritten by what follows."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.relu(self.layer(x), inplace=True))


class Windows(nn.Module):
    """The linear map meets every example in two windows, side by side in the leading dimension, as in Swin."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x.reshape(-1, 2)).tanh().reshape(len(x), -1)


def steered(module=None):
    """A model whose owner doubles a layer's output in a hook."""
    model = MLP()
    model[0].register_forward_hook(lambda m, args, output: 2 * output)
    return model


@pytest.mark.parametrize(
    "build, name",
    [(MLP, "2"), (Twice, "shared"), (lambda: Twice(cut=True), "shared"), (InPlace, "layer"), (steered, "0")],
)
@pytest.mark.parametrize("shape", [(5, 4), (5, 7, 4), (1, 7, 4), (5, 2, 3, 4)])
def test_gradients_of_each_example(build, name, shape):
    model, inputs = build().double(), torch.randn(shape, dtype=torch.float64)
    loss = lambda outputs: outputs.sin().sum()  # noqa: E731
    module = model.get_submodule(name)
    received = caught(model, {name: module}, inputs, loss)
    torch.testing.assert_close(received.per_example(name), one_by_one(model, module.weight, inputs, loss))


def test_a_module_called_twice_is_handed_on_once():
    """Its calls are places of one example, so the cross term of their gradients is part of its square."""
    model = Twice()
    received = caught(model, {"shared": model.shared}, torch.randn(5, 4), torch.sum)
    ((inputs, gradients),) = received["shared"]
    assert inputs.shape == gradients.shape == (5, 2, 4)


def test_several_backwards_of_one_forward():
    model, inputs, received = MLP(), torch.randn(5, 4), Collected()
    with capture(model, {"0": model[0]}, received) as tape:
        tape.start(5)
        outputs = model(inputs)
        for c in range(3):
            outputs[:, c].sum().backward(retain_graph=True)
            tape.finish()
    assert len(received["0"]) == 3
    expected = one_by_one(model, model[0].weight, inputs, torch.sum)
    torch.testing.assert_close(received.per_example("0"), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = tiny_llama()
    before = state_of(model)
    modules = {n: m for n, m in model.named_modules() if n.endswith("q_proj")}
    tokens = torch.randint(1, 40, (2, 5))
    try:
        with capture(model, modules, Collected()) as tape:
            tape.start(2)
            model(input_ids=tokens).logits.sum().backward()
            assert not any(p.requires_grad for p in model.parameters())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert state_of(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_nothing_below_the_first_module_joins_the_graph():
    model, joined = MLP(), []
    model[1].register_forward_hook(lambda m, args, output: joined.append(output.requires_grad))
    with capture(model, {"2": model[2]}, Collected()):
        assert model(torch.randn(2, 4)).requires_grad
    assert joined == [False]


def test_only_these_require_grad():
    model = MLP()
    model[0].weight.requires_grad_(False)
    with only_these_require_grad(model, [model.get_parameter("0.weight")]):
        assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.weight"]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]


def test_examples_folded_into_windows_are_refused_by_name():
    model, inputs = Windows(), torch.randn(5, 4)
    with pytest.raises(ValueError, match="layer: its leading dimension is 10 in a batch of 5 .*one_by_one=True"):
        caught(model, {"layer": model.layer}, inputs, torch.sum)
    alone = [caught(model, {"layer": model.layer}, x[None], torch.sum).per_example("layer") for x in inputs]
    torch.testing.assert_close(torch.cat(alone), one_by_one(model, model.layer.weight, inputs, torch.sum))


@pytest.mark.parametrize("dtype, kept", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_gradients_are_handed_on_in_float32_or_better(dtype, kept):
    model = MLP().to(dtype)
    received = caught(model, {"0": model[0]}, torch.randn(2, 4, dtype=dtype), torch.sum)
    assert {t.dtype for t in received["0"][0]} == {kept}


def test_what_a_lower_type_is_asked_for():
    model, received = MLP(), Collected()
    with capture(model, {"0": model[0]}, received, torch.bfloat16) as tape, torch.autocast("cpu", torch.bfloat16):
        tape.start(2)
        model(torch.randn(2, 4)).sum().backward()
    assert {t.dtype for t in received["0"][0]} == {torch.bfloat16}
