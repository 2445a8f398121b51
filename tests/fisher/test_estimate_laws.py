"""What the Fisher information may depend on and what it must not; what the pass leaves behind, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from models import (
    CLASSES,
    MLP,
    adapted,
    filled,
    layers,
    parameters,
    prompts,
    texts,
    tiny_bert,
    tiny_llama,
    tiny_mlp,
    vectors,
)
from oracles import fisher_by_loop, relative_error, single_rows, squared_batch_means
from retain.fisher import parameter_fisher, weight_fisher
from retain.task import Task

LABELS = ["mixture", "sample", "data", "exact", "predicted"]
CASES = {"mlp": (tiny_mlp, vectors), "bert": (tiny_bert, texts), "llama": (tiny_llama, prompts)}
BOTH = [(name, labels) for name in CASES for labels in LABELS if (name, labels) != ("llama", "exact")]


@pytest.fixture(scope="module")
def built():
    """Each model once, with factors as if trained."""
    return {name: filled(build()) for name, (build, _) in CASES.items()}


class Normalised(nn.Sequential):
    """Not all of it is linear: its parameters are measured by one backward an example."""

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, CLASSES))


def one_batch(task):
    """The rows of a task made of batches, as a single batch."""
    if isinstance(task.train[0], dict):
        return Task(task.name, [{key: torch.cat([b[key] for b in task.train]) for key in task.train[0]}])
    return Task(task.name, [tuple(torch.cat(side) for side in zip(*task.train, strict=True))])


def state_of(model):
    modules, wanted = list(model.modules()), [p.requires_grad for p in model.parameters()]
    return wanted, [m.training for m in modules], [len(m._forward_hooks) for m in modules]


# --- What it must not depend on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "labels"), BOTH)
def test_batch_size(built, case, labels):
    model, task = built[case], one_batch(CASES[case][1]())
    alone, *others = (weight_fisher(model, layers(model), task, labels=labels, batch_size=n) for n in (1, 2, 5, 11))
    assert all(relative_error(other, alone) < 1e-5 for other in others)


@pytest.mark.parametrize("labels", ["mixture", "sample", "data"])
def test_padding(built, labels):
    """Rows padded to the longest of their batch, and rows never padded, give the same."""
    model = built["llama"]
    rows = [{k: v[0, : int(row["attention_mask"].sum())] for k, v in row.items()} for row in single_rows(prompts())]

    def padded(chosen):
        fill = {"labels": -100}
        pad = nn.utils.rnn.pad_sequence
        return {k: pad([r[k] for r in chosen], True, fill.get(k, 0)) for k in chosen[0]}

    task = Task("t", rows, collate=padded)
    alone, together = (weight_fisher(model, layers(model), task, labels=labels, batch_size=n) for n in (1, 11))
    assert relative_error(together, alone) < 1e-5


def test_order_and_shuffling_of_the_loader():
    """Defect E3: the reference measures on an augmented, shuffled loader."""
    inputs, targets = one_batch(vectors()).train[0]
    model, data = MLP(), TensorDataset(inputs, targets)
    tasks = [Task("t", DataLoader(data, batch_size=3, shuffle=shuffle)) for shuffle in (False, True)]
    tasks += [Task("t", data), Task("t", [(inputs, targets)])]
    first, *others = (parameter_fisher(model, parameters(model), task) for task in tasks)
    assert all(relative_error(other, first) < 1e-6 for other in others)
    turned = Task("t", [(inputs.flip(0), targets.flip(0))])
    first, other = (parameter_fisher(model, parameters(model), t, labels="exact") for t in (tasks[0], turned))
    assert relative_error(other, first) < 1e-6


def test_the_global_generator():
    model, task = MLP(), vectors()
    first = parameter_fisher(model, parameters(model), task, samples=5)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    second = parameter_fisher(model, parameters(model), task, samples=5)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(before, torch.random.get_rng_state())


# --- What it must depend on ------------------------------------------------------------------------------------------


def test_a_mean_over_examples_is_additive_over_shards(built):
    model, task = built["bert"], texts(sizes=(5, 6))
    whole, *shards = (
        weight_fisher(model, layers(model), Task("t", part), labels="data")
        for part in (task.train, task.train[:1], task.train[1:])
    )
    merged = {name: (5 * shards[0][name] + 6 * shards[1][name]) / 11 for name in whole}
    assert relative_error(whole, merged) < 1e-6


def test_exact_labels_are_the_weighted_sum_over_classes():
    model, (inputs, _) = MLP(), vectors(sizes=(1,)).train[0]
    probabilities = model(inputs).softmax(-1)[0].tolist()
    per_class = [
        parameter_fisher(model, parameters(model), Task("t", [(inputs, torch.tensor([c]))]), labels="data")
        for c in range(CLASSES)
    ]
    summed = {n: sum(p * f[n] for p, f in zip(probabilities, per_class, strict=True)) for n in parameters(model)}
    ours = parameter_fisher(model, parameters(model), Task("t", [(inputs, torch.tensor([0]))]), labels="exact")
    assert relative_error(ours, summed) < 1e-5


def test_sampled_labels_converge_to_exact_ones():
    model, task = MLP(), one_batch(vectors())
    many = Task("t", [tuple(v.repeat_interleave(1000, 0) for v in task.train[0])])
    exact = parameter_fisher(model, parameters(model), task, labels="exact")
    sampled = parameter_fisher(model, parameters(model), many, labels="sample", batch_size=4000)
    assert relative_error(sampled, exact) < 0.05
    assert relative_error(parameter_fisher(model, parameters(model), task), exact) > 0.05


def test_a_subset_is_seeded():
    model, task = MLP(), vectors(sizes=(20,))
    first, again, other = (parameter_fisher(model, parameters(model), task, samples=5, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert relative_error(first, other) > 0.01
    picked = Task("t", [next(iter(task.batches(5, samples=5, seed=1)))[1]])
    for labels in ("data", "exact"):
        ours = parameter_fisher(model, parameters(model), task, samples=5, seed=1, labels=labels)
        assert relative_error(ours, fisher_by_loop(model, ours, picked, labels)) < 1e-5


def test_the_squared_batch_mean_is_too_small_by_the_batch_size():
    """Defect E2: at an optimum the reference estimates F / n_b, so its strength depends on the batch size."""
    model = nn.Linear(4, CLASSES)
    inputs = torch.randn(3200, 4)
    targets = torch.distributions.Categorical(logits=model(inputs)).sample()
    ours = {}
    for n in (8, 32):
        task = Task("t", list(zip(inputs.split(n), targets.split(n), strict=True)))
        ours[n] = parameter_fisher(model, parameters(model), task, labels="data", batch_size=n)["weight"]
        theirs = squared_batch_means(model, "weight", task)
        assert float(theirs.mean() / ours[n].mean()) == pytest.approx(1 / n, rel=0.3)
    torch.testing.assert_close(ours[8], ours[32], rtol=1e-4, atol=0)


# --- What it leaves behind, and what it refuses ----------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("measure", ["weights", "parameters"])
def test_the_model_is_left_as_it_was(measure, fails):
    model, task = filled(tiny_bert(lora_dropout=0.1)), texts()
    model.train()
    model.get_submodule("base_model.model.bert.embeddings").eval()
    name, head = next((n, p) for n, p in model.named_parameters() if p.requires_grad and "classifier" in n)
    head.grad = torch.ones_like(head)
    before = state_of(model)
    weights = copy.deepcopy(model.state_dict())
    if fails:
        task.train[-1]["labels"][0] = CLASSES + 4
    try:
        if measure == "weights":
            weight_fisher(model, layers(model), task, labels="data")
        else:
            parameter_fisher(
                model, {n: p for n, p in parameters(model).items() if p.requires_grad}, task, labels="data"
            )
    except (IndexError, RuntimeError):
        assert fails
    assert state_of(model) == before
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [name] and head.grad.eq(1).all()
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


class Products(TorchDispatchMode):
    """Shapes of all matrix products that make a tensor of their own."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default):
            self.shapes += [tuple(t.shape) for t in tree_leaves(result)]
        return result


