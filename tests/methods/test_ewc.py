"""EWC in its collapsed form against the explicit sum over tasks; Online EWC; which parameters are protected."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models import MLP, fit, tiny_bert, tiny_mlp, train, vectors
from oracles import explicit_ewc
from retain.fisher import parameter_fisher
from retain.methods.ewc import EWC
from retain.task import Task


def double(seed, blind=False):
    """A task in float64; a ``blind`` one shows only zeros as first feature, whose weights then have no Fisher."""
    task = vectors(f"task {seed}", seed=seed)
    keep = torch.tensor([0.0 if blind else 1.0, 1.0, 1.0, 1.0])
    return Task(task.name, [(x.double() * keep, y) for x, y in task.train])


def trained(tasks, **options):
    """EWC on an MLP through ``tasks``, and each task's own (Fisher, anchor)."""
    method, springs = EWC(MLP().double(), **options), []
    for task in tasks:
        train(method, task)
        options = {"seed": method.boundary_seed, **method.choice.sweep}
        fisher = parameter_fisher(method.model, method.parameters, task, **options)
        springs.append((fisher, {n: p.detach().clone() for n, p in method.parameters.items()}))
        method.end_task(task)
    return method, springs


def moved(method):
    """The parameters, some way off every anchor."""
    with torch.no_grad():
        for p in method.parameters.values():
            p += 0.1 * torch.randn_like(p)
    return list(method.parameters.values())


FIVE = [double(0, blind=True), double(1, blind=True), double(2), double(3), double(4)]


def test_constant_storage_is_the_sum_over_five_tasks():
    method, springs = trained(FIVE, strength=3.0)
    parameters = moved(method)
    ours, explicit = method.extra_loss(), explicit_ewc(method.parameters, springs, 3.0)
    torch.testing.assert_close(ours, explicit, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(loss, parameters) for loss in (ours, explicit))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    stored = sum(t.numel() for t in method.state_dict().values())
    # Beside both: a constant, a level and two numbers of the first movement for each, and a number for each task.
    assert stored == 2 * sum(p.numel() for p in parameters) + 2 * len(parameters) + 2 * len(parameters) + 5


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_online_ewc_decays_the_past_and_holds_on_to_the_last_weights(decay):
    method, springs = trained(FIVE, strength=3.0, decay=decay)
    moved(method)
    total = {n: sum(decay ** (4 - i) * fisher[n] for i, (fisher, _) in enumerate(springs)) for n in method.parameters}
    online = explicit_ewc(method.parameters, [(total, springs[-1][1])], 3.0)
    torch.testing.assert_close(method.extra_loss(), online, rtol=1e-12, atol=0)
    assert online.item() != pytest.approx(explicit_ewc(method.parameters, springs, 3.0).item(), rel=1e-3)


def test_the_foreseen_rise_is_that_since_the_last_boundary():
    """The penalty counts every task's rise since its own end; a part of it is older than the training at hand."""
    method, springs = trained(FIVE, strength=3.0)
    before = explicit_ewc(method.parameters, springs, 1.0).item()
    moved(method)
    since = explicit_ewc(method.parameters, springs, 1.0).item() - before
    assert method.predicted_rise() == {"total": pytest.approx(since, rel=1e-10)} and before > 0
    assert method.remembered == dict.fromkeys(method.learned, 1.0)
    online, _ = trained(FIVE[:3], strength=3.0, decay=0.5)
    moved(online)
    assert online.predicted_rise()["total"] == pytest.approx(online.extra_loss().item() / 3)
    assert online.remembered == {"task 0": 0.25, "task 1": 0.5, "task 2": 1.0}


def test_a_strong_spring_holds_the_weights_of_a_plain_module():
    def change(strength):
        method = EWC(MLP(), strength=strength)
        fit(method, vectors(seed=0))
        before = torch.cat([p.detach().flatten() for p in method.model.parameters()])
        fit(method, vectors("b", seed=1), learning_rate=1e-3, epochs=10)
        after = torch.cat([p.detach().flatten() for p in method.model.parameters()])
        return float((after - before).norm())

    assert change(1e8) < 0.2 * change(0.0)


def test_a_boundary_says_how_many_examples_it_took():
    method = EWC(MLP().double(), fisher={"labels": "exact", "samples": "auto", "error": 0.5})
    method.end_task(double(0))
    assert method.boundary["examples"] <= method.boundary["rows"] == 11
    assert 0 <= method.boundary["error"] < 1


