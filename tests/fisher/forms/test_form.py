"""What every form of importance obeys, against the matrix that its state stands for, written out in float64."""

import inspect

import pytest
import torch
from safetensors.torch import load, save

from gradients import collect, even, examples, factors
from oracles import example_gradients, form_matrix, matrix_penalty
from retain.fisher.forms import FORMS

OUT, IN = 24, 30
CASES = {
    "float32": ("diagonal", {"storage": "float32"}),
    "bfloat16": ("diagonal", {"storage": "bfloat16"}),
    "uint8": ("diagonal", {"storage": "uint8"}),
    "factored": ("factored", {"components": 1}),  # of what it fits
    "fallen back": ("factored", {"components": 2}),  # of what it does not
    "dense": ("kronecker", {"rank": None}),
    "low rank": ("kronecker", {"rank": 3}),
    "half low": ("kronecker", {"rank": OUT - 1}),  # one side is dense
}
ANCHORS = ["none", "same rank", "lower rank", "higher rank"]


def case_data(name, seed=0, **options):
    return even(seed=seed, **options) if name == "factored" else examples(seed=seed, **options)


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def form_of(name, seed=0, **options):
    form, settings = CASES[name]
    return collect(form, case_data(name, seed), **settings, **options)


def anchor_of(kind, out, in_, r):
    q = {"none": 0, "same rank": r, "lower rank": r - 1, "higher rank": r + 2}[kind]
    return None if kind == "none" else factors(out, in_, q, seed=9)


def value_and_gradients(f, B, A):
    B, A = (x.detach().clone().requires_grad_() for x in (B, A))
    value = f(B, A)
    return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, (B, A)))]


def assert_same(ours, theirs, rtol):
    """Entries to ``rtol`` of the largest of their tensor."""
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=rtol * float(y.abs().max()))


def test_the_cases_are_what_they_are_called():
    assert set(form_of("factored").state_dict()) == {"rows", "columns", "fit"}
    assert set(form_of("fallen back").state_dict()) == {"fisher", "scale", "fit"}
    assert set(form_of("low rank").state_dict()) == {"left", "left.rest", "right", "right.rest"}
    assert set(form_of("half low").state_dict()) == {"left", "right", "right.rest"}
    assert {form for form, _ in CASES.values()} == set(FORMS)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_quadratic_is_that_of_the_matrix(case, anchor):
    form, held = form_of(case), anchor_of(anchor, OUT, IN, 3)
    matrix, pair = form_matrix(form.state_dict()), factors(OUT, IN, 3)
    theirs = value_and_gradients(lambda B, A: matrix_penalty(B, A, matrix, held), *pair)
    assert_same(value_and_gradients(lambda B, A: form.quadratic(B, A, held), *pair), theirs, 1e-12)
    assert float(theirs[0]) > 0


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_quadratic_in_lower_precision(case, dtype, rtol):
    """Factors in half precision are multiplied in float32, within autocast too; the form itself is in float32."""
    name, settings = CASES[case]
    form = collect(name, [t.float() for t in case_data(case)], **settings)
    B, A = factors(OUT, IN, 3, dtype=dtype)
    held = tuple(x.to(dtype) for x in factors(OUT, IN, 2, seed=9))
    matrix = form_matrix(form.state_dict())
    theirs = value_and_gradients(lambda B, A: matrix_penalty(B, A, matrix, held), B, A)
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_gradients(lambda B, A: form.quadratic(B, A, held), B, A)
        assert form.quadratic(B, A, held).dtype == torch.float32
    assert_same(ours[:1], theirs[:1], 1e-5)
    assert_same(ours[1:], theirs[1:], rtol)


def test_gradients_against_finite_differences(case):
    form, held = form_of(case), factors(OUT, IN, 2, seed=9)
    pair = [x.requires_grad_() for x in factors(OUT, IN, 3)]
    assert torch.autograd.gradcheck(lambda B, A: form.quadratic(B, A, held), pair, fast_mode=True)


