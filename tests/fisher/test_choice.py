"""How importance is chosen: defaults, keywords of the form and of the sweep, and what is refused."""

import inspect

import pytest
import torch

from models import layers, tiny_mlp, vectors
from retain.fisher import measure
from retain.fisher.choice import choose
from retain.fisher.estimate import OPTIONS, form_options
from retain.fisher.forms import FORMS

DEFAULTS = {"form": "diagonal", "samples": 9}


def test_what_is_given_stands_on_the_defaults():
    plain, other = choose(None, DEFAULTS), choose({"form": "kronecker", "rank": 3, "labels": "exact"}, DEFAULTS)
    assert (plain.form, plain.options, plain.sweep, plain.own) == (FORMS["diagonal"], {}, {"samples": 9}, {})
    assert (other.form, other.options) == (FORMS["kronecker"], {"rank": 3})
    assert other.sweep == {"samples": 9, "labels": "exact"} and choose({}, DEFAULTS) == plain


@pytest.mark.parametrize("name", FORMS)
def test_every_keyword_of_measure_and_of_every_form_can_be_chosen(name):
    form = {p: inspect.signature(FORMS[name].collector).parameters[p].default for p in form_options(FORMS[name])}
    sweep = {"labels": "exact", "temperature": 2.0, "samples": None, "error": 0.5, "batch_size": 3, "dtype": "bfloat16"}
    assert sweep.keys() | {"seed", "progress"} == {*OPTIONS}
    choice = choose({"form": name, **form, **sweep}, DEFAULTS)
    assert (choice.options, choice.sweep) == (form, sweep)


def test_a_method_has_keywords_of_its_own():
    assert choose({"mine": 3}, DEFAULTS, {"mine": int}).own == {"mine": 3}
    for wrong in (
        ({"mine": "x"}, "fisher.mine: 'x' is not allowed; expected a whole number"),
        ({"my": 3}, "unknown key 'my' .*, mine"),
    ):
        with pytest.raises(ValueError, match=wrong[1]):
            choose(wrong[0], DEFAULTS, {"mine": int})


def test_it_measures_as_chosen_and_reads_back_its_own_states():
    model, task = tiny_mlp(), vectors()
    choice = choose({"form": "kronecker", "rank": 2, "labels": "exact", "samples": None}, DEFAULTS)
    found = choice.measure(model, layers(model), task, seed=3)
    same = measure(model, layers(model), task, form="kronecker", rank=2, labels="exact", samples=None, seed=3)
    states = {name: form.state_dict() for name, form in found.forms.items()}
    for name, again in choice.restored(states).items():
        assert again.state_dict().keys() == same.forms[name].state_dict().keys()
        assert all(torch.equal(t, same.forms[name].state_dict()[key]) for key, t in again.state_dict().items())
    with pytest.raises(ValueError, match="importance of 0 was kept with other keywords .* not the state of a Diagonal"):
        choose(None, DEFAULTS).restored(states)


@pytest.mark.parametrize("name", FORMS)
def test_an_empty_form_weighs_nothing_and_can_be_added_to(name):
    choice = choose({"form": name}, DEFAULTS)
    empty, B = choice.empty(torch.zeros(1), 6, 5), torch.randn(6, 2)
    assert empty.quadratic(B, torch.randn(2, 5)) == 0
    collector = choice.form.collector(6, 5, torch.device("cpu"), torch.float32)
    collector.add(torch.randn(3, 1, 5), torch.randn(3, 1, 6))
    form = collector.done(3.0)
    expected = form.trace
    empty.accumulate(form)
    assert empty.trace == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "fisher: 3 is not allowed; expected a section of keys"),
        ({"form": "kronecer"}, "fisher.form: unknown form 'kronecer'; known: .*; did you mean 'kronecker'"),
        ({"form": None}, "fisher.form: unknown form None; known: "),
        ({"lables": "exact"}, "fisher: unknown key 'lables' .*; did you mean 'labels'"),
        ({"seed": 3}, "fisher: unknown key 'seed'"),
        ({"rank": 3}, "'rank' .value 3. is a keyword of the form 'kronecker', and the form here is 'diagonal'"),
        ({"storage": "uint9"}, "fisher.storage: 'uint9' .*; did you mean 'uint8'"),
        ({"temperature": 0.0}, "fisher.temperature: 0.0 is not allowed; expected a number above 0"),
        ({"samples": 1.5}, "fisher.samples: 1.5 is not allowed; expected 'auto' or a whole number"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        choose(given, DEFAULTS)