@pytest.mark.parametrize("decay", [None, 0.5])
def test_a_boundary_says_how_much_importance_there_is_by_now(decay):
    method, springs = trained([double(0), double(1)], decay=decay)
    first, second = (sum(float(F.sum()) for F in fisher.values()) for fisher, _ in springs)
    assert method.boundary["trace"] == pytest.approx((1 if decay is None else decay) * first + second)


def test_nothing_is_added_before_a_task_is_finished():
    assert EWC(MLP()).extra_loss() == 0.0


def test_depends_on_the_gauge_of_the_factors():
    """Why EWC-LoRA: another pair of factors of the same product pays a penalty here."""
    method = EWC(tiny_mlp(), strength=1.0)
    fit(method, vectors())
    assert method.extra_loss() == 0
    R = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    for site in method.sites.values():
        before = site.delta()
        site.set_factors(site.B.detach() @ R.inverse(), R @ site.A.detach())
        torch.testing.assert_close(site.delta(), before)
    assert method.extra_loss() > 1e-4


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
        (["2.*"], ["2.weight", "2.bias"]),
        (["4.bias", "*.weight"], ["4.bias", "0.weight", "2.weight", "4.weight"]),
    ],
)
def test_chosen_parameters(chosen, names):
    method = EWC(MLP(), parameters=chosen)
    fit(method, vectors())
    assert list(method.parameters) == list(method.fisher) == names


def test_of_an_adapted_model_the_factors_and_the_head_that_tasks_share():
    names = list(EWC(tiny_bert()).parameters)
    assert len([name for name in names if "lora_" in name]) == 12
    assert [name.rpartition(".")[2] for name in names if "lora_" not in name] == ["weight", "bias"]


def test_any_module_without_an_adapter():
    """A convolution and a normalisation take the other way through the Fisher pass."""
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 3))
    method = EWC(model, strength=1.0)
    fit(method, vectors())
    assert method.extra_loss() == 0 and all(fisher.any() for fisher in method.fisher.values())
    moved(method)
    assert method.extra_loss() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": ["0.weigth"]}, "'0.weigth' matches nothing; nearest: 0.weight, "),
        ({"parameters": ["body.*"]}, r"'body\.\*' matches nothing"),
        ({"strength": -1.0}, "strength must be at least 0 and finite, got -1.0"),
        ({"strength": float("nan")}, "strength must be at least 0 and finite, got nan"),
        ({"decay": 1.5}, r"decay must lie in \[0, 1\], got 1.5"),
        ({"fisher": {"labels": "all"}}, "fisher.labels: 'all' is not allowed; expected 'mixture', 'sample', 'exact', "),
        ({"fisher": {"samples": 0}}, "is not allowed; expected at least 1"),
        ({"fisher": {"lables": "exact"}}, "fisher: unknown key 'lables' .* did you mean 'labels'"),
        ({"fisher": {"form": "kronecker"}}, "fisher.form: 'kronecker' needs weights with rows and columns"),
        ({"fisher": {"form": "diag"}}, "fisher.form: unknown form 'diag'; known: diagonal, .* did you mean 'diagonal'"),
        ({"fisher": {"storage": "uint8"}}, "fisher.storage: 'uint8' cannot be chosen: ewc keeps"),
        ({"fisher": {"sketches": 2}}, "fisher: unknown key 'sketches'"),
    ],
)
def test_options_are_checked_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        EWC(MLP(), **options)


def test_a_frozen_module_has_nothing_to_protect():
    with pytest.raises(ValueError, match="nothing to protect"):
        EWC(MLP().requires_grad_(False))


def test_state_of_a_plain_module_goes_through_safetensors():
    method, _ = trained(FIVE[:3])
    other = EWC(method.model)
    other.load_state_dict(load(save(method.state_dict())))
    assert {name: int(number) for name, number in other.learned.items()} == {"task 0": 0, "task 1": 1, "task 2": 2}
    moved(method)
    assert other.extra_loss() == method.extra_loss()


@pytest.mark.parametrize("key", ["springs/0.weight", "fisher/9.weight", "fisher", "past/0/B"])
def test_entries_of_another_method_or_model_are_refused_by_name(key):
    method = EWC(MLP())
    with pytest.raises(ValueError, match=f"state entry '{key}' does not belong to EWC on this model"):
        method.load_state_dict({key: torch.zeros(1)})
