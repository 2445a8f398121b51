"""A pass that two processes share gives both of them what one alone would get."""

import multiprocessing

import pytest
import torch
from torch import distributed, nn
from torch import multiprocessing as processes

from models import MLP, filled, layers, parameters, seeded, texts, tiny_bert, vectors
from retain.fisher import measure, parameter_fisher
from retain.task import Task

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods() or not distributed.is_gloo_available(),
    reason="needs processes that start as copies of this one, and gloo",
)


class Sometimes(nn.Module):
    """Its second layer is only met by rows above zero."""

    def __init__(self):
        super().__init__()
        self.always, self.rarely = nn.Linear(1, 3), nn.Linear(1, 3)

    def forward(self, x):
        out = self.always(x)
        return out + self.rarely(x) if (x > 0).all() else out


def confident(n=300):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(4, 3)
    model.weight.data, model.bias.data = 25 * torch.eye(3, 4), torch.zeros(3)
    return model, Task("t", [(x, x[:, :3].argmax(1))])


def of_a_transformer():
    """Eleven rows, so six and five; by hooks."""
    model, task = filled(tiny_bert()), texts(sizes=(4, 4, 3))
    return tensors(measure(model, layers(model), task, form="kronecker", rank=None, samples=None, batch_size=2))


def of_importance_sampling():
    model, task = confident()
    directions = {"": (torch.tensor([[1.0], [0.0], [-1.0]]), torch.arange(4.0)[None])}
    return tensors(measure(model, {"": model}, task, form="diagonal", directions=directions, error=0.05))


def of_any_parameters():
    model, task = nn.Sequential(nn.LayerNorm(4), MLP()), vectors(sizes=(4, 3))
    return parameter_fisher(model, parameters(model), task)


def of_a_single_row():
    """The second process has nothing to do, and has never met the layers."""
    model = MLP()
    return parameter_fisher(model, parameters(model), vectors(sizes=(1,)))


def of_a_layer_that_one_process_never_meets():
    model, task = seeded(Sometimes), Task("t", [(torch.tensor([[-1.0], [1.0], [-2.0]]), torch.tensor([0, 1, 2]))])
    return tensors(measure(model, dict(model.named_children()), task, form="diagonal", batch_size=1))


CASES = [
    of_a_transformer,
    of_importance_sampling,
    of_any_parameters,
    of_a_single_row,
    of_a_layer_that_one_process_never_meets,
]


def tensors(measured):
    states = {f"{name}/{k}": v for name, form in measured.forms.items() for k, v in form.state_dict().items()}
    return states | {"of": torch.tensor([measured.rows, measured.examples, measured.error])}


def work(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save([case() for case in CASES], f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes.start_processes(work, (folder,), nprocs=2, start_method="fork")
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_two_processes_share_the_rows(shared, case):
    alone, results = case(), [results[CASES.index(case)] for results in shared]
    for mine in results:
        assert mine.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-7 * float(tensor.abs().max()))
    assert all(torch.equal(results[0][name], results[1][name]) for name in alone)
