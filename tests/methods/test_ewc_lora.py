"""EWC-LoRA in both modes: the spring, the boundary, its limits, and the reference's defect E1.

What it foresees, and the forms of its importance, are in ``test_ewc_lora_forms.py``.
"""

import pytest
import torch
from safetensors.torch import load, save

from models import filled, fit, layers, prompts, texts, tiny_bert, tiny_llama, tiny_mlp, train, vectors
from oracles import dense_penalty
from retain.fisher import parameter_fisher, weight_fisher
from retain.methods.ewc_lora import EWCLoRA
from retain.methods.sequential import Sequential

MODES = ["shared", "merge"]
A, B, C = (vectors(name, seed=seed) for seed, name in enumerate("abc"))


DIAGONAL = {"form": "diagonal"}


def bare_mlp(**lora):
    """No head trains beside the adapter, so that all springs are those of the weight change."""
    return tiny_mlp(modules_to_save=None, **lora)


def deltas(method):
    return {name: site.delta() for name, site in method.sites.items()}


def dense(method):
    """The diagonal Fisher (out, in) of every site."""
    return {name: form.state_dict()["fisher"] for name, form in method.forms.items()}


def distance(one, other):
    return float(sum((one[name] - other[name]).square().sum() for name in one) ** 0.5)


def outputs(method):
    method.model.eval()
    with torch.no_grad():
        return method.model(A.train[0][0])


