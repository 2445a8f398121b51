"""The same Fisher from other libraries, each imported when it is asked for: ``pip install -e ".[peers]"``.

BackPACK brings torchvision, of which nothing is needed here. One that is not of torch's own build (the CUDA build
beside a CPU torch) stops transformers from being imported: uninstall it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.fisher_contenders import Contender, Run
from benchmarks.fisher_workloads import Squares, Workload, nll

MATVECS = 10  # of curvlinops' estimator, which an exact diagonal is no aim of


def backpack(workload: Workload) -> Run:
    """BackPACK's SumGradSquared at the targets."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model, weights = workload.copied()
    for name in weights:
        extend(model.get_submodule(name))

    def run() -> Squares:
        with backpack(SumGradSquared()):
            nll(model(workload.inputs), workload.labels).sum().backward()
        found = {name: w.sum_grad_squared / len(workload.inputs) for name, w in weights.items()}
        for weight in weights.values():
            weight.grad = None
            del weight.sum_grad_squared
        return found

    return run


def opacus(workload: Workload) -> Run:
    """opacus' per-sample gradients, squared and summed."""
    from opacus import GradSampleModule

    model, weights = workload.copied()
    model.train()  # it looks at nothing in eval mode; these models are the same in both
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)

    def run() -> Squares:
        nll(wrapped(workload.inputs), workload.labels).sum().backward()
        found = {name: w.grad_sample.square().mean(0) for name, w in weights.items()}
        wrapped.zero_grad()
        return found

    return run


def curvlinops(workload: Workload) -> Run:
    """Hutchinson's estimate of the diagonal of curvlinops' empirical Fisher."""
    from curvlinops import EFLinearOperator, hutchinson_diag

    model, weights = workload.copied()
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    if workload.labels.dim() > 1:
        raise NotImplementedError("its cross-entropy takes each token for an example")
    rows = [(workload.inputs, workload.labels)]

    def run() -> Squares:
        torch.manual_seed(0)
        matrix = EFLinearOperator(model, loss, list(weights.values()), rows, check_deterministic=False)
        with sdpa_kernel(SDPBackend.MATH):  # it differentiates forward, which the others do not support
            diagonal = hutchinson_diag(matrix, MATVECS) / len(workload.inputs)
        parts = diagonal.split([w.numel() for w in weights.values()])
        return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}

    return run


def asdl(workload: Workload) -> Run:
    """asdfghjkl's (ASDL) diagonal empirical Fisher."""
    from asdl import FISHER_EMP, SHAPE_DIAG, FisherConfig, get_fisher_maker

    model, weights = workload.copied()
    config = FisherConfig(fisher_type=FISHER_EMP, fisher_shapes=[SHAPE_DIAG], data_size=len(workload.inputs))
    maker = get_fisher_maker(model, config)

    def loss(outputs: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
        return nll(outputs, labels).sum()

    def run() -> Squares:
        outputs = maker.setup_model_call(model, workload.inputs)
        maker.setup_loss_call(loss, outputs, workload.labels)
        maker.forward_and_backward()
        return {name: model.get_submodule(name).fisher.diag.weight for name in weights}

    return run


def nngeometry(workload: Workload) -> Run:
    """NNGeometry's diagonal of the Jacobian's Gram matrix, its function being the log-likelihood of the labels."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object.pspace import PMatDiag

    model, weights = workload.copied()
    layers = LayerCollection()
    for name in weights:
        layers.add_layer_from_model(model, model.get_submodule(name))
    rows = DataLoader(TensorDataset(workload.inputs, workload.labels), batch_size=len(workload.inputs))

    def run() -> Squares:
        backend = TorchHooksJacobianBackend(
            layer_collection=layers, model=model, function=lambda x, y: nll(model(x), y)[:, None]
        )
        diagonal = PMatDiag(generator=backend, examples=rows).get_diag()
        found, start = {}, 0
        for name in weights:
            module = model.get_submodule(name)
            size = module.weight.numel()
            found[name] = diagonal[start : start + size].view_as(module.weight)
            start += size + module.out_features
        return found

    return run


PEERS: dict[str, Contender] = {
    "BackPACK SumGradSquared": backpack,
    "opacus": opacus,
    f"curvlinops Hutchinson, {MATVECS} products": curvlinops,
    "asdl": asdl,
    "nngeometry": nngeometry,
}
