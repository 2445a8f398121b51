"""A convolution is a linear map of patches: its factors are flat views of stock LoRA's, and all else follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import models
from adapters import CASES, close, generator, outputs, with_past
from retain.fisher import weight_fisher
from retain.lora import Site, add_lora, load_adapter, sites
from retain.task import Task
from test_lora import Doubled

LAYERS: dict[str, dict[str, Any]] = {
    "1 by 1": {"kernel_size": 1},
    "3 by 3": {"kernel_size": 3, "padding": 1, "bias": False},
    "patches": {"kernel_size": 4, "stride": 4},
    "uneven": {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0)},
    "same": {"kernel_size": (3, 1), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
}
X = torch.randn(5, 6, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """One convolution, 6 -> 7 channels, and a head on the mean over its positions."""

    def __init__(self, **layer: Any) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(6, 7, **{"kernel_size": 3} | layer), nn.Linear(7, models.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).tanh().mean((-2, -1)))


def net(**layer: Any) -> Net:
    return models.seeded(lambda: Net(**layer))


def adapted(lora: dict[str, Any] | None = None, **layer: Any) -> Any:
    fixed: dict[str, Any] = {"r": 3, "target_modules": ["conv"]}
    return models.filled(models.adapted(net(**layer), **fixed | (lora or {})), size=0.3)


def site_of(model: Any) -> Site:
    return sites(model)["conv"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("folds", [0, 2])
def test_the_layer_is_a_convolution_with_the_changed_weight(name: str, folds: int) -> None:
    model = with_past(adapted(**LAYERS[name]), folds)
    site, bare = site_of(model), net(**LAYERS[name]).conv
    assert [t.shape for t in site.past] == [(7, 3 * folds), (3 * folds, bare.weight[0].numel())]
    bare.weight.data += site.delta().view(bare.weight.shape)
    close(site.layer(X), bare(X))
    close(site.layer(X[0]), bare(X[0]))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_the_factors_are_those_of_the_product(name: str) -> None:
    """What flows into the stock factors through the flat views is what flows into them through the layer."""
    model = adapted(**LAYERS[name])
    site, base = site_of(model), net(**LAYERS[name]).conv
    through_layer = torch.autograd.grad(site.layer(X).square().sum(), site.parameters)
    weight = base.weight + site.scale * (site.B @ site.A).view(base.weight.shape)
    through_views = torch.autograd.grad(
        F.conv2d(X, weight, base.bias, base.stride, base.padding).square().sum(), site.parameters
    )
    for a, b in zip(through_layer, through_views, strict=True):
        assert a.dim() == 4
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_parameters_are_what_an_optimizer_takes() -> None:
    model = adapted()
    site = site_of(model)
    factors = [p for n, p in model.named_parameters() if "lora_" in n]
    assert {id(p) for p in site.parameters} == {id(p) for p in factors} and len(site.parameters) == 2
    assert all(p.is_leaf and p.requires_grad for p in site.parameters)
    before = site.delta()
    site.B.square().sum().backward()
    torch.optim.SGD(site.parameters, lr=0.5).step()
    assert not site.B.any() and before.any()
    linear = next(iter(sites(CASES["bert"].model()).values()))
    assert linear.parameters[0] is linear.B and linear.parameters[1] is linear.A


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_setting_factors_writes_through_the_views(layout: torch.memory_format) -> None:
    model = adapted()
    model.to(memory_format=layout)
    site = site_of(model)
    B, A = 0.3 * torch.randn(7, 3), 0.3 * torch.randn(3, 54)  # outputs near 1, where 1e-5 is more than rounding
    site.set_factors(B, A)
    assert torch.equal(site.layer.lora_A["default"].weight, A.view(3, 6, 3, 3))
    assert torch.equal(site.B, B) and torch.equal(site.A, A)
    before = site.layer(X)
    site.fold(generator())
    close(site.layer(X), before)
    with torch.no_grad():
        site.B.add_(1)
    assert site.layer.lora_B["default"].weight.eq(1).all()


def test_parametrised_factors_fold_exactly() -> None:
    site = site_of(with_past(adapted()))
    parametrize.register_parametrization(site.layer.lora_B["default"], "weight", Doubled())
    assert all(p.is_leaf for p in site.parameters)
    before = site.delta()
    site.fold(generator())
    assert not site.B.any()
    close(site.delta(), before, 1e-6)


def test_a_fresh_adapter_is_stock_lora_s() -> None:
    site = site_of(adapted())
    site.reset(generator(5))
    stock = models.seeded(lambda: nn.Conv2d(6, 3000, 3)).weight.detach().abs().max()
    bound = 1 / math.sqrt(54)
    assert not site.B.any() and 0.9 * bound < site.A.abs().max() <= bound
    assert float(stock) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"groups": 1, "dilation": 2}, r"conv: LoRA of a Conv2d with dilation=\(2, 2\) is not supported"),
        ({"padding": 1, "padding_mode": "reflect"}, "conv: LoRA of a Conv2d with padding_mode='reflect'"),
    ],
)
def test_convolutions_whose_stock_lora_is_another_map_are_refused(layer: dict, message: str) -> None:
    before = net(**layer).state_dict()
    model = net(**layer)
    with pytest.raises(ValueError, match=message + ".*exclude_modules"):
        add_lora(model, r=2, target_modules=["conv"])
    assert model.state_dict().keys() == before.keys()


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_grouped_convolutions_are_refused_by_name() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6))

    with pytest.raises(ValueError, match=r"deep\.0: LoRA of a Conv2d with groups=6 is not supported"):
        add_lora(Depthwise(), r=6, target_modules=["0"])


def test_other_lora_on_convolutions_is_refused_by_name() -> None:
    for lora, message in (
        ({"r": 8}, r"conv: rank 8 is larger than the layer, \(7, 54\)"),
        ({"use_dora": True}, "conv: only plain LoRA"),
        ({"lora_bias": True}, "conv: lora_bias=True"),
    ):
        with pytest.raises(ValueError, match=message):
            sites(adapted(lora))

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Conv1d(4, 4, 3)

    with pytest.raises(ValueError, match="line: LoRA of kind Conv1d on a Conv1d.*Conv2d on a Conv2d"):
        add_lora(Line(), r=2, target_modules=["line"])


def test_a_saved_convolution_is_stock(tmp_path: Any) -> None:
    """Baked in, the past makes factors of a higher rank in the shapes that peft gives a convolution."""
    from safetensors.torch import load_file

    model = with_past(adapted({"lora_alpha": 5}), folds=2, rank=4)
    parametrize.register_parametrization(site_of(model).layer.lora_B["default"], "weight", Doubled())
    model.save_pretrained(tmp_path)
    shapes = {k.split(".")[-2]: tuple(t.shape) for k, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes == {"lora_A": (7, 6, 3, 3), "lora_B": (7, 7, 1, 1)}
    close(outputs(load_adapter(net(), tmp_path), (X,)), outputs(model, (X,)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_fisher_is_in_the_units_of_a_site(name: str) -> None:
    model = with_past(adapted(**LAYERS[name]))
    task = Task("t", [(X, torch.tensor([0, 1, 2, 0, 1]))])
    fisher = weight_fisher(model, models.layers(model), task, labels="data")["conv"]
    plain, squares = model.merge_and_unload(), []
    plain.conv.weight.requires_grad_()
    for x, y in zip(X.split(1), torch.tensor([0, 1, 2, 0, 1]).split(1), strict=True):
        (g,) = torch.autograd.grad(F.cross_entropy(plain(x), y), plain.conv.weight)
        squares.append(g.square().flatten(1))
    torch.testing.assert_close(fisher, torch.stack(squares).mean(0), rtol=1e-4, atol=1e-8)
