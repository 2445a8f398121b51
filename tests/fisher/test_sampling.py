"""Drawing rows in proportion to their scores: means stay what they were, and their errors are known."""

import pytest
import torch

from retain.fisher.sampling import UNIFORM, Tally, concentration, drawn, every

ROWS = 400


def generators(n):
    return (torch.Generator().manual_seed(seed) for seed in range(n))


@pytest.fixture
def energies():
    """Squared scores of a fitted model: a tenth of the rows hold most of them."""
    return torch.rand(ROWS, dtype=torch.float64) ** 6 + 1e-4


@pytest.fixture
def values(energies):
    """What the rows' gradients amount to: their squared scores, more or less."""
    return energies * torch.rand(ROWS, dtype=torch.float64).add(0.2)


@pytest.mark.parametrize("draws", [1, 40, 400, 3000])
def test_a_row_is_drawn_as_often_as_it_is_expected_up_to_one(energies, draws):
    times = torch.zeros(ROWS, dtype=torch.float64)
    q = (1 - UNIFORM) * energies / energies.sum() + UNIFORM / ROWS
    for generator in generators(300):
        sample = drawn(energies, draws, generator)
        assert sample.draws == draws and len(sample.chosen.unique()) == len(sample.chosen)
        torch.testing.assert_close(sample.expected, draws * q[sample.chosen])
        assert bool((sample.times - sample.expected).abs().lt(1).all())
        assert bool((sample.weights <= sample.times / UNIFORM * (1 + 1e-9)).all())
        times[sample.chosen] += sample.times / 300
    assert float(((times - draws * q) / (draws * q).sqrt().clamp(min=0.05)).abs().max()) < 0.3


def test_rows_without_any_score_are_drawn_alike():
    sample = drawn(torch.zeros(10), 10, torch.Generator())
    assert torch.equal(sample.times, torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(sample.weights, torch.ones(10, dtype=torch.float64))


def test_every_row_once_leaves_nothing_to_chance(values):
    sample, tally = every(ROWS), Tally(ROWS)
    assert torch.equal(sample.weights, torch.ones(ROWS, dtype=torch.float64)) and sample.variance(values) == 0
    tally.add(slice(0, ROWS), sample, values)
    assert tally.error == 0 and tally.total / tally.draws == pytest.approx(float(values.mean()))
    assert tally.looked == tally.examples == ROWS


@pytest.mark.parametrize("draws", [20, 100, 1000])
def test_the_weighted_sum_is_unbiased_and_its_variance_known(energies, values, draws):
    sums, said = [], []
    for generator in generators(500):
        order = torch.randperm(ROWS, generator=generator)
        sample = drawn(energies[order], draws, generator)
        chosen = values[order][sample.chosen]
        sums.append((sample.weights * chosen).sum())
        said.append(sample.variance(chosen))
    sums, said = torch.stack(sums), torch.tensor(said)
    assert float(sums.mean()) == pytest.approx(float(draws * values.mean()), abs=4 * float(sums.std()) / 500**0.5)
    assert float(said.mean() / sums.var()) == pytest.approx(1, abs=0.25)


def test_importance_beats_uniform_draws_where_scores_are_concentrated(energies, values):
    assert concentration(energies) > 4
    samples = [drawn(energies, 40, generator) for generator in generators(100)]
    ours = torch.stack([(s.weights * values[s.chosen]).sum() for s in samples]).var()
    uniform = torch.stack([40 * values[torch.randperm(ROWS)[:40]].mean() for _ in range(100)]).var()
    assert ours < uniform / 10


def test_concentration():
    assert concentration(torch.ones(7)) == pytest.approx(1)
    assert concentration(torch.tensor([1.0] * 10 + [0.0] * 90)) == pytest.approx(10)
    assert concentration(torch.zeros(7)) == concentration(torch.zeros(0)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [[(100, 20)], [(100, 20), (100, 20), (200, 40)], [(50, 50), (50, 50)], [(400, 30)] * 2]
)
def test_the_error_of_a_mean_over_several_samples(energies, values, plan):
    """Pools one after another, as (rows, draws); as many draws as rows: every row once, as uniform sampling does."""
    means, said = [], []
    for generator in generators(400):
        order, tally, end = torch.randperm(ROWS, generator=generator), Tally(ROWS), 0
        for rows, draws in plan:
            start, end = (end, end + rows) if end + rows <= ROWS else (0, rows)
            pool = order[start:end]
            sample = every(rows) if rows == draws else drawn(energies[pool], draws, generator)
            tally.add(slice(start, end), sample, values[pool][sample.chosen])
        means.append(tally.total / tally.draws)
        said.append(tally.error * tally.total / tally.draws)
    means, said = torch.tensor(means), torch.tensor(said)
    assert float(means.mean()) == pytest.approx(float(values.mean()), abs=4 * float(means.std()) / 20)
    assert float(said.square().mean().sqrt() / means.std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("importance", [False, True])
def test_the_error_that_labels_leave(energies, importance):
    """Values are chi-squared over labels, as the squared slope of a mixture of many classes."""
    means, said = [], []
    for generator in generators(400):
        first, second = (energies * torch.randn(ROWS, generator=generator).double() ** 2 for _ in range(2))
        sample = drawn(energies, 100, generator) if importance else every(ROWS)
        tally, values = Tally(ROWS), first[sample.chosen]
        tally.add(slice(0, ROWS), sample, values)
        some = drawn(sample.weights * values.square(), len(values) // 4, generator)
        tally.relabel(sample, values, some, second[sample.chosen][some.chosen])
        assert tally.labels > 0 and (importance or tally.chance == 0)
        means.append(tally.total / tally.draws)
        said.append(tally.error * tally.total / tally.draws)
    means, said = torch.tensor(means), torch.tensor(said)
    assert float(means.mean()) == pytest.approx(float(energies.mean()), abs=4 * float(means.std()) / 20)
    assert float(said.square().mean().sqrt() / means.std()) == pytest.approx(1, abs=0.2)


def test_nothing_can_be_said_of_nothing():
    tally = Tally(10)
    tally.add(slice(0, 2), every(2), torch.zeros(2))
    assert tally.error == float("inf")
    tally = Tally(10)
    tally.add(slice(0, 1), every(1), torch.ones(1))
    assert tally.error == float("inf")


def test_labels_that_happened_to_agree_say_nothing_of_the_error():
    """A few rows, each of two values by its label: one in eight is labelled once more, and mostly just as before."""
    tally, values = Tally(8), torch.tensor([1.0, 4.0] * 4, dtype=torch.float64)
    tally.add(slice(0, 8), every(8), values)
    assert tally.error == 0  # of given labels, all rows
    some = every(1)
    tally.relabel(every(8), values, some, values[:1])
    assert tally.labels == tally.error == float("inf")
    tally.relabel(every(8), values, some, values[1:2])
    assert 0 < tally.error < float("inf")
