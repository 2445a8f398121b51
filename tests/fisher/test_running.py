"""The running Fisher: its correction for having started at zero, its state, and the rows that it is measured on."""

import pytest
import torch

from method_oracles import faded_mean
from models import texts, vectors
from retain.fisher.running import Running, part_of, probes
from retain.task import forward


def estimates(count):
    return [{"a": torch.rand(3, 2), "b": torch.rand(4)} for _ in range(count)]


def copied(estimate):
    return [(name, F.clone()) for name, F in estimate.items()]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_mean_is_that_of_all_estimates_fading_with_age(decay, count):
    running, given = Running(decay), estimates(count)
    for estimate in given:
        running.add(copied(estimate))
    for name, mean in running.means():
        torch.testing.assert_close(mean.double(), faded_mean([e[name] for e in given], decay), rtol=1e-5, atol=1e-6)
    assert running.totals == {}


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped():
    whole, broken, given = Running(0.9), Running(0.9), estimates(5)
    for estimate in given[:3]:
        whole.add(copied(estimate))
        broken.add(copied(estimate))
    resumed = Running(0.9)
    resumed.load(broken.state(), ["a", "b"], torch.device("cpu"))
    for estimate in given[3:]:
        whole.add(copied(estimate))
        resumed.add(copied(estimate))
    ours, theirs = dict(resumed.means()), dict(whole.means())
    assert all(torch.equal(ours[name], mean) for name, mean in theirs.items())


def test_a_state_of_other_tensors_is_refused():
    running = Running(0.9)
    running.add(copied(estimates(1)[0]))
    with pytest.raises(ValueError, match="a running Fisher of other tensors: only here or only there is c"):
        Running(0.9).load(running.state(), ["a", "b", "c"], torch.device("cpu"))
    empty = Running(0.9)
    empty.load(Running(0.5).state(), ["a"], torch.device("cpu"))
    assert empty.totals == {} and empty.count == 0


def test_some_rows_are_a_task_of_their_own():
    task = texts()
    part = part_of(task, torch.tensor([9, 0, 5]), 2)
    everything = torch.cat([batch["input_ids"] for batch in task.train])
    assert torch.equal(torch.cat([batch["input_ids"] for batch in part.train]), everything[[0, 5, 9]])
    assert part.loss is task.loss
    assert forward(lambda **k: type("Out", (), {"logits": k["input_ids"]}), part.train[0])[1].shape == (1,)


@pytest.mark.parametrize(
    ("count", "rows", "sizes"), [(3, 2, [2] * 3), (4, 5, [2] * 4), (32, 16, [1] * 11), (1, 99, [11])]
)
def test_probes_are_disjoint_and_of_one_size(count, rows, sizes):
    found = probes(vectors(), count, rows, seed=1)
    assert [len(numbers) for numbers in found] == sizes
    assert len(torch.cat(found).unique()) == sum(sizes)
    assert all(torch.equal(a, b) for a, b in zip(found, probes(vectors(), count, rows, seed=1), strict=True))
