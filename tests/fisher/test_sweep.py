"""Which rows run, and how many: importance sampling, ``samples="auto"`` and the error that both report."""

import math

import pytest
import torch
from torch import nn

from models import MLP, filled, layers, parameters, texts, tiny_bert, vectors
from oracles import single_rows
from retain.fisher import measure, parameter_fisher, weight_fisher
from retain.fisher.gather import Sites, Unkept, squared_slope
from retain.fisher.sweep import Sweep, check_pass
from retain.task import SquaredError, Task, forward

ROWS, SURE = 600, 25.0


def rows(n=ROWS, seed=0):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return Task("rows", [(x[: n // 3], x[: n // 3, :3].argmax(1)), (x[n // 3 :], x[n // 3 :, :3].argmax(1))])


@pytest.fixture(scope="module")
def fitted():
    """A linear model that is sure of nearly all rows: few of them hold most of its Fisher information."""
    model = nn.Linear(4, 3)
    model.weight.data, model.bias.data = SURE * torch.eye(3, 4), torch.zeros(3)
    return model


@pytest.fixture(scope="module")
def directions():
    generator = torch.Generator().manual_seed(3)
    return {"": (torch.randn(3, 2, generator=generator), torch.randn(2, 4, generator=generator))}


def importance(model, task=None, **options):
    return measure(model, {"": model}, task or rows(), **{"form": "diagonal", "batch_size": 200} | options)


def along(measured, directions):
    """1/2 <D, F D> of the measured form."""
    return float(measured.forms[""].quadratic(*directions[""]))


def diagonal(measured, name=""):
    return measured.forms[name].state_dict()["fisher"]


# --- Importance sampling ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["mixture", "data"])
def test_a_sample_of_a_fitted_model_is_unbiased(fitted, labels):
    exact = diagonal(importance(fitted, samples=None, labels="exact" if labels == "mixture" else "data"))
    means = torch.stack([diagonal(importance(fitted, samples=30, labels=labels, seed=s)) for s in range(80)])
    error = (means.mean(0) - exact) / (means.std(0) / 80**0.5)
    assert float(error.abs().max()) < 4
    assert float((means.mean(0) / exact - 1).abs().max()) < 0.2


def test_a_sample_of_a_fitted_model_is_far_better_than_as_many_rows(fitted, directions):
    exact = along(importance(fitted, samples=None, labels="exact"), directions)
    task, numbers = rows(), torch.randperm(ROWS)
    some = [importance(fitted, samples=40, labels="exact", seed=s) for s in range(20)]
    assert all(m.examples <= 40 < m.rows == ROWS for m in some)
    uniform = [
        importance(fitted, Task("u", [b for _, b in task.take(numbers[40 * s : 40 * s + 40], 40)]), samples=None)
        for s in range(15)
    ]
    ours, theirs = (
        torch.tensor([along(m, directions) for m in sample]).sub(exact).square().mean() for sample in (some, uniform)
    )
    assert ours < theirs / 10


def test_where_scores_are_spread_evenly_rows_are_drawn_alike_and_nothing_else_is_looked_at():
    model, task = MLP(), vectors(sizes=(100, 300))
    measured = measure(model, {"0": model[0]}, task, form="diagonal", samples=50, seed=4, labels="exact")
    assert measured.rows == measured.examples == 50
    picked = Task("t", [batch for _, batch in task.batches(50, samples=50, seed=4)])
    assert torch.equal(diagonal(measured, "0"), weight_fisher(model, {"0": model[0]}, picked, labels="exact")["0"])


@pytest.mark.parametrize("labels", ["mixture", "exact"])
def test_batch_size_changes_nothing(fitted, directions, labels):
    sizes = (600, 37, 8)
    first, *others = (
        importance(fitted, samples=100, labels=labels, batch_size=n, directions=directions) for n in sizes
    )
    assert first.examples < 100 < first.rows
    for other in others:
        assert (other.rows, other.examples) == (first.rows, first.examples)
        assert other.error == pytest.approx(first.error, rel=1e-4)
        torch.testing.assert_close(diagonal(other), diagonal(first), rtol=1e-4, atol=1e-8)


def test_parameters_of_all_kinds_are_drawn_alike(fitted):
    """By hooks or one by one: the same rows with the same weights."""
    scaled = nn.Sequential(nn.LayerNorm(4, bias=False), nn.Linear(4, 3))
    scaled[1].weight.data, scaled[1].bias.data = SURE * torch.eye(3, 4), torch.zeros(3)
    task, options = rows(), {"samples": 40, "seed": 2}
    every = parameter_fisher(scaled, parameters(scaled), task, **options)
    linear = parameter_fisher(scaled, {"1.weight": scaled[1].weight, "1.bias": scaled[1].bias}, task, **options)
    weights = weight_fisher(scaled, {"1": scaled[1]}, task, **options)
    assert every["0.weight"][:3].all()
    for fisher, name in ((linear["1.weight"], "1.weight"), (linear["1.bias"], "1.bias"), (weights["1"], "1.weight")):
        torch.testing.assert_close(fisher, every[name], rtol=1e-4, atol=1e-8)


def test_sequences_and_regressions_can_be_sampled(directions):
    task = Task("r", [(torch.randn(300, 4) * torch.randn(300, 1) ** 4, torch.randn(300, 3))], loss=SquaredError())
    model = nn.Linear(4, 3)
    exact = importance(model, task, samples=None, labels="data")
    some = importance(model, task, samples=100, labels="data", directions=directions)
    assert some.examples < 100 < some.rows
    assert along(some, directions) == pytest.approx(along(exact, directions), rel=4 * some.error)


# --- The error -------------------------------------------------------------------------------------------------------


def tally(model, worth, **options):
    """Of ``worth`` at a model that is one linear map."""
    return Sweep(model, rows(), batch_size=200, **options).run(*(Sites({"": model}, Unkept, worth) for _ in range(2)))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [40, 150, None])
@pytest.mark.parametrize("labels", ["mixture", "sample", "data"])
def test_the_error_is_the_spread_over_seeds(fitted, directions, labels, samples):
    worth = squared_slope(directions)
    found = [tally(fitted, worth, samples=samples, labels=labels, seed=s) for s in range(60)]
    means = torch.tensor([t.total / t.draws for t in found], dtype=torch.float64)
    said = (means * torch.tensor([t.error for t in found])).square().mean().sqrt()
    if labels == "data" and samples is None:
        assert said == 0 and float(means.std()) < 1e-6 * float(means.mean())
    else:
        assert 0.6 < float(said / means.std()) < 1.6


@pytest.mark.slow
def test_without_directions_the_error_is_that_of_the_trace(fitted):
    found = [importance(fitted, samples=40, seed=s) for s in range(60)]
    traces = torch.tensor([m.forms[""].trace for m in found], dtype=torch.float64)
    said = (traces * torch.tensor([m.error for m in found])).square().mean().sqrt()
    assert 0.6 < float(said / traces.std()) < 1.6


def test_the_value_is_the_squared_slope_of_every_site_summed():
    model, task = filled(tiny_bert()), texts()
    sites = layers(model)
    directions = {n: (torch.randn(m.out_features, 2), torch.randn(2, m.in_features)) for n, m in sites.items()}
    ours = Sweep(model, task, labels="data").run(Sites(sites, Unkept, squared_slope(directions)))
    slopes = []
    weights = [m.base_layer.weight.requires_grad_() for m in sites.values()]
    model.eval()
    for row in single_rows(task):
        outputs, targets = forward(model, row)
        gradients = torch.autograd.grad(task.loss.nll(outputs, targets).sum(), weights)
        slopes.append(sum((g * (B @ A)).sum() ** 2 for g, (B, A) in zip(gradients, directions.values(), strict=True)))
    assert ours.total / ours.draws == pytest.approx(float(sum(slopes)) / len(slopes), rel=1e-4)
    assert ours.examples == ours.draws == ours.looked == len(slopes)


# --- As many as it takes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["mixture", "exact"])
def test_auto_stops_where_it_says(fitted, directions, labels):
    found = {
        error: importance(fitted, samples="auto", error=error, labels=labels, directions=directions)
        for error in (10.0, 0.1, 0.05, 1e-9)
    }
    assert all(m.error <= error for error, m in list(found.items())[:3])
    assert found[10.0].examples <= 64 and found[10.0].error > 0.1
    assert found[10.0].examples < found[0.1].examples <= found[0.05].examples < found[1e-9].examples <= 2 * ROWS
    exact = along(importance(fitted, samples=None, labels="exact"), directions)
    assert along(found[0.05], directions) == pytest.approx(exact, rel=0.15)


def test_auto_takes_evenly_spread_rows_until_all_are_used():
    model, task = MLP(), vectors(sizes=(100, 200))
    sites = {"0": model[0]}

    def taken(error):
        return measure(model, sites, task, form="diagonal", error=error, labels="exact")

    few, all_of_them = taken(0.2), taken(1e-9)
    assert few.rows == few.examples == 64 and 0.01 < few.error < 0.2
    assert all_of_them.rows == all_of_them.examples == 300 and all_of_them.error == 0
    expected = weight_fisher(model, sites, task, labels="exact")["0"]
    torch.testing.assert_close(diagonal(all_of_them, "0"), expected)


def test_auto_uses_all_of_a_few_rows(fitted):
    measured = importance(fitted, rows(40), samples="auto", labels="exact")
    assert measured.rows == measured.examples == 40 and measured.error == 0


def test_auto_does_not_chase_what_labels_leave_open(fitted, directions):
    """One label for each of 200 rows can never say more than it does; more draws of the same rows would not."""
    options = {"samples": "auto", "labels": "sample", "error": 0.01, "directions": directions}
    found = [importance(fitted, rows(200), seed=s, **options) for s in range(5)]
    assert all(m.rows == 200 and m.error > 0.01 and m.examples < 100 for m in found)


def test_a_direction_of_zero_has_no_error_to_speak_of(fitted, directions):
    still = {"": (torch.zeros(3, 2), directions[""][1])}
    assert importance(fitted, directions=still, samples=50).error == math.inf
    assert importance(fitted, directions=still, samples="auto").rows == ROWS


def test_progress_is_told_batch_by_batch():
    seen, model = [], MLP()
    parameter_fisher(model, parameters(model), vectors(sizes=(9,)), batch_size=4, progress=lambda *n: seen.append(n))
    assert seen == [(4, 9), (8, 9), (9, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_auto_does_not_overlook_the_one_row_in_a_hundred_that_holds_the_information(seed):
    generator = torch.Generator().manual_seed(seed)
    model, noise = nn.Linear(6, 3, bias=False).double(), torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    nn.init.orthogonal_(model.weight, generator=generator)
    labels = torch.randint(3, (2000,), generator=generator)
    x = 12 * model.weight.detach()[labels] + 0.1 * noise  # the model is sure of these
    x[::100] = 3 * torch.linalg.svd(model.weight.detach())[2][3]  # and has no idea of those
    task = Task("t", [(x, labels)])
    exact = measure(model, {"": model}, task, form="diagonal", labels="exact", samples=None).forms[""].trace
    found = measure(model, {"": model}, task, form="diagonal", labels="exact", samples="auto", seed=seed)
    assert found.error < 0.1
    assert found.forms[""].trace == pytest.approx(exact, rel=4 * found.error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "exacted"}, "labels: 'exacted' is not allowed; expected 'mixture', .*; did you mean 'exact'"),
        ({"dtype": "float16"}, "dtype: 'float16' is not allowed; expected 'bfloat16'"),
        ({"samples": 0}, "samples: 0 is not allowed; expected at least 1"),
        ({"samples": True}, "samples: True is not allowed; expected 'auto' or a whole number"),
        ({"samples": "all"}, "samples: 'all' is not allowed; expected 'auto' or a whole number"),
        ({"batch_size": 2.5}, "batch_size: 2.5 is not allowed; expected a whole number"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; expected at least 1"),
        ({"temperature": 0.0}, "temperature: 0.0 is not allowed; expected a number above 0"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"error": float("nan")}, "error: nan"),
    ],
)
def test_passes_to_no_end_are_refused(options, message):
    check_pass(samples="auto", dtype="bfloat16")
    with pytest.raises(ValueError, match=message):
        check_pass(**options)
    with pytest.raises(ValueError, match=message):
        Sweep(MLP(), vectors(), **options)
