"""Likelihoods, their scores under every kind of labels, and the draws that these take."""

import pytest
import torch
from torch.nn import functional as F

from models import VOCABULARY
from retain.task import CrossEntropy, Draws, SquaredError
from retain.task.likelihood import _scrambled

LABELS = ["mixture", "sample", "exact", "data", "predicted"]
DRAWN = ["mixture", "sample"]


class Edge(Draws):
    """Draws that come as near to 1 as they can."""

    def uniform(self, used):
        return torch.full((int(used.sum()),), 1 - 2**-24)


def draws(n, seed=0):
    return Draws(torch.arange(n), seed)


def scores(loss, labels, outputs, targets, **options):
    return torch.stack(
        list(loss.scores(labels, outputs, targets, options.pop("draws", draws(len(outputs))), **options))
    )


def moments(labels, row, loss=None, n=20_000, **options):
    """E[s s'] (C, C) of the scores s of one row of outputs (C,), over its labels, measured by ``n`` draws."""
    outputs, targets = row.expand(n, -1), torch.zeros(n, dtype=torch.long)
    s = scores(loss or CrossEntropy(), labels, outputs, targets, **options)
    return torch.einsum("knc,knd->cd", s, s) / n


def fisher(p):
    return torch.diag(p) - torch.outer(p, p)


# --- Negative log-likelihoods ----------------------------------------------------------------------------------------


def test_a_sequence_is_worth_the_sum_of_its_tokens():
    outputs, targets = torch.randn(2, 4, 5), torch.tensor([[1, 2, -100, 4], [-100, -100, -100, -100]])
    log_p = outputs.log_softmax(-1)
    expected = -(log_p[0, 0, 1] + log_p[0, 1, 2] + log_p[0, 3, 4])
    torch.testing.assert_close(CrossEntropy().nll(outputs, targets), torch.stack([expected, torch.zeros(())]))


def test_groups_compete_among_themselves():
    groups, outputs = torch.tensor([0, 1, 1, 0]), torch.randn(6, 4, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 1, 0])
    nll = CrossEntropy(groups).nll(outputs, targets)
    for row, target, mine in zip(outputs, targets, nll, strict=True):
        own = (groups == groups[target]).nonzero()[:, 0]
        torch.testing.assert_close(mine, row[own].logsumexp(0) - row[target])
    (gradient,) = torch.autograd.grad(nll.sum(), outputs)
    assert not gradient[groups[targets].unsqueeze(1) != groups].any() and gradient.isfinite().all()


def test_squared_error():
    outputs, targets = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    expected = -torch.distributions.Normal(outputs, 1.0).log_prob(targets).sum((1, 2))
    torch.testing.assert_close(
        SquaredError().nll(outputs, targets) + 4 * torch.log(torch.tensor(2 * torch.pi)), expected
    )
    for use in (SquaredError().nll, lambda o, t: scores(SquaredError(), "data", o, t)):
        with pytest.raises(ValueError, match=r"outputs \(3, 1\) and targets \(3,\) must have one shape"):
            use(torch.randn(3, 1), torch.randn(3))


@pytest.mark.parametrize("labels", ["mixture", "sample", "exact", "data"])
def test_a_number_of_its_own_leaves_the_outputs_of_other_tasks_alone(labels):
    groups, outputs, targets = torch.tensor([0, 0, 2, 1]), torch.randn(6, 4, requires_grad=True), torch.randn(6)
    own = SquaredError(groups, 2)
    torch.testing.assert_close(own.nll(outputs, targets), SquaredError().nll(outputs[:, 2], targets))
    s = scores(own, labels, outputs, targets)
    torch.testing.assert_close(s[..., 2], scores(SquaredError(), labels, outputs[:, 2], targets))
    assert not s[..., [0, 1, 3]].any()
    assert own.restrict(outputs, targets).isfinite().tolist() == [[False, False, True, False]] * 6
    torch.testing.assert_close(own.nll(outputs[:, 2], targets), own.nll(outputs, targets))  # of a model with one output