def test_no_gradient_of_a_weight_is_ever_formed(built):
    model, task = built["bert"], texts(sizes=(7,))
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)}
    with Products() as products:
        weight_fisher(model, layers(model), task)
    assert products.shapes and not shapes & ({*products.shapes} | {s[::-1] for s in products.shapes})


def test_results_carry_no_graph():
    for model in (MLP(), Normalised()):
        chosen = {name: p for name, p in parameters(model).items() if name.startswith(("0.", "1."))}
        assert not any(f.requires_grad for f in parameter_fisher(model, chosen, vectors()).values())


@pytest.mark.parametrize("build", [MLP, Normalised])
def test_half_precision_is_summed_in_float32(build):
    model, task = build().bfloat16(), Task("t", [(x.bfloat16(), y) for x, y in vectors().train])
    assert {f.dtype for f in parameter_fisher(model, parameters(model), task).values()} == {torch.float32}


def test_an_adapted_module_without_a_part_in_the_output_is_warned_of():
    model = MLP()
    model[0].idle = nn.Linear(4, 4)
    model, task = filled(adapted(model, target_modules=["0.idle", "2"])), vectors()
    with pytest.warns(UserWarning, match="nothing protects 0.idle$"):
        fisher = weight_fisher(model, layers(model), task)
    assert list(fisher) == ["2"]


@pytest.mark.parametrize("labels", LABELS)
def test_not_a_number_is_refused(labels):
    model = MLP()
    model.get_parameter("0.weight").data[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="Fisher information of 0.weight is not finite"):
        parameter_fisher(model, parameters(model), vectors(), labels=labels)


def test_a_fisher_of_zero_is_refused():
    model = tiny_mlp()
    model.get_parameter("base_model.model.4.modules_to_save.default.weight").data.zero_()
    with pytest.raises(RuntimeError, match="zero everywhere"):
        weight_fisher(model, layers(model), vectors())


def test_an_output_that_depends_on_nothing_is_refused():
    model = MLP()
    with pytest.raises(RuntimeError, match="do not depend on anything"):
        weight_fisher(model, {"other": nn.Linear(4, 4)}, vectors())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "samples"}, "labels: 'samples' is not allowed; expected 'mixture', .*; did you mean 'sample'"),
        ({"samples": 0}, "at least 1"),
        ({"samples": -1}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_options_are_checked(options, message):
    model = MLP()
    with pytest.raises(ValueError, match=message):
        parameter_fisher(model, parameters(model), vectors(), **options)


def test_exact_labels_of_sequences_are_refused(built):
    with pytest.raises(ValueError, match="cannot enumerate sequences; use labels='mixture'"):
        weight_fisher(built["llama"], layers(built["llama"]), prompts(), labels="exact")
