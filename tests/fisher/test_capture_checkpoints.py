"""Captures under autocast and gradient checkpointing: the same gradients, each call once, and memory freed."""

import re
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from captured import Collected, caught, one_by_one, state_of
from models import MLP, bare_bert, bare_gpt2, bare_llama, bare_vit
from retain.fisher.capture import capture

pytestmark = pytest.mark.versions


def test_autocast_brings_inputs_and_gradients_of_two_types():
    model, inputs, products = MLP(), torch.randn(5, 4), []
    received = Collected()

    def receive(name, x, d):
        received(name, x, d)
        products.append((d.mT @ x).dtype)

    with capture(model, {"0": model[0]}, receive) as tape, torch.autocast("cpu", torch.bfloat16):
        tape.start(5)
        model(inputs).sum().backward()
    assert {t.dtype for t in received["0"][0]} == {torch.float32} == set(products)
    expected = one_by_one(model, model[0].weight, inputs, torch.sum)
    torch.testing.assert_close(received.per_example("0"), expected, rtol=0.05, atol=0.02)


class Checkpointed(nn.Module):
    """A linear map that is met twice in a checkpoint, and once outside of it."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.layer, self.head = reentrant, nn.Linear(4, 4), nn.Linear(4, 3)

    def block(self, x):
        return F.relu(self.layer(self.layer(x).tanh()), inplace=True)

    def forward(self, x):
        return self.head(self.layer(checkpoint(self.block, x, use_reentrant=self.reentrant)))


@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("reentrant", [False, True])
def test_every_call_in_a_checkpoint_is_handed_on_once(reentrant, backwards):
    model, received = Checkpointed(reentrant=False), Collected()
    inputs = torch.randn(5, 4, requires_grad=reentrant)
    expected = one_by_one(model, model.layer.weight, inputs, torch.sum)
    model.reentrant = reentrant
    with capture(model, {"layer": model.layer, "head": model.head}, received) as tape:
        tape.start(5)
        outputs = model(inputs)
        for _ in range(backwards):
            outputs.sum().backward(retain_graph=True)
            tape.finish()
    assert [x.shape[1] for x, _ in received["layer"]] == [3] * backwards and len(received["head"]) == backwards
    torch.testing.assert_close(received.per_example("layer"), backwards * expected)


class Blocked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(checkpoint(self.first, x, use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_a_checkpoint_that_lets_no_gradient_through_is_refused_by_name():
    model = Blocked()
    with capture(model, {"first": model.first, "head": model.head}, Collected()) as tape:
        tape.start(5)
        model(torch.randn(5, 4)).sum().backward()
        with pytest.raises(RuntimeError, match="first ran with gradients off.*use_reentrant=False does not"):
            tape.finish()


TRANSFORMERS = {
    "bert": (bare_bert, r"query|attention\.output\.dense", {"input_ids": (1, 40)}),
    "llama": (bare_llama, r"q_proj|down_proj", {"input_ids": (1, 40)}),
    "gpt2": (bare_gpt2, r"c_attn|c_fc", {"input_ids": (1, 40)}),
    "vit": (bare_vit, r"q_proj|query|fc1|intermediate\.dense", {"pixel_values": None}),
}


def batch_for(inputs):
    ((name, tokens),) = inputs.items()
    return {name: torch.randint(*tokens, (3, 6)) if tokens else torch.randn(3, 3, 8, 8)}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_checkpoints_of_transformers_stay_on_without_dropout(name, reentrant):
    build, pattern, inputs = TRANSFORMERS[name]
    model, batch, runs, found = build().eval(), batch_for(inputs), [], []
    modules = {n: m for n, m in model.named_modules() if re.search(f"({pattern})$", n)}
    assert len(modules) >= 4
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        count = [m.register_forward_hook(lambda *_: runs.append(on)) for m in modules.values()]  # noqa: B023
        before, received = state_of(model), Collected()
        with capture(model, modules, received) as tape:
            tape.start(3)
            model(**batch).logits.sin().sum().backward()
            tape.finish()
        assert {n: len(received[n]) for n in modules} == dict.fromkeys(modules, 1)
        assert state_of(model) == before
        found.append({n: received.per_example(n) for n in modules})
        for handle in count:
            handle.remove()
    torch.testing.assert_close(found[0], found[1])
    assert runs.count(True) > runs.count(False) == len(modules), "no layer ran again"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_checkpoints_in_training_mode_stay_as_they_are():
    model = bare_llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    layer = model.model.layers[0]
    before = layer._gradient_checkpointing_func
    with capture(model, {"q": layer.self_attn.q_proj}, received := Collected()) as tape:
        assert layer.training
        tape.start(2)
        model(input_ids=torch.randint(1, 40, (2, 5))).logits.sum().backward()
        tape.finish()
        assert layer.training
    assert layer._gradient_checkpointing_func is before and len(received["q"]) == 1


class Dropping(GradientCheckpointingLayer):
    """Asks itself, and no dropout below it, whether it is training."""

    def __init__(self):
        super().__init__()
        self.layer, self.gradient_checkpointing, self._gradient_checkpointing_func = nn.Linear(4, 3), True, checkpoint

    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


def test_a_checkpointed_layer_is_in_eval_mode_itself():
    model, inputs = Dropping().eval(), torch.randn(5, 4)
    ours = caught(model, {"layer": model.layer}, inputs, torch.sum).per_example("layer")
    torch.testing.assert_close(ours, one_by_one(model, model.layer.weight, inputs, torch.sum))


class Fresh(nn.Module):
    """A linear map whose input is memory of its own, of which ``alive`` counts what is still held."""

    def __init__(self, checkpointed):
        super().__init__()
        self.checkpointed, self.layer, self.memory = checkpointed, nn.Linear(4, 4), []

    def block(self, x):
        array = x.detach().numpy().copy()
        self.memory.append(weakref.ref(array))
        return self.layer(torch.from_numpy(array)).tanh()

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)

    def alive(self):
        return sum(reference() is not None for reference in self.memory)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_inputs_are_kept_from_their_forward_to_their_backward(checkpointed):
    model = Fresh(checkpointed)
    with capture(model, {"layer": model.layer}, lambda *_: None) as tape:
        tape.start(5)
        outputs = model(torch.randn(5, 4))
        assert model.alive() == (not checkpointed)
        outputs.sum().backward()
        assert model.alive() == 0
        tape.finish()
