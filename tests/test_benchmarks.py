"""What the benchmarks compare: each way to the Fisher against the oracle, on models of no size."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from retain import store

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop because we have not yet implemented the batching rule",
    "ignore:Full backward hook is firing",
)


@pytest.fixture(scope="module")
def fisher():
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("benchmarks.fisher")
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def tiny(fisher):
    """Every workload and its exact Fisher."""
    workloads = {name: fisher.build(name, tiny=True) for name in fisher.BUILD}
    return {name: (workload, fisher.oracle(workload)) for name, workload in workloads.items()}


def test_contenders_are_exact(fisher, tiny):
    for name, (workload, exact) in tiny.items():
        for contender in ("ours", "ours, micro-batches of 4", "loop over examples", "torch.func vmap"):
            found = fisher.accuracy(fisher.CONTENDERS[contender](workload)(), exact)
            assert found["error"] < 1e-6 and abs(found["bias"] - 1) < 1e-6, (name, contender)


def test_bfloat16_is_nearly_exact(fisher, tiny):
    for name, (workload, exact) in tiny.items():
        found = fisher.accuracy(fisher.CONTENDERS["ours, bfloat16 autocast"](workload)(), exact)
        assert 1e-6 < found["error"] < 0.03, name


def test_the_reference_squares_the_mean_of_a_batch(fisher, tiny):
    for name, (workload, exact) in tiny.items():
        model, weights = workload.copied()
        losses = importlib.import_module("benchmarks.fisher_workloads").nll(model(workload.inputs), workload.labels)
        means = torch.autograd.grad(losses.mean(), list(weights.values()))
        found = fisher.CONTENDERS["reference (squared batch mean)"](workload)()
        for mean, square in zip(means, found.values(), strict=True):
            torch.testing.assert_close(square, mean**2, rtol=1e-4, atol=1e-9)
        assert fisher.accuracy(found, exact)["bias"] < 0.5, name


def test_the_plain_pass_goes_through_everything_above_the_first_targets(fisher, tiny):
    workload, _ = tiny["ViT q v, T=197, N=32"]
    reached = []
    run = fisher.CONTENDERS[fisher.PLAIN](workload)
    hook = torch.nn.modules.module.register_module_full_backward_hook(lambda module, *_: reached.append(module))
    try:
        assert run() == {}
    finally:
        hook.remove()
    kinds = [type(module).__name__ for module in reached]
    assert kinds.count("Block") == 2 and kinds.count("Linear") == 1 + 6 + 5  # the key of the first block is below


@pytest.mark.parametrize(
    ("peer", "package"),
    [
        ("BackPACK SumGradSquared", "backpack"),
        ("opacus", "opacus"),
        ("asdl", "asdl"),
        ("nngeometry", "nngeometry"),
    ],
)
def test_peers_are_exact_on_vectors(fisher, tiny, peer, package):
    pytest.importorskip(package)
    workload, exact = tiny["MLP, T=1, N=256"]
    assert fisher.accuracy(fisher.PEERS[peer](workload)(), exact)["error"] < 1e-6


def test_what_is_written(fisher, tiny, tmp_path, capsys):
    """One round over the contenders and a peer that fails: every number is there, and other workloads stay."""
    workload, _ = tiny["MLP, T=1, N=256"]

    def fails(_):
        raise ValueError("not this model\nat all")

    found = fisher.measure(workload, fisher.CONTENDERS | {"broken": fails}, repeats=2)
    path = tmp_path / "fisher.json"
    fisher.save(path, "other", {"kept": True})
    fisher.save(path, "mlp", found)
    fisher.show("mlp", found)
    written = store.read_json(path)["workloads"]
    assert written["other"] == {"kept": True}
    rows = written["mlp"]["contenders"]
    assert rows.pop("broken") == {"failed": "ValueError: not this model"}
    assert all(len(row["seconds"]) == 2 and row["to_ours"] > 0 and row["extra_mib"] >= 0 for row in rows.values())
    assert rows["ours"]["to_ours"] == 1 and written["mlp"]["floor"]["ours_to_floor"] > 0
    assert "not this model" in capsys.readouterr().out


def test_memory_is_what_is_held_at_once_beyond_the_result(fisher):
    def run():
        for _ in range(3):
            torch.zeros(2**18).add_(torch.zeros(2**18))
        return {"F": torch.ones(2**18)}

    assert fisher.extra_memory(run) == pytest.approx(1, abs=0.01)


def test_what_the_manifold_costs_is_measured_beside_a_plain_step(fisher, capsys):
    stiefel = importlib.import_module("benchmarks.stiefel")
    rows = stiefel.measure(16, 2, layers=2, tokens=8, repeats=1)
    stiefel.show(16, rows)
    assert rows[0]["contender"] == stiefel.PLAIN and rows[0]["share"] == 1
    assert {name for row in rows for name in ("eigh", "svd", "newton-schulz", "qr") if name in row["contender"]} == {
        "eigh",
        "svd",
        "newton-schulz",
        "qr",
    }
    assert "around the step, 8 directions taken" in capsys.readouterr().out
