"""``measure``: every form from one pass, tempered models, autocast, and what is refused."""

import pytest
import torch
from torch.func import functional_call, jacrev

from models import MLP, filled, layers, parameters, prompts, texts, tiny_bert, tiny_llama, vectors
from oracles import fisher_by_loop, relative_error
from retain.fisher import Importance, measure, parameter_fisher, weight_fisher
from retain.fisher.forms import FORMS, Diagonal
from retain.task import CrossEntropy, Task


@pytest.fixture(scope="module")
def bert():
    return filled(tiny_bert())


def gauss_newton(model, task, temperature):
    """Diagonal of mean_n J' (diag p - p p') J of every parameter, p = softmax(outputs / t), in float64."""
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    model = MLP().double()
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    inputs = torch.cat([x for x, _ in task.train]).double()
    for x in inputs:
        p = (functional_call(model, weights, x[None])[0] / temperature).softmax(0)
        curvature = torch.diag(p) - torch.outer(p, p)
        for name, J in jacrev(lambda w, x=x: functional_call(model, w, x[None])[0])(weights).items():
            total[name] += torch.einsum("c...,cd,d...->...", J, curvature, J) / len(inputs)
    return total


# --- What is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_mean_over_the_same_examples(bert, form):
    task, sites = texts(), layers(bert)
    measured = measure(bert, sites, task, form=form, samples=None)
    squares = weight_fisher(bert, sites, task)
    assert isinstance(measured, Importance) and list(measured.forms) == list(sites)
    assert measured.rows == measured.examples == 11
    for name, kept in measured.forms.items():
        assert type(kept) is FORMS[form] and kept.trace == pytest.approx(float(squares[name].sum()), rel=0.01)


def test_a_form_may_be_named_or_given_and_takes_its_options(bert):
    task, sites = texts(), layers(bert)
    named, given = (
        measure(bert, sites, task, form=form, storage="bfloat16", samples=None) for form in ("diagonal", Diagonal)
    )
    for name in sites:
        one, two = (m.forms[name].state_dict()["fisher"] for m in (named, given))
        assert one.dtype == torch.bfloat16 and torch.equal(one, two)


@pytest.mark.parametrize("labels", ["mixture", "sample", "exact", "data"])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_tempered_labels_against_one_example_at_a_time(labels, temperature):
    model, task = MLP(), vectors()
    ours = parameter_fisher(model, parameters(model), task, labels=labels, temperature=temperature)
    oracle = fisher_by_loop(model, parameters(model), task, labels, temperature=temperature)
    assert relative_error(ours, oracle) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1e6])
def test_a_tempered_fisher_is_the_gauss_newton_matrix_of_the_tempered_model(temperature):
    model, task = MLP(), vectors()
    expected = gauss_newton(model, task, temperature)
    exact = parameter_fisher(model, parameters(model), task, labels="exact", temperature=temperature)
    assert relative_error(exact, expected) < 1e-5
    many = Task("t", [tuple(v.repeat_interleave(500, 0) for v in batch) for batch in task.train])
    drawn = parameter_fisher(model, parameters(model), many, temperature=temperature, batch_size=2000)
    assert relative_error(drawn, expected) < 0.05


def test_a_mixture_of_sequences_is_unbiased():
    model, task = filled(tiny_llama()), prompts(sizes=(2,))
    sites = {name: layer for name, layer in layers(model).items() if "v_proj" in name}
    many = Task("t", [{k: v.repeat_interleave(300, 0) for k, v in task.train[0].items()}])
    mixed, sampled = (
        weight_fisher(model, sites, many, labels=labels, batch_size=300) for labels in ("mixture", "sample")
    )
    for name in sites:
        assert float(mixed[name].sum() / sampled[name].sum()) == pytest.approx(1, abs=0.1)


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def test_autocast_runs_the_model_in_bfloat16_and_sums_in_float32(bert):
    sites, task, seen = layers(bert), texts(), []
    handle = bert.get_submodule("base_model.model.classifier").register_forward_hook(lambda *a: seen.append(a[2].dtype))
    exact = weight_fisher(bert, sites, task)
    fast = weight_fisher(bert, sites, task, dtype="bfloat16")
    handle.remove()
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert all(f.dtype == torch.float32 for f in fast.values())
    assert 0 < relative_error(fast, exact) < 0.1


def test_products_of_long_sequences_are_taken_in_bfloat16_if_the_pass_is(monkeypatch):
    model, tokens = torch.nn.Linear(40, 30), torch.randn(6, 70, 40)
    task, seen = Task("t", [(tokens, torch.randint(30, (6, 70)))]), []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **out: seen.append(a.dtype) or product(a, b, **out))
    monkeypatch.setattr("retain.fisher.contract.SMALL", 10**9)
    exact, fast = (weight_fisher(model, {"": model}, task, labels="data", dtype=dtype) for dtype in (None, "bfloat16"))
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert 0 < relative_error(fast, exact) < 0.02


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "kroneker"}, "unknown form 'kroneker'; known: .*did you mean 'kronecker'"),
        ({"sampels": 3}, "unknown key 'sampels' .value 3.; known: labels, .*samples.*; did you mean 'samples'"),
        ({"rank": 3}, "unknown key 'rank' .value 3.; known: .*storage"),
        ({"directions": {"1": ()}}, "directions: no module '1'; known: 0"),
        ({"temperature": -1.0}, "expected a number above 0"),
        ({"labels": "exakt"}, "did you mean 'exact'"),
    ],
)
def test_options_are_checked(options, message):
    model = MLP()
    with pytest.raises(ValueError, match=message):
        measure(model, {"0": model[0]}, vectors(), **{"form": "diagonal"} | options)


def test_exact_labels_of_sequences_are_refused_before_any_backward():
    model = filled(tiny_llama())
    with pytest.raises(ValueError, match="cannot enumerate sequences; use labels='mixture'"):
        measure(model, layers(model), prompts(), form="diagonal", labels="exact", samples=2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_importance_that_is_no_number_is_refused(value):
    model = MLP()
    model.get_parameter("4.weight").data[0, 0] = value
    with pytest.raises(RuntimeError, match="Fisher information of 0 is not finite"):
        measure(model, {"0": model[0]}, vectors(), form="diagonal")


def test_a_row_without_targets_is_an_example_of_nothing():
    model, task = MLP(), vectors(sizes=(6,))
    whole = measure(model, {"4": model[4]}, task, form="diagonal", samples=None, labels="exact")
    task.train[0][1][:] = torch.where(torch.arange(6) < 3, task.train[0][1], -100)
    half = measure(model, {"4": model[4]}, task, form="diagonal", samples=None, labels="exact")
    assert half.examples == whole.examples == 6 and 0 < half.forms["4"].trace < whole.forms["4"].trace


def test_groups_leave_other_heads_alone():
    model, groups = MLP(classes=4), torch.tensor([0, 0, 1, 1])
    task = vectors(loss=CrossEntropy(groups))
    task = Task("t", [(x, y % 2) for x, y in task.train], loss=task.loss)
    fisher = weight_fisher(model, {"4": model[4]}, task, samples="auto")["4"]
    assert fisher[:2].all() and not fisher[2:].any()
