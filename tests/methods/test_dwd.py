"""DWD: without its parts Online EWC to the bit; each part against its plain twin; what is inert says so."""

import warnings

import pytest
import torch

from method_oracles import faded_mean, group_strengths
from models import filled, fit, texts, tiny_bert, tiny_mlp, train, vectors
from oracles import fisher_by_loop, relative_error
from retain import DWD, EWC, EWCLoRA, Task, attach
from retain.checkpoints import restore_progress
from retain.fisher.running import part_of
from retain.methods.dwd import ESTIMATE
from retain.task import forward

A, B, C = (vectors(name, seed=seed) for seed, name in enumerate("abc"))
PLAIN = {"running": None, "groups": 1}
DIAGONAL = {"form": "diagonal"}


def learned(*tasks, method=DWD, model=tiny_mlp, epochs=1, **options):
    made = method(model(), **options)
    for task in tasks:
        torch.manual_seed(0)
        fit(made, task, epochs=epochs)
    return made


def weights(method):
    return {name: p.detach().clone() for name, p in method.model.named_parameters() if p.requires_grad}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("parts", [PLAIN, {"running": None, "exponent": 0.0}, {"every": 1000, "groups": 1}])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_without_its_parts_it_is_online_ewc_to_the_bit(parts, decay):
    tasks = [texts(name, seed=seed) for seed, name in enumerate("abc")]
    ours = learned(*tasks, model=tiny_bert, decay=decay, **parts)
    ewc = learned(*tasks, method=EWC, model=tiny_bert, decay=decay)
    assert same(weights(ours), weights(ewc)) and same(ours.fisher, ewc.fisher) and same(ours.anchor, ewc.anchor)
    for method in (ours, ewc):
        torch.manual_seed(0)
        train(method, tasks[0])
    assert ours.predicted_rise() == ewc.predicted_rise() and ours.remembered == ewc.remembered


def test_on_the_update_it_is_then_ewc_lora_with_a_diagonal_to_the_bit():
    tasks = [texts(name, seed=seed) for seed, name in enumerate("abc")]
    ours = learned(*tasks, model=tiny_bert, protect="update", decay=0.5, **PLAIN)
    lora = learned(*tasks, method=EWCLoRA, model=tiny_bert, decay=0.5, fisher=DIAGONAL)
    assert same(weights(ours), weights(lora)) and ours.strength == lora.strength


@pytest.mark.parametrize(
    "parts",
    [
        {"running": 0.9, "every": 1},
        pytest.param({"groups": 2}, marks=pytest.mark.slow),
        {"graph": "fisher"},
        pytest.param({"graph": "features"}, marks=pytest.mark.slow),
    ],
)
def test_each_part_changes_what_is_learned(parts):
    plain, with_part = (learned(A, B, C, **PLAIN | more) for more in ({}, parts))
    assert not same(weights(plain), weights(with_part))


@pytest.mark.parametrize("strength", [0.0, 1e6])
def test_the_running_fisher_is_that_of_the_task_alone_whatever_the_penalty_or_the_clipping(strength):
    """Every second step a pass over three rows at the weights of that moment, one example at a time."""
    method = learned(A, strength=strength, running=0.7, every=2, rows=3, groups=1)
    before, estimates = {name: F.clone() for name, F in method.fisher.items()}, []
    method.begin_task(B)
    optimizer = torch.optim.SGD(method.param_groups(), lr=0.1)
    attach(optimizer, method)
    for step, batch in enumerate([*B.train] * 3, 1):
        optimizer.zero_grad()
        (B.loss.nll(*forward(method.model, batch)).mean() + method.extra_loss()).backward()
        torch.nn.utils.clip_grad_norm_(method.model.parameters(), 0.5)
        gradients = [p.grad.clone() for p in method.springs.anchored.values()]
        state = torch.get_rng_state()
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(method.springs.anchored.values(), gradients, strict=True))
        assert torch.equal(state, torch.get_rng_state()) and method.model.training
        if step % 2 == 0:
            seed = method._seed(ESTIMATE, step)
            part = part_of(B, B.order(seed)[:3], 3)
            estimates.append(fisher_by_loop(method.model, method.springs.names, part, seed=seed))
    method.end_task(B)
    assert method.boundary["estimates"] == len(estimates) == 4 and method.boundary["examples"] == 12
    wanted = {n: F.double() + faded_mean([e[n] for e in estimates], 0.7) for n, F in before.items()}
    assert relative_error(method.fisher, wanted) < 1e-4
    assert method.boundary["trace"] == pytest.approx(sum(float(F.sum()) for F in wanted.values()), rel=1e-4)