def test_invariant_under_a_change_of_gauge(case):
    form, (B, A), R = form_of(case), factors(OUT, IN, 3), torch.randn(3, 3, dtype=torch.float64)
    held = factors(OUT, IN, 3, seed=9)
    torch.testing.assert_close(form.quadratic(B @ R.inverse(), R @ A, held), form.quadratic(B, A, held))


def test_nothing_at_the_anchor_and_no_cancellation_beside_it(case):
    form = form_of(case)
    B, A = factors(OUT, IN, 3, dtype=torch.float32)
    assert [float(x.abs().max()) for x in value_and_gradients(lambda *p: form.quadratic(*p, (B, A)), B, A)] == [0, 0, 0]
    moved, matrix = B + 1e-5 * torch.randn_like(B), form_matrix(form.state_dict())
    theirs = value_and_gradients(lambda *pair: matrix_penalty(*pair, matrix, (B, A)), moved, A)
    assert_same(value_and_gradients(lambda *pair: form.quadratic(*pair, (B, A)), moved, A), theirs, 1e-5)


def test_batches_add_up_to_one(case):
    name, settings = CASES[case]
    whole = form_matrix(collect(name, case_data(case), **settings).state_dict())
    for batch in (1, 5):
        parts = form_matrix(collect(name, case_data(case), batch=batch, **settings).state_dict())
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9 * float(whole.max()))


def test_the_sums_of_two_collectors_add_up_to_those_of_one(case):
    """What ranks do: each adds its rows, the sums are added in place, and the count is that of all."""
    name, settings = CASES[case]
    x, d = case_data(case)
    collectors = [FORMS[name].collector(OUT, IN, x.device, x.dtype, **settings) for _ in range(2)]
    collectors[0].add(x[:8], d[:8])
    collectors[1].add(x[8:], d[8:])
    for total, other in zip(collectors[0].sums(), collectors[1].sums(), strict=True):
        total += other
    ours, whole = (form_matrix(f.state_dict()) for f in (collectors[0].done(len(x)), form_of(case)))
    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-9 * float(whole.max()))


def test_the_count_divides(case):
    """Twice the count is half the importance."""
    once, half = form_of(case), form_of(case, count=24)
    torch.testing.assert_close(form_matrix(half.state_dict()), form_matrix(once.state_dict()) / 2)


def test_trace_is_the_mean_squared_norm(case):
    """Exact but for storage, and so it remains when importance is summed, decayed and rescaled."""
    first, second = form_of(case), form_of(case, seed=1)
    norms = [float((example_gradients(*case_data(case, seed)) ** 2).sum()) / 12 for seed in (0, 1)]
    rtol = {"bfloat16": 4e-3, "uint8": 4e-3, "fallen back": 4e-3}.get(case, 1e-12)
    assert first.trace == pytest.approx(norms[0], rel=rtol)
    first.accumulate(second, 0.5)
    assert first.trace == pytest.approx(0.5 * norms[0] + norms[1], rel=2 * rtol)
    first.rescale(3.0)
    assert first.trace == pytest.approx(1.5 * norms[0] + 3 * norms[1], rel=2 * rtol)
    assert first.trace == pytest.approx(float(form_matrix(first.state_dict()).trace()), rel=1e-12)


def test_accumulate_keeps_the_size(case):
    form = form_of(case)
    shapes, size = {k: t.shape for k, t in form.state_dict().items()}, form.nbytes
    for seed in (1, 2, 3):
        form.accumulate(form_of(case, seed=seed), 0.9)
    if case == "fallen back":  # what one task's factors do not fit, the sum's may
        assert form.nbytes <= size
    else:
        assert {k: t.shape for k, t in form.state_dict().items()} == shapes


def test_accumulate_leaves_the_other_alone(case):
    form, other = form_of(case), form_of(case, seed=1)
    before = {k: t.clone() for k, t in other.state_dict().items()}
    form.accumulate(other)
    form.rescale(2.0)
    form.accumulate(form_of(case, seed=2))
    assert all(torch.equal(t, before[k]) for k, t in other.state_dict().items())


