"""The Fisher information against one example at a time in float64: models, parameters, likelihoods of all kinds."""

import re

import pytest
import torch
from torch import nn

from models import (
    CLASSES,
    MLP,
    Twice,
    adapted,
    bare_bert,
    filled,
    images,
    layers,
    parameters,
    prompts,
    seeded,
    texts,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_mlp,
    tiny_vit,
    vectors,
)
from oracles import fisher_by_loop, lora_fisher_by_loop, relative_error
from retain.fisher import parameter_fisher, weight_fisher
from retain.lora import sites
from retain.task import CrossEntropy, SquaredError, Task

CASES = {
    "mlp": (tiny_mlp, vectors),
    "bert": (tiny_bert, texts),
    "vit": (tiny_vit, images),
    "llama": (tiny_llama, prompts),
    "gpt2": (tiny_gpt2, prompts),
}
LABELS = ["mixture", "sample", "data", "exact", "predicted"]
BOTH = [
    (name, labels)
    for name in CASES
    for labels in LABELS
    if (name, labels) not in {("llama", "exact"), ("gpt2", "exact")}
]


@pytest.fixture(scope="module")
def built():
    """Each model once, with factors as if trained."""
    return {name: filled(build()) for name, (build, _) in CASES.items()}


def regression(sizes=(4, 3), outputs=2):
    return Task("r", [(torch.randn(n, 4), torch.randn(n, outputs)) for n in sizes], loss=SquaredError())


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.convolution(x)).relu().mean((2, 3))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.head(self.cell(x[..., None])[0][:, -1])


class Tied(nn.Module):
    """Two linear layers that share one weight: its gradient is the sum of both."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.one(x).tanh()).tanh())


class Encoder(nn.Module):
    """Has a fused path in eval mode that passes its linear layers by, unless they have hooks."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.layer(torch.stack([x, x.sin()], 1)).mean(1))


def pictures():
    return Task("p", [(torch.randn(n, 3, 6, 6), torch.arange(n) % CLASSES) for n in (4, 3)])


# --- Against the oracle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "labels"), BOTH)
def test_update_of_every_adapted_weight(built, case, labels):
    model, task = built[case], CASES[case][1]()
    ours = weight_fisher(model, layers(model), task, labels=labels, batch_size=3, seed=5)
    assert {f.dtype for f in ours.values()} == {torch.float32}
    assert relative_error(ours, lora_fisher_by_loop(model, task, labels, seed=5)) < 1e-5


@pytest.mark.parametrize("labels", LABELS)
def test_float64(labels):
    model = MLP().double()
    for task in [vectors(), regression(outputs=CLASSES)][: 1 if labels == "predicted" else 2]:
        task = Task(
            "t", [(x.double(), y.double() if y.is_floating_point() else y) for x, y in task.train], loss=task.loss
        )
        ours = parameter_fisher(model, parameters(model), task, labels=labels)
        assert relative_error(ours, fisher_by_loop(model, parameters(model), task, labels)) < 1e-12


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    ("build", "task"),
    [
        (MLP, vectors),
        (Twice, vectors),
        (Convolutional, pictures),
        (Recurrent, vectors),
        (Tied, vectors),
        (Encoder, vectors),
    ],
)
def test_all_parameters_of_a_plain_module(build, task, labels):
    model, task = seeded(build), task()
    ours = parameter_fisher(model, parameters(model), task, labels=labels)
    assert relative_error(ours, fisher_by_loop(model, parameters(model), task, labels)) < 1e-5


@pytest.mark.parametrize("pattern", [r"lora_", r"lora_B", r"classifier"])
def test_factors_and_head_of_an_adapted_model(built, pattern):
    model, task = built["bert"], texts()
    chosen = {n: p for n, p in parameters(model).items() if re.search(pattern, n) and p.requires_grad}
    assert relative_error(parameter_fisher(model, chosen, task), fisher_by_loop(model, chosen, task)) < 1e-5


def test_every_parameter_of_a_transformer_without_an_adapter():
    model, task = bare_bert(num_hidden_layers=1), texts(sizes=(3,))
    # Attention does not change with the bias of its keys: its Fisher is zero but for rounding.
    chosen = {n: p for n, p in parameters(model).items() if not n.endswith("key.bias")}
    assert relative_error(parameter_fisher(model, chosen, task), fisher_by_loop(model, chosen, task)) < 1e-5


def test_a_fused_encoder_still_meets_its_hooks():
    model, task = seeded(Encoder), vectors()
    chosen = {n: p for n, p in parameters(model).items() if "linear" in n}
    assert relative_error(parameter_fisher(model, chosen, task), fisher_by_loop(model, chosen, task)) < 1e-5


def test_frozen_parameters_can_be_measured_and_stay_frozen():
    model, task = seeded(Convolutional).requires_grad_(False), pictures()
    ours = parameter_fisher(model, {"convolution.weight": model.convolution.weight}, task)
    assert relative_error(ours, fisher_by_loop(model, ours, task)) < 1e-5
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("lora", [{"use_rslora": True}, {"lora_dropout": 0.5}, {"rank_pattern": {"query": 2}}], ids=str)
def test_variants_of_lora(lora):
    model, task = filled(tiny_bert(**lora)), texts()
    assert relative_error(weight_fisher(model, layers(model), task), lora_fisher_by_loop(model, task)) < 1e-5


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_an_adapter_with_a_past(case):
    build, task = CASES[case][0], CASES[case][1]()
    model = filled(build())
    for site in sites(model).values():
        site.fold(torch.Generator().manual_seed(0))
    filled(model, seed=2)
    assert relative_error(weight_fisher(model, layers(model), task), lora_fisher_by_loop(model, task)) < 1e-5


def test_an_adapted_module_called_twice():
    model, task = filled(adapted(seeded(Twice), target_modules=["shared"])), vectors()
    assert relative_error(weight_fisher(model, layers(model), task), lora_fisher_by_loop(model, task)) < 1e-5


def test_classes_of_other_tasks_have_no_influence():
    groups = torch.tensor([0, 0, 1, 1, 1])
    model, task = MLP(classes=5), vectors(loss=CrossEntropy(groups))
    task = Task("t", [(x, y % 2) for x, y in task.train], loss=task.loss)
    for labels in LABELS:
        ours = parameter_fisher(model, parameters(model), task, labels=labels)
        assert relative_error(ours, fisher_by_loop(model, parameters(model), task, labels)) < 1e-5
        assert ours["4.weight"][:2].all() and not ours["4.weight"][2:].any()


@pytest.mark.parametrize("labels", ["mixture", "sample", "data", "exact"])
def test_gaussian_likelihood(labels):
    model, task = MLP(classes=2), regression()
    ours = parameter_fisher(model, parameters(model), task, labels=labels)
    assert relative_error(ours, fisher_by_loop(model, parameters(model), task, labels)) < 1e-5


def test_rows_without_a_label_count_for_nothing_but_the_mean():
    whole, half = vectors(sizes=(6,)), vectors(sizes=(6,))
    half.train[0][1][3:] = -100
    first = Task("t", [tuple(v[:3] for v in whole.train[0])])
    model = MLP()
    for labels in LABELS:
        ours = parameter_fisher(model, parameters(model), half, labels=labels)
        expected = parameter_fisher(model, parameters(model), first, labels=labels)
        assert relative_error(ours, {name: f / 2 for name, f in expected.items()}) < 1e-5


def test_the_plain_diagonal_takes_no_options_of_a_form():
    model = MLP()
    with pytest.raises(ValueError, match="unknown key 'storage'"):
        weight_fisher(model, {"0": model[0]}, vectors(), storage="uint8")