def test_a_task_without_an_estimate_is_measured_at_its_end():
    running, whole = learned(A, B, groups=1), learned(A, B, groups=1, running=None)
    assert "estimates" not in running.boundary and same(running.fisher, whole.fisher)


def test_what_is_estimated_on_the_way_goes_on_from_where_it_was():
    method, other = (DWD(tiny_mlp(), every=1) for _ in range(2))
    train(method, A)
    other.begin_task(A)
    other.load_progress(method.progress())
    other.model.load_state_dict(method.model.state_dict())
    for each in (method, other):
        each.after_step()
        each.end_task(A)
    assert same(method.fisher, other.fisher) and method.boundary["estimates"] == other.boundary["estimates"] == 4
    assert method.progress() == {} == DWD(tiny_mlp(), running=None).progress()
    with pytest.raises(ValueError, match="is of another method, or of another value of `running`"):
        DWD(tiny_mlp(), running=None).load_progress({"steps": torch.tensor(1)})


def test_estimates_that_were_lost_with_a_checkpoint_are_missed(tmp_path):
    method = DWD(tiny_mlp())
    method.begin_task(A)
    with pytest.warns(UserWarning, match="progress.safetensors is missing: what the method measured before is lost"):
        restore_progress(method, tmp_path)
    restore_progress(DWD(tiny_mlp(), running=None), tmp_path)


def grouped(**options):
    return learned(A, B, model=tiny_mlp, epochs=3, running=None, **{"groups": 3, "probes": 4, "rows": 2} | options)


@pytest.mark.parametrize(
    "options", [{}, {"groups": "auto"}, {"assign": "mixture"}, {"protect": "update"}, {"units": 6}]
)
def test_every_group_has_a_strength_and_the_total_is_kept(options):
    method = grouped(**options)
    units = method._units
    totals, ids, factors = [], [], []
    for name, cuts in units.cuts.items():
        F = method.fisher[name].double().movedim(units.axes[name], 0)
        for unit in cuts.unique():
            totals.append((float(F[cuts == unit].sum()), F[cuts == unit].numel()))
            members, own = method.members[name][cuts == unit], method.factors[name][cuts == unit]
            assert len(members.unique()) == len(own.unique()) == 1, "the rows of a unit have one strength"
            ids.append(int(members[0]))
            factors.append(float(own[0]))
    sums, counts = zip(*totals, strict=True)
    assert len(set(ids)) == method.boundary["groups"] > 1 and len(ids) == units.count
    assert factors == pytest.approx(group_strengths(sums, counts, ids, method.exponent), rel=1e-5)
    assert sum(c * s for c, s in zip(factors, sums, strict=True)) == pytest.approx(sum(sums), rel=1e-5)


def test_groups_are_made_anew_at_every_boundary_and_are_the_same_for_the_same_seed():
    one, other = grouped(), grouped()
    assert same(one.members, other.members) and same(one.factors, other.factors)
    before = {name: c.clone() for name, c in one.factors.items()}
    fit(one, C)
    assert not same(before, one.factors)


def test_units_are_the_rank_indices_of_factors_and_blocks_of_outputs_of_the_update():
    sizes = {name: len(cuts.unique()) for name, cuts in DWD(tiny_mlp())._units.cuts.items()}
    assert sorted(sizes.values()) == [2, 2, 2, 2, 3, 3]
    assert sorted(len(c.unique()) for c in DWD(tiny_mlp(), protect="update", units=12)._units.cuts.values()) == [3] * 4


def test_a_single_group_says_so_and_is_online_ewc():
    method = DWD(tiny_mlp(modules_to_save=None), units=1, probes=2, running=None)
    one_unit = {name: torch.zeros_like(cuts) for name, cuts in method._units.cuts.items()}
    method._units.cuts, method._units.count = one_unit, 1
    train(method, A)
    with pytest.warns(UserWarning, match="a single group was found after 'a': all weights are protected with the same"):
        method.end_task(A)
    assert method.factors == {} and method.boundary["groups"] == 1


def test_no_importance_at_all_is_refused():
    method = DWD(tiny_mlp(modules_to_save=None), running=None)
    with torch.no_grad():
        for site in method.sites.values():
            site.set_factors(0 * site.B, 0 * site.A)
    method.begin_task(A)
    with pytest.raises(RuntimeError, match="zero everywhere"):
        method.end_task(A)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["fisher", "features"])