@pytest.mark.parametrize("labels", ["mixture", "sample", "exact", "data"])
def test_several_numbers_of_their_own_leave_the_outputs_of_other_tasks_alone(labels):
    outputs, targets = torch.randn(6, 5), torch.randn(6, 3)
    own, mine = SquaredError(torch.tensor([1, 0, 1, 1, 0]), 1), [0, 2, 3]
    torch.testing.assert_close(own.nll(outputs, targets), SquaredError().nll(outputs[:, mine], targets))
    s = scores(own, labels, outputs, targets)
    torch.testing.assert_close(s[..., mine], scores(SquaredError(), labels, outputs[:, mine], targets))
    assert not s[..., [1, 4]].any()
    assert own.restrict(outputs, targets).isfinite().tolist() == [[True, False, True, True, False]] * 6
    with pytest.raises(ValueError, match=r"outputs \(6, 3\) and targets \(6,\) must have one shape"):
        own.nll(outputs, targets[:, 0])


# --- Scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(torch.tensor([0, 1, 0, 1, 1])), SquaredError()], ids=str)
def test_scores_of_given_labels_are_the_gradient_of_the_loss(loss):
    outputs, targets = torch.randn(4, 3, 5, requires_grad=True), torch.tensor([[0, 1, 2], [3, -100, 4]] * 2)
    if isinstance(loss, SquaredError):
        targets = torch.randn(4, 3, 5)
    (gradient,) = torch.autograd.grad(loss.nll(outputs, targets).sum(), outputs)
    torch.testing.assert_close(scores(loss, "data", outputs, targets)[0], gradient)


@pytest.mark.parametrize("classes", [2, 3, 9])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("labels", ["mixture", "sample", "exact"])
def test_squared_scores_are_the_fisher_of_the_outputs(labels, temperature, classes):
    row = 2 * torch.randn(classes)
    measured = moments(labels, row, temperature=temperature)
    torch.testing.assert_close(measured, fisher((row / temperature).softmax(0)), atol=8e-3, rtol=0)


def test_a_hot_model_leaves_the_curvature_of_the_outputs():
    C = 5
    measured = moments("exact", 3 * torch.randn(C), n=1, temperature=1e6)
    torch.testing.assert_close(measured, (torch.eye(C) - 1 / C) / C, atol=1e-5, rtol=0)


def test_a_mixture_leaves_less_to_chance_than_signs_on_all_classes_and_nothing_with_two():
    row = torch.tensor([2.0, 0.0, -1.0])
    p = row.softmax(0)
    outputs, targets = row.expand(20_000, 3), torch.zeros(20_000, dtype=torch.long)
    ours = scores(CrossEntropy(), "mixture", outputs, targets)[0]
    signs = draws(20_000).signs(torch.ones(20_000, dtype=torch.bool), 3)
    plain = p * (p.sqrt() * signs).sum(1, keepdim=True) - p.sqrt() * signs
    slope = torch.tensor([0.3, -1.0, 0.5])
    spread = [float((s @ slope).square().var() / (s @ slope).square().mean() ** 2) for s in (ours, plain)]
    assert spread[0] < 0.5 * spread[1]
    of_two = scores(CrossEntropy(), "mixture", outputs[:, :2], targets)[0]
    torch.testing.assert_close(of_two.abs(), of_two[:1].abs().expand_as(of_two))


@pytest.mark.parametrize("labels", ["mixture", "sample", "exact"])
def test_squared_scores_of_a_gaussian_are_the_identity(labels):
    outputs = torch.randn(20_000, 3)
    s = scores(SquaredError(), labels, outputs, outputs, temperature=5.0)
    torch.testing.assert_close(torch.einsum("knc,knd->cd", s, s) / 20_000, torch.eye(3), atol=0.04, rtol=0)


@pytest.mark.parametrize("labels", LABELS)
def test_classes_of_other_groups_and_ignored_tokens_have_no_score(labels):
    groups, outputs = torch.tensor([0, 1, 0, 1]), 5 * torch.randn(500, 4)
    targets = torch.randint(0, 4, (500,))
    targets[::7] = -100
    s = scores(CrossEntropy(groups), labels, outputs, targets)
    assert not s[:, ::7].any() and s[:, 1::7].any()
    assert not s.abs().sum(0)[groups != groups[targets.clamp(min=0)].unsqueeze(1)].any()


@pytest.mark.parametrize("labels", ["mixture", "sample", "data", "predicted"])
def test_a_token_s_score_does_not_depend_on_what_is_ignored_around_it(labels):
    outputs, targets = torch.randn(2, 5, 6), torch.tensor([[5, 4, 3, -100, -100], [-100, 3, 4, 5, -100]])
    together = scores(CrossEntropy(), labels, outputs, targets)[0]
    assert not together[targets == -100].any()
    alone = scores(CrossEntropy(), labels, outputs[1:, 1:4], targets[1:, 1:4], draws=Draws(torch.tensor([1])))[0]
    torch.testing.assert_close(together[1, 1:4], alone[0])


