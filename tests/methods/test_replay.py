"""Replay: its loss against single rows, which rows it keeps, what they weigh, and what continues after a restart."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from transformers import TrainingArguments

from method_oracles import replayed, rows_in_turn
from models import MLP, bare_bert, fit, prompts, texts, tiny_bert, tiny_llama, train, vectors
from oracles import single_rows
from retain.buffer import keys
from retain.hf import fit as fit_with_trainer
from retain.methods.replay import Replay
from retain.task import CrossEntropy, SquaredError, Task, default_collate, forward

pytestmark = pytest.mark.filterwarnings("ignore:a share of:UserWarning")
OWN = CrossEntropy(torch.tensor([0, 0, 1]))


def learned(model, *tasks, **options):
    method = Replay(model, **{"batch_size": 100} | options)
    for task in tasks:
        fit(method, task)
    return method


def regression(name, seed=0):
    return Task(name, [(x, x[:, :3].sin()) for x, _ in vectors(seed=seed).train], loss=SquaredError())


def own_number(task):
    """``task`` with the first of its numbers alone, which the last of three outputs is to give."""
    loss = SquaredError(torch.tensor([0, 0, 1]), 1)
    return replace(task, train=[(x, y[:, 0]) for x, y in task.train], loss=loss)


def in_group(task, group):
    """``task`` with labels of the classes that ``OWN`` gives to ``group``."""
    classes = (OWN.groups == group).nonzero()[:, 0]
    batches = [b | {"labels": classes[b["labels"] % len(classes)]} for b in task.train]
    return replace(task, train=batches, loss=OWN)


def kept(method, *tasks):
    """The kept rows as the tasks themselves have them, one by one, each with its task."""
    return [(list(single_rows(task))[i], task) for task in tasks for i in method.numbers[task.name]]


STREAMS = {
    "one head": (tiny_bert, [texts("a"), texts("b", seed=1, length=9)]),
    "heads": (tiny_bert, [in_group(texts("a"), 0), in_group(texts("b", seed=1, length=9), 1)]),
    "language model": (tiny_llama, [prompts("a"), prompts("b", seed=1, length=9)]),
    "regression": (MLP, [regression("a"), regression("b", seed=1)]),
    "a number of its own": (MLP, [vectors("a"), own_number(regression("b", seed=1))]),
    "both losses": (MLP, [vectors("a"), regression("b", seed=1)]),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_loss_and_its_gradient_are_those_of_the_kept_rows_one_by_one(name):
    model, tasks = STREAMS[name]
    method = learned(model(), *tasks, share=0.4, weight=0.7)
    method.model.eval()
    names = [n for n, p in method.model.named_parameters() if p.requires_grad]
    loss = method.extra_loss()
    found = torch.autograd.grad(loss, [method.model.get_parameter(n) for n in names])
    expected, gradients = replayed(method.model, kept(method, *tasks), names)
    torch.testing.assert_close(loss.double(), 0.7 * expected, rtol=1e-5, atol=1e-6)
    for name, ours, oracle in zip(names, found, gradients, strict=True):
        torch.testing.assert_close(ours.double(), 0.7 * oracle, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("said", [{"seen": True}, {}])
def test_where_the_task_is_not_known_replayed_rows_compete_among_all_classes_so_far(said):
    """Three classes, each a task's own: the first two compete, in rows of both tasks; the third is to come."""
    apart = CrossEntropy(torch.arange(3))
    tasks = [
        replace(texts(name, length=9), loss=apart, known=bool(said), train=[b | {"labels": b["labels"] * 0 + i}])
        for i, name in enumerate("ab")
        for b in texts(name, seed=i, length=9).train[:1]
    ]
    method = learned(tiny_bert(), tasks[0], share=0.9, **said)
    method.begin_task(tasks[1])
    method.model.eval()
    names = [n for n, p in method.model.named_parameters() if p.requires_grad]
    loss = method.extra_loss()
    found = torch.autograd.grad(loss, [method.model.get_parameter(n) for n in names])
    two = replace(tasks[0], loss=CrossEntropy(torch.tensor([0, 0, 1])))
    assert set(method.numbers) == {"a"}
    method.end_task(tasks[1])
    rows = [(row, two) for row, _ in kept(method, *tasks)]
    assert {int(row["labels"]) for row, _ in rows} == {0, 1}
    expected, gradients = replayed(method.model, rows, names)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for name, ours, oracle in zip(names, found, gradients, strict=True):
        torch.testing.assert_close(ours.double(), oracle, rtol=1e-4, atol=1e-6, msg=name)
    method.seen = False
    method.begin_task(tasks[1])
    assert method.extra_loss() == 0  # of one class alone in either task