@pytest.mark.parametrize("mode", MODES)
def test_without_strength_it_is_sequential_to_the_bit(mode):
    ours, plain = EWCLoRA(tiny_bert(), strength=0.0, mode=mode), Sequential(tiny_bert(), mode=mode)
    for method in (ours, plain):
        for seed in range(2):
            torch.manual_seed(seed)
            fit(method, texts(str(seed), seed=seed))
    weights = dict(plain.model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in ours.model.named_parameters())
    for name, site in ours.sites.items():
        assert all(torch.equal(x, y) for x, y in zip(site.past, plain.sites[name].past, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_on_the_first_task_it_is_sequential_whatever_the_strength(mode):
    ours, plain = EWCLoRA(bare_mlp(), strength=1e6, mode=mode), Sequential(bare_mlp(), mode=mode)
    for method in (ours, plain):
        fit(method, A)
    assert distance(deltas(ours), deltas(plain)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_endless_strength_holds_the_weight_change(mode):
    def change(strength):
        method = EWCLoRA(bare_mlp(), strength=strength, mode=mode, fisher={"labels": "exact"})
        fit(method, A)
        before = deltas(method)
        fit(method, B, learning_rate=1e-3, epochs=30)
        return distance(deltas(method), before)

    free, strong, endless = (change(strength) for strength in (0.0, 1e3, 1e12))
    assert endless < strong < free and endless < 0.005 * free


@pytest.mark.parametrize("mode", MODES)
def test_the_spring_is_the_dense_one(mode):
    method = EWCLoRA(bare_mlp(use_rslora=True), strength=7.0, decay=0.5, mode=mode, fisher=DIAGONAL)
    fit(method, A)
    fit(method, B)
    anchors = {n: (s.B.detach().clone(), s.A.detach().clone()) for n, s in method.sites.items()}
    filled(method.model, seed=3)
    springs = [
        dense_penalty(s.B, s.A, dense(method)[n], s.scale, anchors[n] if mode == "shared" else None)
        for n, s in method.sites.items()
    ]
    torch.testing.assert_close(
        torch.as_tensor(method.extra_loss()).double(), 7.0 * torch.stack(springs).sum(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_the_fisher_decays_and_is_measured_before_the_boundary(mode, decay):
    method, measured = EWCLoRA(bare_mlp(), strength=0.0, decay=decay, mode=mode, fisher=DIAGONAL), []
    for task in (A, B, C):
        train(method, task)
        measured.append(
            weight_fisher(method.model, layers(method.model), task, seed=method.boundary_seed, **method.choice.sweep)
        )
        method.end_task(task)
    for name in method.sites:
        one, two, three = (fisher[name] for fisher in measured)
        torch.testing.assert_close(dense(method)[name], decay * (decay * one + two) + three)


def test_invariant_under_a_change_of_gauge():
    method = EWCLoRA(bare_mlp(), strength=1.0)
    fit(method, A)
    filled(method.model, seed=3)
    before, R = method.extra_loss(), torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    for site in method.sites.values():
        site.set_factors(site.B.detach() @ R.inverse(), R @ site.A.detach())
    torch.testing.assert_close(method.extra_loss(), before, rtol=1e-5, atol=0)


# --- The boundary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", ["products", "factors"])
def test_adding_factors_is_not_adding_products(accumulate):
    """Defect E1: the reference keeps (B1 + B2)(A1 + A2), which is not the model that was trained."""
    method = EWCLoRA(bare_mlp(), strength=1.0, mode="merge", accumulate=accumulate)
    pairs, changes = [], []
    for task in (A, B):
        train(method, task)
        pairs.append({n: (s.B.detach().clone(), s.A.detach().clone()) for n, s in method.sites.items()})
        before = outputs(method)
        method.end_task(task)
        changes.append(float((outputs(method) - before).abs().max()))
    for name, site in method.sites.items():
        (B1, A1), (B2, A2) = (pair[name] for pair in pairs)
        kept = B1 @ A1 + B2 @ A2 if accumulate == "products" else (B1 + B2) @ (A1 + A2)
        torch.testing.assert_close(site.delta(), site.scale * kept)
    assert changes[0] < 1e-5 and (changes[1] < 1e-5 if accumulate == "products" else changes[1] > 1e-2)


def test_a_capped_past_keeps_its_bytes_and_reports_what_it_cut():
    method, sizes, errors = EWCLoRA(bare_mlp(), strength=1.0, mode="merge", rank=3), [], []
    for seed in range(5):
        task = vectors(f"task {seed}", seed=seed)
        train(method, task)
        before = deltas(method)
        method.end_task(task)
        errors.append(max(float((d - before[n]).norm() / before[n].norm()) for n, d in deltas(method).items()))
        assert method.boundary["fold_error"] == pytest.approx(errors[-1], rel=1e-3, abs=1e-6)
        sizes.append(sum(t.numel() * t.element_size() for t in method.state_dict().values()) - 8 * len(method.learned))
    assert errors[0] == 0 and errors[1] > 0.01
    assert len(set(sizes[1:])) == 1


def test_without_a_cap_the_past_grows_by_one_adapter_a_task():
    method = EWCLoRA(bare_mlp(), strength=1.0, mode="merge")
    for seed in range(3):
        fit(method, vectors(f"task {seed}", seed=seed))
        assert {len(site.past[1]) for site in method.sites.values()} == {2 * (seed + 1)}
        assert method.boundary["fold_error"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_state_goes_through_safetensors_to_the_bit(mode):
    method = EWCLoRA(tiny_bert(), mode=mode, rank=3 if mode == "merge" else None)
    for seed in range(2):
        fit(method, texts(str(seed), seed=seed))
    other = EWCLoRA(tiny_bert(), mode=mode, rank=3 if mode == "merge" else None)
    other.load_state_dict(load(save(method.state_dict())))
    mine, theirs = method.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    for m in (method, other):
        filled(m.model)
    other.model.load_state_dict(method.model.state_dict())
    assert method.extra_loss() == other.extra_loss()


def test_state_of_another_model_is_refused_by_name():
    method = EWCLoRA(bare_mlp())
    fit(method, A)
    other = EWCLoRA(bare_mlp(target_modules=["2"]))
    with pytest.raises(ValueError, match="'fisher/0/left' does not belong to EWCLoRA on this model"):
        other.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="'adapters/a/2/A' does not belong to EWCLoRA"):
        other.load_state_dict({"adapters/a/2/A": torch.zeros(1)})


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("fisher/", "has finished tasks and no importance of theirs: nothing would be protected"),
        ("anchor/", "the state lacks anchors: its mode was not 'shared'"),
        (
            "springs/base_model.model.classifier.modules_to_save.default.bias/anchor",
            "spring of .*bias without its anchor",
        ),
    ],
)
def test_a_state_that_would_protect_nothing_is_refused(dropped, message):
    method, other = EWCLoRA(tiny_bert()), EWCLoRA(tiny_bert())
    fit(method, texts("a"))
    state = {key: tensor for key, tensor in method.state_dict().items() if not key.startswith(dropped)}
    assert len(state) < len(method.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert not other.learned


def test_a_state_of_the_other_mode_is_refused():
    method = EWCLoRA(bare_mlp())
    fit(method, A)
    with pytest.raises(ValueError, match="the state has anchors: its mode was not 'merge'"):
        EWCLoRA(bare_mlp(), mode="merge").load_state_dict(method.state_dict())


# --- What trains beside the adapter ----------------------------------------------------------------------------------


def test_a_head_that_tasks_share_gets_a_spring_too():
    method, measured = EWCLoRA(tiny_bert(), strength=1.0, decay=0.5), []
    for task in (texts("a"), texts("b", seed=1)):
        train(method, task)
        head = {n: p for n, p in method.model.named_parameters() if p.requires_grad and "lora_" not in n}
        measured.append(parameter_fisher(method.model, head, task, seed=method.boundary_seed, **method.choice.sweep))
        method.end_task(task)
    assert {name.rpartition(".")[2] for name in method.springs} == {"weight", "bias"}
    assert method.extra_loss() == 0
    for name, kept in method.springs.items():
        fisher = 0.5 * measured[0][name] + measured[1][name]
        torch.testing.assert_close(kept["fisher"], fisher)
        before = torch.as_tensor(method.extra_loss()).detach()
        with torch.no_grad():
            method.model.get_parameter(name).add_(0.1)
        torch.testing.assert_close(method.extra_loss() - before, 0.5 * 0.01 * fisher.sum())


def test_what_trains_on_and_on_without_a_spring_is_warned_of():
    method = EWCLoRA(tiny_bert(modules_to_save=["classifier", "attention.output.LayerNorm"]))
    fit(method, texts("a"))
    resumed = EWCLoRA(method.model)
    resumed.load_state_dict(method.state_dict())
    for each in (method, resumed):
        with pytest.warns(UserWarning, match="trained for more than one task, but not protected: .*LayerNorm"):
            each.begin_task(texts("b"))


def test_a_language_model():
    method = EWCLoRA(tiny_llama(), strength=10.0)
    for seed in range(2):
        fit(method, prompts(str(seed), seed=seed))
    assert method.extra_loss() == 0 and all(form.trace > 0 for form in method.forms.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fold"}, "unknown mode 'fold'; known: shared, merge"),
        ({"rank": 4}, "rank=4 caps the folded past: it must be at least 1, and needs mode='merge'"),
        ({"mode": "merge", "rank": 0}, "rank=0 caps the folded past: it must be at least 1"),
        ({"accumulate": "factors"}, "accumulate must be 'products', or 'factors' with mode='merge' and no rank"),
        ({"mode": "merge", "accumulate": "sums"}, "got 'sums'"),
        ({"strength": -1.0}, "strength must be at least 0 and finite, got -1.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\], got -0.1"),
    ],
)
def test_options_are_checked_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        EWCLoRA(bare_mlp(), **options)


def test_needs_an_adapter():
    with pytest.raises(ValueError, match="needs a model with a LoRA adapter"):
        EWCLoRA(torch.nn.Linear(2, 2))