def test_accumulate_with_nothing(case):
    """Nothing at all keeps what there was, and a decay of 0 forgets it."""
    name, settings = CASES[case]
    form, matrix = form_of(case), form_matrix(form_of(case).state_dict())
    nothing = collect(name, [torch.zeros_like(t) for t in case_data(case)], **settings)
    assert nothing.trace == 0
    assert float(nothing.quadratic(*factors(OUT, IN, 3))) == 0
    form.accumulate(nothing)
    close = {"rtol": 0.02, "atol": 5e-3 * float(matrix.max())} if case == "fallen back" else {}
    torch.testing.assert_close(form_matrix(form.state_dict()), matrix, **close)
    nothing.accumulate(form, 0.0)
    torch.testing.assert_close(form_matrix(nothing.state_dict()), matrix, **close)


def test_rescale(case):
    form = form_of(case)
    before = form_matrix(form.state_dict())
    form.rescale(0.25)
    torch.testing.assert_close(form_matrix(form.state_dict()), before / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_through_safetensors_to_the_bit(case, dtype):
    name, settings = CASES[case]
    form = collect(name, [t.to(dtype) for t in case_data(case)], **settings)
    form.accumulate(collect(name, [t.to(dtype) for t in case_data(case, 1)], **settings))
    state = form.state_dict()
    again = FORMS[name].from_state_dict(load(save({k: t.contiguous() for k, t in state.items()})), **settings)
    assert {k: (t.dtype, t.shape) for k, t in again.state_dict().items()} == {
        k: (t.dtype, t.shape) for k, t in state.items()
    }
    assert all(torch.equal(t, state[k]) for k, t in again.state_dict().items())
    assert (again.shape, again.nbytes, again.trace) == (form.shape, form.nbytes, form.trace)
    pair = factors(OUT, IN, 3)
    assert torch.equal(again.quadratic(*pair), form.quadratic(*pair))
    again.accumulate(form, 0.5)
    form.accumulate(FORMS[name].from_state_dict(state, **settings), 0.5)
    assert all(torch.equal(t, form.state_dict()[k]) for k, t in again.state_dict().items())


def test_a_restored_form_does_not_share_memory_with_its_state(case):
    name, settings = CASES[case]
    state = form_of(case).state_dict()
    before = {k: t.clone() for k, t in state.items()}
    FORMS[name].from_state_dict(state, **settings).rescale(2.0)
    assert all(torch.equal(t, before[k]) for k, t in state.items())


def test_nbytes_is_what_the_state_weighs(case):
    state = form_of(case).state_dict()
    assert form_of(case).nbytes == sum(t.numel() * t.element_size() for t in state.values())


def test_the_options_are_in_the_signature(case):
    """A configuration's keywords are read there, for collecting and for restoring alike."""
    form = FORMS[CASES[case][0]]
    keywords = [
        {n: p.default for n, p in inspect.signature(f).parameters.items() if p.kind is p.KEYWORD_ONLY}
        for f in (form.collector, form.from_state_dict)
    ]
    assert keywords[0] == keywords[1]
    assert set(CASES[case][1]) == set(keywords[0]) - {"squares"}  # which only reproduces a reference code


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_what_would_make_importance_negative_or_endless_is_refused(name, factor):
    form = collect(name, examples())
    with pytest.raises(ValueError, match="factor must be a number of at least 0, got"):
        form.rescale(factor)
    with pytest.raises(ValueError, match="decay must be a number of at least 0, got"):
        form.accumulate(form, factor)


@pytest.mark.parametrize("name", FORMS)
def test_another_form_or_shape_is_refused(name):
    form, others = collect(name, examples()), [collect(n, examples()) for n in FORMS if n != name]
    for other in (*others, collect(name, examples(out=6))):
        with pytest.raises(ValueError, match=rf"a {name.title()} of \(24, 30\) accumulates its like, got a"):
            form.accumulate(other)


@pytest.mark.parametrize("name", FORMS)
def test_the_state_of_another_form_is_refused(name):
    for other in set(FORMS) - {name}:
        with pytest.raises(ValueError, match=f"not the state of a {name.title()}: it has .*; expected"):
            FORMS[name].from_state_dict(collect(other, examples()).state_dict())
    with pytest.raises(ValueError, match="it has nothing"):
        FORMS[name].from_state_dict({})