@pytest.mark.parametrize("name", ["one head", "heads", "regression"])
def test_matching_adds_how_far_the_outputs_of_a_row_s_own_classes_have_moved(name):
    model, (first, second) = STREAMS[name]
    method = learned(model(), first, share=0.4, match=0.5)
    rows = kept(method, first)

    def outputs():
        with torch.no_grad():
            return [forward(copy.deepcopy(method.model).double().eval(), row)[0][0] for row, _ in rows]

    before = outputs()
    train(method, second)
    method.model.eval()
    own = [OWN.groups == 0 if first.loss is OWN else torch.ones(len(z), dtype=bool) for z in before]
    moved = torch.cat([(z - old)[mine] for z, old, mine in zip(outputs(), before, own, strict=True)])
    plain, _ = replayed(method.model, rows, [next(iter(method.beside() or method.sites))])
    torch.testing.assert_close(method.extra_loss().double(), plain + 0.5 * (moved**2).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("balanced", [True, False])
def test_a_fixed_number_of_rows_is_chosen_among_all_that_were_ever_seen(balanced):
    tasks = [vectors(name, sizes, seed) for seed, (name, sizes) in enumerate([("z", (20,)), ("y", (5,)), ("x", (9,))])]
    method = learned(MLP(), *tasks, rows=10, balanced=balanced)
    labels = [targets for task in tasks for _, targets in task.train]
    lots = torch.cat([keys(torch.arange(len(y)), hash((0, number))) for number, y in enumerate(labels)])
    cells = torch.cat([10 * number + y for number, y in enumerate(labels)]) * balanced
    expected = torch.tensor(rows_in_turn(lots.tolist(), cells.tolist(), 10))
    assert method.growth == 0 and method.boundary["rows"] == 10 and method.boundary["kept"] == len(method.numbers["x"])
    found = torch.cat([method.numbers[task.name] + start for task, start in zip(tasks, (0, 20, 25), strict=True)])
    assert torch.equal(found, expected)
    if balanced:
        sizes = cells[expected].unique(return_counts=True)[1]
        assert sizes.max() - sizes.min() <= 1 and len(sizes) == len(cells.unique())


def test_of_every_class_a_row_is_kept_and_if_that_is_more_than_the_share_a_warning_says_so():
    task = vectors(sizes=(40, 60))
    with pytest.warns(UserWarning, match=r"0.02 of the 100 rows of 'vectors' is 2; 3 are kept.*Raise method.share"):
        method = learned(MLP(), task, share=0.02)
    assert method.inputs["vectors"]["1"].sort().values.tolist() == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(learned(MLP(), task, share=0.03).numbers["vectors"]) == 3
        assert len(learned(MLP(), task, share=0.01, balanced=False).numbers["vectors"]) == 1
    with pytest.warns(UserWarning, match=r"method.rows is 2, and the finished tasks have 3 classes: of some nothing"):
        assert len(learned(MLP(), task, rows=2).numbers["vectors"]) == 2


def test_bytes_are_known_before_there_are_rows():
    task = vectors(sizes=(40, 60), loss=CrossEntropy(torch.zeros(3).long()))
    for options in ({"share": 0.1}, {"share": 0.1, "match": 0.5}, {"rows": 7}):
        method = learned(MLP(), **options)
        foreseen = method.growth_for(100, 4 * 4 + 8, 3, 3)
        fit(method, task)
        state = sum(x.nbytes for x in method.state_dict().values()) - 8  # the number of the task
        assert method.boundary["bytes"] == state
        assert foreseen == method.growth == (3 * 8 if "rows" in options else state)


def test_draws_are_a_function_of_the_seed_the_boundary_and_the_step():
    def draws(method, steps):
        found = []
        for method.steps in steps:
            found.append(method.extra_loss().item())
        return found

    method = learned(MLP(), vectors("a"), vectors("b", seed=1), share=0.5, batch_size=3)
    values = draws(method, range(6))
    assert len(set(values)) > 3 and draws(method, [4, 2]) == [values[4], values[2]]
    method.seed = 1
    assert draws(method, range(6)) != values
    method.steps = 3
    method.begin_task(vectors())
    assert method.steps == 0
    method.after_step()
    assert method.steps == 1


def test_rows_of_several_tasks_continue_from_a_file_to_the_bit():
    """Files do not keep the order of their entries, and names do not sort like the tasks."""
    options = {"share": 0.5, "match": 0.3, "batch_size": 5}
    tasks = [in_group(texts("z"), 0), in_group(texts("y", seed=1, length=9), 1), in_group(texts("x", seed=2), 0)]
    whole = learned(tiny_bert(), *tasks[:2], **options)
    again = Replay(tiny_bert(), **options)
    again.load_state_dict(dict(sorted(load(save(whole.state_dict())).items())))
    again.model.load_state_dict(whole.model.state_dict())
    for method in (whole, again):
        torch.manual_seed(0)
        fit(method, tasks[2])
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    state = whole.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(x, state[name]) for name, x in again.state_dict().items())


