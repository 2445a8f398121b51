"""Share: what a task trains, what its boundary keeps, and adapters that came from elsewhere."""

import pytest
import torch

from models import filled, fit, texts, tiny_bert, tiny_mlp, train, vectors
from retain import Share, sites

A, B, C, D = (vectors(name, seed=seed) for seed, name in enumerate("abcd"))


def learned(*tasks, model=tiny_mlp, **options):
    method = Share(model(), **options)
    for task in tasks:
        fit(method, task)
    return method


def deltas(method):
    return {name: site.delta() for name, site in method.sites.items()}


def adapters(method, rank, seed, size=0.1):
    """A stock adapter's factors for every site."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (len(site.B), site.A.shape[1]) for name, site in method.sites.items()}
    return {
        name: (
            size * torch.randn(out, rank, generator=generator),
            torch.randn(rank, in_, generator=generator) / in_**0.5,
        )
        for name, (out, in_) in shapes.items()
    }


@pytest.mark.parametrize("core", ["factored", "dense"])
def test_a_later_task_starts_from_no_change_and_trains_inside_bases_that_stay(core):
    method = learned(A, model=lambda: tiny_mlp(r=4), components=2, temporary=2, core=core)
    method.begin_task(B)
    assert all(not delta.any() for delta in deltas(method).values())
    spaces = {name: (bases.U.clone(), bases.V.clone()) for name, bases in method.bases.items()}
    assert all(torch.equal(method.bases[n].U, U) and torch.equal(method.bases[n].V, V) for n, (U, V) in spaces.items())
    train(method, B)
    for name, delta in deltas(method).items():
        U, V = spaces[name]
        outside = (torch.eye(len(U)) - U @ U.T) @ delta @ (torch.eye(len(V)) - V @ V.T)
        assert delta.any() and torch.linalg.matrix_rank(outside, rtol=1e-4) <= 2


def test_what_the_temporary_columns_learned_stays_in_the_task():
    method = learned(A, B, temporary=2)
    train(method, C, epochs=3)
    before = deltas(method)
    inside = [
        float((bases.U @ bases.U.T @ before[name] @ bases.V @ bases.V.T - before[name]).norm() / before[name].norm())
        for name, bases in method.bases.items()
    ]
    assert min(inside) > 0.05  # they did learn
    method.end_task(C)
    for name, delta in deltas(method).items():
        torch.testing.assert_close(delta, before[name], rtol=0, atol=1e-6)
    assert method.residuals["c"] < 1e-3


def test_every_task_comes_back_as_it_was_learned():
    method, found = Share(tiny_bert()), {}
    for task in (A, B, C):
        with torch.no_grad():
            method.begin_task(task)
            for site in method.sites.values():
                site.B.uniform_() if not method.tasks else site.set_factors(torch.randn_like(site.B), site.A)
        method.end_task(task)
        found[task.name] = deltas(method)
    for name, expected in found.items():
        method.activate(name)
        for site, delta in deltas(method).items():
            torch.testing.assert_close(delta, expected[site], rtol=0, atol=1e-5)
    method.activate("unheard of")
    assert not any(delta.any() for delta in deltas(method).values())


def test_the_mean_of_the_adapters_is_not_lost():
    """Centring without keeping the mean, as the release does, loses the direction that all share."""
    method = Share(tiny_mlp())
    common = adapters(method, 1, seed=0, size=1.0)
    own = {f"task{i}": adapters(method, 1, seed=i, size=0.01) for i in range(1, 4)}
    method.absorb({t: {n: (common[n][0] + B, common[n][1]) for n, (B, _) in a.items()} for t, a in own.items()})
    method.activate("task2")
    for name, delta in deltas(method).items():
        expected = method.sites[name].scale * (common[name][0] + own["task2"][name][0]) @ common[name][1]
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)


def test_adapters_of_a_higher_rank_are_whole_when_they_are_active():
    method = learned(texts("a"), model=tiny_bert)
    foreign = adapters(method, 7, seed=3)
    method.absorb({"foreign": foreign})
    method.activate("foreign")
    for name, delta in deltas(method).items():
        expected = method.sites[name].scale * foreign[name][0] @ foreign[name][1]
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-5)
    method.activate("a")
    assert all(not len(site.past[1]) for site in method.sites.values())


def test_adapters_alone_are_a_start():
    method = Share(tiny_mlp())
    method.absorb({"given": adapters(method, 2, seed=0)})
    train(method, A)
    assert {bases.U.shape[1] for bases in method.bases.values()} == {2}
    method.end_task(A)
    assert method.tasks == ["given", "a"] and list(method.learned) == ["a"]


def test_what_does_not_fit_is_reported_and_warned_of():
    method = Share(tiny_mlp(), components=3)
    with pytest.warns(UserWarning, match=r"of 5 tasks do not fit 3 components; of 'r[0-4]' [0-9]+% of the weight"):
        method.absorb({f"r{i}": adapters(method, 3, seed=i) for i in range(5)})
    assert max(method.residuals.values()) > 0.5
    assert method.boundary == {"residual": max(method.residuals.values()), "columns": 3}
    method.activate("r4")
    lost = [1 - sum(float(d.square().sum()) for d in deltas(method).values()) / _size(method, 4)]
    assert method.residuals["r4"] == pytest.approx(lost[0] ** 0.5, rel=1e-4)


def _size(method, seed):
    return sum(
        float((method.sites[name].scale * B @ A).square().sum())
        for name, (B, A) in adapters(method, 3, seed=seed).items()
    )


def test_a_bound_on_the_residual_keeps_more_components():
    given = {f"r{i}": adapters(Share(tiny_mlp()), 2, seed=i) for i in range(5)}
    bounded = Share(tiny_mlp(), components=3, max_residual=0.05)
    bounded.absorb(given)
    assert max(bounded.residuals.values()) <= 0.05 and bounded.boundary["columns"] > 3


def test_learning_rates_carry_over():
    """A step of AdamW moves a confined factor as far as a stock one, whatever the number of columns."""
    sizes = []
    for columns in (1, 2):
        method = learned(A, components=columns, temporary=1)
        method.begin_task(B)
        optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3, weight_decay=0.0)
        batch = B.train[0]
        B.loss.nll(method.model(batch[0]), batch[1]).sum().backward()
        optimizer.step()
        sizes.append([float(site.B.detach().norm()) / site.B.numel() ** 0.5 for site in method.sites.values()])
    assert torch.tensor(sizes) == pytest.approx(1e-3, rel=0.3)


def test_bytes_grow_by_the_cores_alone():
    method = learned(A, B, C, components=3, temporary=1)
    before = sum(t.nbytes for t in method.state_dict().values())
    fit(method, D)
    rank = 3
    cores = sum(4 * 2 * rank * min(rank, len(site.A)) + 32 for site in method.sites.values())
    assert sum(t.nbytes for t in method.state_dict().values()) - before == cores + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 0}, "components must be at least 1, got 0"),
        ({"temporary": -1}, "temporary must be at least 0, got -1"),
        ({"energy": 0.0}, r"energy must lie in \(0, 1\], got 0.0"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\), got 1.0"),
        ({"max_residual": 2.0}, r"max_residual must lie in \(0, 1\), got 2.0"),
        ({"core": "denze"}, "unknown core 'denze'; known: factored, dense; did you mean 'dense'"),
        ({"max_residual": 0.1, "threshold": 0.2}, "threshold cuts what max_residual=0.1 may not lose"),
        (
            {"reference": ["centering"]},
            "unknown reference 'centering'; known: dropped temporaries, centring; did you mean 'centring'",
        ),
        ({"weights": "none"}, "unknown weights 'none'; known: relative, absolute"),
        ({"core": "dense"}, "a dense core needs lora.r of at least components . temporary, got 2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Share(tiny_mlp(), **options)


def test_the_task_of_a_row_is_guessed_by_what_the_pretrained_model_sees_in_it():
    method = Share(tiny_bert(), route=True)
    tasks = {}
    for number, name in enumerate("ab"):
        task = texts(name, seed=number)
        for batch in task.train:  # every task has words of its own
            batch["input_ids"] = batch["input_ids"] % 12 + 12 * number
        fit(method, task)
        tasks[name] = task
    other = Share(tiny_bert(), route=True)
    other.load_state_dict(method.state_dict())
    for name, task in tasks.items():
        inputs = {key: x for key, x in task.train[0].items() if key != "labels"}
        assert method.guess(inputs) == other.guess(inputs) == [name] * len(inputs["input_ids"])


def test_without_class_means_no_task_is_guessed():
    method = learned(texts("a"), model=tiny_bert)
    with pytest.raises(ValueError, match="no task has class means"):
        method.guess({"input_ids": torch.ones(1, 3, dtype=torch.long)})


def test_stock_adapters_are_tasks_from_the_start(tmp_path):
    stock = filled(tiny_bert(r=3, lora_alpha=9))
    stock.save_pretrained(str(tmp_path / "given"))
    method = Share(tiny_bert(r=4, lora_alpha=2), adapters=[str(tmp_path / "given")])
    assert method.tasks == ["given"] and not method.learned
    method.activate("given")
    for name, site in sites(stock).items():
        torch.testing.assert_close(method.sites[name].delta(), site.delta(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="given adapts other layers than this model"):
        Share(tiny_bert(target_modules=["query"]), adapters=[str(tmp_path / "given")])


def test_names_of_adapters_and_tasks_are_apart(tmp_path):
    for folder in ("here/a", "there/a", "here/b"):
        filled(tiny_bert()).save_pretrained(str(tmp_path / folder))
    with pytest.raises(ValueError, match="two folders have the same name"):
        Share(tiny_bert(), adapters=[str(tmp_path / "here" / "a"), str(tmp_path / "there" / "a")])
    method = Share(tiny_bert(), adapters=[str(tmp_path / "here" / name) for name in "ab"])
    with pytest.raises(ValueError, match="an adapter is called 'a' already"):
        method.begin_task(texts("a"))


def test_a_bound_is_kept_with_few_columns_where_the_energy_asks_for_fewer():
    """With an energy below 1 ``components`` itself may be enough for the bound."""
    given = {f"r{i}": adapters(Share(tiny_mlp()), 1, seed=i) for i in range(3)}
    method = Share(tiny_mlp(), components=3, energy=0.5, max_residual=0.01)
    method.absorb(given)
    assert method.boundary["columns"] == 3 and max(method.residuals.values()) <= 0.01
