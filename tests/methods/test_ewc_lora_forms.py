"""EWC-LoRA with every form of importance: the penalty, the state, what it foresees of which task, what it records."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models import adapted, filled, fit, layers, texts, tiny_bert, tiny_mlp, train, vectors
from retain.fisher import measure
from retain.methods import DWD, EWC
from retain.methods.ewc_lora import EWCLoRA

FORMS = {
    "diagonal": {"form": "diagonal"},
    "bfloat16": {"form": "diagonal", "storage": "bfloat16"},
    "uint8": {"form": "diagonal", "storage": "uint8"},
    "factored": {"form": "factored", "components": 2},
    "kronecker": {"form": "kronecker", "rank": None},
    "low rank": {"form": "kronecker", "rank": 2},
}
every_form = pytest.mark.parametrize("fisher", FORMS.values(), ids=FORMS)
A, B, C = (vectors(name, seed=seed) for seed, name in enumerate("abc"))


def bare_mlp(**lora):
    return tiny_mlp(modules_to_save=None, **lora)


def measured(method, task, **more):
    """What ``method`` is about to measure of ``task``."""
    form, choice = method.choice.form, method.choice
    return measure(
        method.model,
        layers(method.model),
        task,
        form=form,
        seed=method.boundary_seed,
        **choice.options,
        **choice.sweep,
        **more,
    )


def rises(method, forms):
    """1/2 <D, F D> of every site, with D = s (B A - B* A*) multiplied out."""
    found = []
    for name, site in method.sites.items():
        anchor = method.anchor[name]
        D = site.scale * (site.B @ site.A - anchor["B"] @ anchor["A"]).detach()
        found.append(forms[name].quadratic(D, torch.eye(D.shape[1])))
    return torch.stack(found).sum()


def total(method):
    return method.predicted_rise()["total"]


@every_form
@pytest.mark.parametrize("mode", ["shared", "merge"])
def test_the_penalty_is_that_of_the_decayed_sum_of_what_was_measured(fisher, mode):
    method = EWCLoRA(bare_mlp(use_rslora=True), strength=7.0, decay=0.5, mode=mode, fisher=fisher)
    train(method, A)
    expected = measured(method, A).forms
    method.end_task(A)
    train(method, B)
    for name, form in measured(method, B).forms.items():
        expected[name].accumulate(form, 0.5)
    method.end_task(B)
    if mode == "merge":  # anchored at zero
        method.anchor = {n: {"B": 0 * s.B.detach(), "A": s.A.detach()} for n, s in method.sites.items()}
    filled(method.model, seed=3)
    torch.testing.assert_close(method.extra_loss(), 7.0 * rises(method, expected), rtol=1e-4, atol=0)
    assert total(method) == pytest.approx(float(method.extra_loss().detach()) / 7.0, rel=1e-6)


@pytest.mark.slow
@every_form
def test_its_state_goes_through_safetensors_to_the_bit_and_continues(fisher):
    method, other = (EWCLoRA(tiny_bert(), strength=10.0, fisher=fisher) for _ in range(2))
    fit(method, texts("a"))
    other.load_state_dict(load(save(method.state_dict())))
    mine, theirs = method.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    filled(method.model)
    other.model.load_state_dict(method.model.state_dict())
    assert method.extra_loss() == other.extra_loss() != 0
    for each in (method, other):
        each.end_task(texts("b", seed=1))
    assert all(torch.equal(t, other.state_dict()[key]) for key, t in method.state_dict().items())


@pytest.mark.parametrize(("kept", "here"), [("diagonal", "low rank"), ("low rank", "diagonal"), ("uint8", "diagonal")])
def test_a_state_of_another_form_is_refused_by_name(kept, here):
    method, other = (EWCLoRA(bare_mlp(), fisher=FORMS[name]) for name in (kept, here))
    fit(method, A)
    with pytest.raises(
        ValueError, match="the importance of 0 was kept with other keywords of `fisher`: not the state "
    ):
        other.load_state_dict(method.state_dict())
    assert other.state_dict() == {} and other.extra_loss() == 0


def test_a_layer_that_the_output_does_not_depend_on_has_no_importance():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.loose = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            self.loose(x)
            return self.used(x)

    method = EWCLoRA(adapted(Loose(), r=2, target_modules=["used", "loose"]), strength=1.0)
    with pytest.warns(UserWarning, match="loose"):
        fit(method, A)
        fit(method, B)
    with torch.no_grad():
        method.sites["loose"].B.add_(1.0)
    assert method.extra_loss() == 0
    with torch.no_grad():
        method.sites["used"].B[0].add_(1.0)  # not all classes alike, which changes nothing
    assert method.extra_loss() > 0


# --- What is recorded ------------------------------------------------------------------------------------------------


@every_form
def test_a_boundary_records_the_estimate_and_its_bytes(fisher):
    """The error is that along what the task has trained, the scales of the sites included.

    Of all rows it is that of the labels, told by a few rows with other ones: of 11 rows by one, which may get the same.
    """
    method, task = EWCLoRA(tiny_bert(rank_pattern={"query": 2}), fisher=fisher), texts("a", (16, 16, 16, 16))
    train(method, task)
    trained = {name: ((site.scale * site.B).detach(), site.A.detach()) for name, site in method.sites.items()}
    expected = measured(method, task, directions=trained)
    method.end_task(task)
    found = method.boundary
    assert (found["rows"], found["examples"]) == (expected.rows, expected.examples) == (64, 64)
    kept = [t for key, t in method.state_dict().items() if key.startswith(("fisher/", "springs/"))]
    assert found["bytes"] == sum(t.numel() * t.element_size() for t in kept) > 0
    beside = sum(float(s["fisher"].sum()) for s in method.springs.values())
    assert found["trace"] == pytest.approx(sum(form.trace for form in expected.forms.values()) + beside)
    assert found["error"] == pytest.approx(expected.error) and 0 < found["error"] < 10
    assert len({site.scale for site in method.sites.values()}) == 2


def test_the_rows_of_a_boundary_are_those_asked_for():
    method = EWCLoRA(bare_mlp(), fisher={"samples": 5})
    fit(method, A)
    assert method.boundary["examples"] <= 5 <= method.boundary["rows"] <= 11


# --- The gauge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", [{}, {"form": "kronecker", "rank": 2}, {"form": "kronecker", "rank": 3}])
def test_sketches_foresee_the_rise_of_every_task_since_the_last_boundary(fisher):
    method, sketches = EWCLoRA(bare_mlp(), strength=1.0, fisher=fisher | {"sketches": 2}), {}
    for task in (A, B, C):
        train(method, task)
        assert list(method.predicted_rise()) == (["total", *sketches] if sketches else [])
        options = {"seed": method.boundary_seed, **method.choice.sweep}
        sketches[task.name] = measure(
            method.model, layers(method.model), task, form="kronecker", rank=2, **options
        ).forms
        method.end_task(task)
    filled(method.model, seed=3)
    found = method.predicted_rise()
    assert found.pop("total") == pytest.approx(float(method.extra_loss().detach()), rel=1e-6)
    assert found == {name: pytest.approx(float(rises(method, forms)), rel=1e-4) for name, forms in sketches.items()}


def test_with_shared_heads_a_sketch_has_their_rise_too():
    method = EWCLoRA(tiny_bert(), strength=1.0, fisher={"sketches": 2})
    fit(method, texts("a"))
    of_first = {name: spring["fisher"].clone() for name, spring in method.springs.items()}
    fit(method, texts("b", seed=1))
    with torch.no_grad():
        for name in method.springs:
            method.model.get_parameter(name).add_(0.1)
    found = method.predicted_rise()
    first = 0.5 * 0.01 * float(sum(fisher.sum() for fisher in of_first.values()))
    assert found["a"] == pytest.approx(first, rel=1e-3)
    assert found["total"] == pytest.approx(found["a"] + found["b"], rel=1e-3)


def test_sketches_are_kept_and_said_to_grow():
    method = EWCLoRA(tiny_bert(), fisher={"sketches": 2})
    assert method.growth and not EWCLoRA(tiny_bert()).growth
    for seed, name in enumerate("ab"):
        fit(method, texts(name, seed=seed))
    other = EWCLoRA(tiny_bert(), fisher={"sketches": 2})
    other.load_state_dict(load(save(method.state_dict())))
    filled(method.model)
    other.model.load_state_dict(method.model.state_dict())
    assert other.predicted_rise() == method.predicted_rise() and len(method.predicted_rise()) == 3
    without = EWCLoRA(tiny_bert())
    with pytest.raises(ValueError, match="the state has sketches of a, b, and fisher.sketches is not set"):
        without.load_state_dict(method.state_dict())


def test_the_sum_has_a_name_that_no_task_can_have():
    with pytest.raises(ValueError, match="no task can be called 'total'"):
        EWCLoRA(bare_mlp(), fisher={"sketches": 2}).begin_task(vectors("total"))
    EWCLoRA(bare_mlp()).begin_task(vectors("total"))


def test_a_task_counts_less_as_importance_decays():
    method = EWCLoRA(bare_mlp(), decay=0.5)
    for task in (A, B, C):
        fit(method, task)
    assert method.remembered == {"a": 0.25, "b": 0.5, "c": 1.0}


@pytest.mark.parametrize(
    ("fisher", "message"),
    [
        ({"labels": "model"}, "fisher.labels: 'model' is not allowed; expected 'mixture', 'sample', "),
        ({"batch_size": 0}, "is not allowed; expected at least 1"),
        ({"form": "diagnal"}, "fisher.form: unknown form 'diagnal'; known: .* did you mean 'diagonal'"),
        ({"storage": "uint8"}, "'storage' .* is a keyword of the form 'diagonal', and the form here is 'kronecker'"),
        ({"form": "kronecker", "rank": 0}, "fisher: rank must be a whole number of at least 1, got 0"),
        ({"sketches": 0}, "fisher.sketches: 0 is not allowed; expected at least 1"),
        ({"seed": 3}, "fisher: unknown key 'seed'"),
        ("diagonal", "fisher: 'diagonal' is not allowed; expected a section of keys"),
    ],
)
def test_what_is_said_of_importance_is_checked_when_the_method_is_made(fisher, message):
    with pytest.raises(ValueError, match=message):
        EWCLoRA(bare_mlp(), fisher=fisher)


@every_form
def test_importance_of_weights_of_another_shape_is_refused(fisher):
    method = EWCLoRA(bare_mlp(), fisher=fisher)
    method.end_task(A)
    other = EWCLoRA(bare_mlp(target_modules=["0"]), mode="merge", fisher=fisher)
    swapped = {
        f"fisher/0/{key.split('/')[2]}": t for key, t in method.state_dict().items() if key.startswith("fisher/2/")
    }
    with pytest.raises(ValueError, match=r"importance of 0 is of a weight \(5, 6\), and here it is \(6, 4\)"):
        other.load_state_dict(swapped)


@pytest.mark.parametrize(
    ("fisher", "strength", "temperature"),
    [
        (None, 10, 3),
        ({"form": "kronecker", "rank": 4}, 10, 3),
        ({"form": "diagonal"}, 1e4, 1),
        ({"form": "factored"}, 1e4, 1),
    ],
)
def test_a_form_comes_with_the_temperature_and_the_strength_that_it_was_measured_with(fisher, strength, temperature):
    method = EWCLoRA(tiny_bert(), fisher=fisher)
    assert (method.strength, method.choice.sweep["temperature"]) == (strength, temperature)


def test_another_temperature_needs_a_strength():
    with pytest.raises(
        ValueError, match=r"strength must be given as a number with fisher.temperature=1.0: .* measured at 3.0"
    ):
        EWCLoRA(tiny_bert(), fisher={"temperature": 1.0})
    assert EWCLoRA(tiny_bert(), fisher={"temperature": 1.0}, strength=100).strength == 100
    for method in (EWC, DWD):
        with pytest.raises(ValueError, match=r"number with fisher.temperature=3.0: .* 'diagonal' was measured at 1.0"):
            method(tiny_bert(), fisher={"temperature": 3.0}, strength="auto")