@pytest.mark.parametrize("protect", ["factors", "update"])
def test_the_graph_pulls_towards_the_tasks_that_a_new_one_is_like(graph, protect):
    def away(attraction):
        method = learned(A, B, epochs=10, protect=protect, strength=100.0, graph=graph, attraction=attraction, **PLAIN)
        train(method, A, epochs=10)
        assert method.edges.keys() == {"a", "b"} and sum(method.edges.values()) == pytest.approx(1)
        anchors = {name: node["anchor"] for name, node in method.nodes.items()}
        return sum(w * sum(method.springs.moved(anchors[name]).values()) for name, w in method.edges.items())

    assert away(10.0) < 0.7 * away(0.0)


def test_features_of_the_last_task_are_those_of_the_weights_at_hand():
    """Its edge is therefore the heaviest, and the weights are put back after each earlier task's were looked at."""
    method = learned(A, B, C, epochs=5, graph="features", **PLAIN)
    before = weights(method)
    method.begin_task(A)
    assert same(before, weights(method)) and max(method.edges, key=method.edges.get) == "c"


def test_a_graph_without_edges_says_so():
    method = learned(A, graph="fisher", **PLAIN)
    method.nodes["a"]["fisher"] = {name: torch.zeros_like(F) for name, F in method.nodes["a"]["fisher"].items()}
    with pytest.warns(UserWarning, match="no earlier task is like 'b': the task graph does nothing"):
        method.begin_task(B)
    assert method.predicted_rise() == {"total": 0.0}


def test_tensors_are_measured_a_few_at_a_time_if_asked():
    whole, parts = (learned(A, B, at_once=at_once, running=None) for at_once in (None, 1))
    assert relative_error(parts.fisher, whole.fisher) < 1e-5


def test_a_part_without_importance_is_named():
    method = DWD(filled(tiny_mlp(modules_to_save=None)), running=None, groups=1)
    method.sites["2"].A.data.zero_()  # on which the gradient of B depends
    with pytest.warns(UserWarning, match=r"zero Fisher information: nothing protects base_model\.model\.2\.lora_B"):
        method.end_task(A)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength must be at least 0 and finite, got -1.0"),
        ({"decay": 1.5}, r"decay must lie in \[0, 1\], got 1.5"),
        ({"running": 1.0}, r"running must lie in \[0, 1\), or be None for a pass at the end alone; got 1.0"),
        ({"running": False}, r"running must lie in \[0, 1\).* got False"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"groups": "autp"}, "groups: 'autp' is not allowed; expected a whole number of at least 1, or 'auto'"),
        ({"protect": "updates"}, "unknown protect 'updates'; known: factors, update; did you mean 'update'"),
        ({"assign": "kmeans"}, "unknown assign 'kmeans'; known: k-means, mixture; did you mean 'k-means'"),
        ({"graph": "cka"}, "unknown graph 'cka'; known: None, fisher, features"),
        ({"exponent": -0.5}, "exponent must be at least 0 and finite, got -0.5"),
        ({"at_once": 0}, "at_once must be a whole number of at least 1, got 0"),
        ({"fisher": {"form": "kronecker"}}, "fisher.form: 'kronecker' has no number a weight"),
        ({"fisher": {"form": "diag"}}, "fisher.form: unknown form 'diag'; known: diagonal, .* did you mean 'diagonal'"),
        ({"fisher": {"storage": "uint8"}}, "fisher.storage: 'uint8' cannot be chosen"),
    ],
)
def test_options_are_checked_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        DWD(tiny_mlp(), **options)


def test_a_state_of_other_keywords_is_refused():
    state = learned(A, graph="features").state_dict()
    with pytest.raises(ValueError, match="the state has a task graph, and graph is not set"):
        DWD(tiny_mlp()).load_state_dict(state)
    with pytest.raises(
        ValueError, match="the state has no importance of 0: was it kept with another value of `protect`"
    ):
        DWD(tiny_mlp(), protect="update", graph="features").load_state_dict(state)
    bare = {key: t for key, t in state.items() if not key.startswith("fisher/")}
    with pytest.raises(ValueError, match="finished tasks and no importance of theirs"):
        DWD(tiny_mlp(), graph="features").load_state_dict(bare)


def test_nothing_warns_where_nothing_is_inert():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)
        learned(A, B, C, epochs=3, every=2, graph="fisher", probes=4)


def test_rows_that_cannot_be_cut_into_batches_of_one_size_do():
    lone = Task("lone", [(x[:1], y[:1]) for x, y in A.train[:1]])
    method = learned(lone, running=None, epochs=2)
    assert method.boundary["examples"] == 1