def test_a_task_that_comes_again_replaces_its_rows():
    method = learned(MLP(), vectors("a"), vectors("b", seed=1), rows=6, match=0.5)
    fit(method, vectors("a", sizes=(30,), seed=2))
    assert sum(map(len, method.numbers.values())) == 6 and method.numbers["a"].max() > 11
    assert all(len(method.outputs[name]) == len(method.numbers[name]) for name in ("a", "b"))


def test_the_first_task_is_plain_training_to_the_bit():
    method, plain = Replay(tiny_bert()), tiny_bert()
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=0.02)
    torch.manual_seed(0)
    train(method, texts())
    torch.manual_seed(0)
    plain.train()
    for batch in texts().train:
        CrossEntropy().nll(*forward(plain, batch)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(x, method.model.state_dict()[name]) for name, x in plain.state_dict().items())


def test_it_forgets_less_than_plain_training():
    first, second = vectors("a", (40,)), vectors("b", (40,), seed=1)

    def forgotten(weight):
        method = Replay(MLP(), share=0.2, weight=weight)
        fit(method, first, epochs=40)
        train(method, second, epochs=40)
        with torch.no_grad():
            return CrossEntropy().nll(*forward(method.model, first.train[0])).mean()

    assert forgotten(1.0) < 0.5 * forgotten(1e-9)


def test_beside_trainer_kept_rows_run_in_its_mode_and_precision(tmp_path):
    """Trainer runs forwards of its own in train mode and under autocast; the first of all is that of kept rows."""
    method = learned(tiny_bert(), texts("a", sizes=(4, 4)))
    method.begin_task(texts("b"))
    method.model.eval()
    seen = []
    layer = next(iter(method.sites.values())).layer.lora_B["default"]
    layer.register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))
    options = {"use_cpu": True, "bf16": True, "max_steps": 2, "report_to": "none", "save_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path), **options, disable_tqdm=True, remove_unused_columns=False)
    rows = [{key: x[i] for key, x in texts("b", sizes=(8,)).train[0].items()} for i in range(8)]
    fit_with_trainer(method.model, Task("b", rows, collate=default_collate), method, arguments)
    assert set(seen) == {(True, torch.bfloat16)} and len(seen) == 4 and method.steps == 2


class Own:
    def nll(self, outputs, targets):
        return outputs.sum(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        ({"share": 1.5}, r"share must lie in \(0, 1\], got 1.5"),
        ({"weight": -1.0}, "weight must be at least 0 and finite, got -1.0"),
        ({"match": float("inf")}, "match must be at least 0 and finite, got inf"),
        ({"weight": 0.0}, "weight and match are both 0: rows would be kept and never used"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Replay(MLP(), **options)


def test_what_cannot_be_kept_is_refused_before_training():
    with pytest.raises(ValueError, match="task 'vectors': .* replayed under CrossEntropy alone.* its loss is Own"):
        Replay(MLP()).begin_task(vectors(loss=Own()))
    with pytest.raises(ValueError, match="targets in float32 can be replayed under SquaredError alone"):
        Replay(MLP()).begin_task(replace(regression("a"), loss=CrossEntropy()))
    with pytest.raises(ValueError, match="task 'prompts': match keeps all outputs .* tokens x vocabulary; use match=0"):
        Replay(tiny_llama(), match=0.5).begin_task(prompts())
    state = learned(MLP(), vectors()).state_dict()
    with pytest.raises(ValueError, match="the state has no outputs of 'vectors': it was written with match=0"):
        Replay(MLP(), match=0.5).load_state_dict(state)


def test_any_module_will_do():
    method = learned(bare_bert(), texts("a"))
    assert isinstance(method.model, nn.Module) and not method.sites and method.extra_loss() > 0