def test_a_batch_without_any_target():
    outputs, targets = torch.randn(2, 5, 6), torch.full((2, 5), -100)
    for labels in ("mixture", "sample", "data", "predicted"):
        assert not scores(CrossEntropy(), labels, outputs, targets).any()


def test_draws_at_the_edge_stay_within_the_classes():
    outputs = torch.tensor([[3.0, 1.0, 2.0, -1.0]]).repeat(1000, 1) + torch.rand(1000, 4)
    groups, targets = torch.tensor([0, 0, 0, 1]), torch.zeros(1000, dtype=torch.long)
    (s,) = scores(CrossEntropy(groups), "sample", outputs, targets, draws=Edge(torch.arange(1000)))
    assert (s[:, :3] < 0).any(1).all() and not s[:, 3].any()


def test_predicted_is_the_likeliest_class():
    outputs = torch.randn(50, 4)
    s = scores(CrossEntropy(), "predicted", outputs, torch.zeros(50, dtype=torch.long))[0]
    torch.testing.assert_close(s, outputs.softmax(1) - F.one_hot(outputs.argmax(1), 4))


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError()], ids=str)
def test_scores_of_half_precision_are_made_in_float32(loss):
    outputs = torch.randn(3, 4).bfloat16()
    targets = torch.tensor([0, 1, 2]) if isinstance(loss, CrossEntropy) else outputs
    for labels in ("mixture", "sample", "exact", "data"):
        s = scores(loss, labels, outputs, targets)
        assert s.dtype == torch.float32 and s.shape[1:] == outputs.shape


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no score at all.*use labels='mixture'"):
        scores(SquaredError(), "predicted", torch.randn(3, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="cannot enumerate sequences; use labels='mixture'"):
        scores(CrossEntropy(), "exact", torch.randn(3, 2, 4), torch.zeros(3, 2, dtype=torch.long))


# --- Draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "signs"])
def test_a_row_draws_the_same_in_any_batch_and_under_any_padding(kind):
    def drawn(used, *rows, seed=0):
        made = Draws(torch.tensor(rows), seed)
        return made.uniform(used) if kind == "uniform" else made.signs(used, VOCABULARY)

    used = torch.tensor([[True, True, True, False, False], [False, True, True, True, False]])
    together = drawn(used, 11, 4)
    assert len(together) == 6
    assert torch.equal(drawn(used[:1, :3], 11), together[:3])
    assert torch.equal(drawn(used[:1].roll(2, 1), 11), together[:3])
    assert torch.equal(drawn(used.flip(0), 4, 11), together.roll(3, 0))
    assert not torch.equal(drawn(used, 11, 4, seed=1), together)
    assert not torch.equal(together[:3], together[3:])


def test_draws_are_uniform_and_signs_are_fair():
    used = torch.ones(2000, 3, dtype=torch.bool)
    uniform, signs = draws(2000).uniform(used), draws(2000).signs(used, 70).float()
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(uniform.var()) == pytest.approx(1 / 12, abs=0.005)
    assert signs.shape == (6000, 70) and signs.abs().eq(1).all()
    torch.testing.assert_close(signs.T @ signs / 6000, torch.eye(70), atol=0.07, rtol=0)
    assert float(signs.mean(0).abs().max()) < 0.06


def test_targets_rows_and_seeds_draw_independently():
    def signs(rows, seed):
        return Draws(torch.arange(rows), seed).signs(torch.ones(rows, 10, dtype=torch.bool), 64).float().flatten(1)

    one = signs(60, 0).reshape(60, 10, 64)
    for others in (one.flatten(1), one.transpose(0, 1).flatten(1), torch.cat([signs(1, s) for s in range(60)])):
        correlations = others @ others.T / others.shape[1] - torch.eye(len(others))
        assert float(correlations.abs().max()) < 5.5 / others.shape[1] ** 0.5


def test_the_hash_is_the_published_one():
    assert int(_scrambled(torch.tensor(0))) % 2**64 == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("labels", ["mixture", "sample", "exact", "data"])
def test_a_gaussian_of_one_number_needs_no_dimension_for_it(labels):
    outputs, targets = torch.randn(5), torch.randn(5)
    flat, column = (
        scores(SquaredError(), labels, outputs, targets),
        scores(SquaredError(), labels, outputs[:, None], targets[:, None]),
    )
    torch.testing.assert_close(flat, column[..., 0])
