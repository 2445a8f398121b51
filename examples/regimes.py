"""A time series whose regimes come back: one adapter forgets them, Share switches to what it knew.

    python examples/regimes.py

Half a minute: a forecaster that was trained on many series gets a LoRA adapter, sees three regimes one after the other,
and then the first again. Prints the error on the returned regime and draws runs/regimes.png.

Of one seed (1; the network's is 0, the returned regime's 99) the mean squared error there is 0.119 by the forecaster as
it was, 0.105 by one adapter, on and on, and 0.071 by Share. 25 s of CPU time.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from retain import Method, Sequential, Share, SquaredError, Task, attach

WINDOW, LENGTH = 24, 600
# Period in steps, share of the third harmonic, and the sign with which the last step's error comes back.
REGIMES = {"calm": (30.0, 0.0, 0.6), "choppy": (11.0, 0.8, -0.6), "drifting": (70.0, 0.4, 0.9)}
METHODS = {"one adapter, on and on": Sequential, "Share": Share}
MUTED, LINE = "#8a919b", {"one adapter, on and on": "#d1495b", "Share": "#2a6f97"}


def series(period: float, third: float, memory: float, generator: torch.Generator, length: int = LENGTH) -> Tensor:
    """A wave with its third harmonic and noise that remembers its last value."""
    t = torch.arange(length) + 1000 * float(torch.rand(1, generator=generator))
    wave = torch.sin(2 * math.pi * t / period) + third * torch.sin(6 * math.pi * t / period)
    noise = torch.randn(length, generator=generator)
    for i in range(1, length):
        noise[i] = memory * noise[i - 1] + (1 - memory**2) ** 0.5 * noise[i]
    return wave + 0.3 * noise


def windows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (N, WINDOW) of a series (T,) and the value that follows each (N, 1)."""
    cut = values.unfold(0, WINDOW + 1, 1)
    return cut[:, :-1], cut[:, -1:]


def forecaster(generator: torch.Generator) -> nn.Module:
    """A small network that has learned to forecast many series, none of them in particular."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WINDOW, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    draws = torch.rand(60, 3, generator=generator)
    many = [windows(series(8 + 72 * p, h, 1.6 * m - 0.8, generator, 200)) for p, h, m in draws.tolist()]
    x, y = (torch.cat(part) for part in zip(*many, strict=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(400):
        rows = torch.randint(len(x), (256,), generator=generator)
        nn.functional.mse_loss(network(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def fit(model: nn.Module, method: Method, task: Task, steps: int, generator: torch.Generator) -> None:
    method.begin_task(task)
    optimizer = torch.optim.AdamW(method.param_groups(), lr=5e-3)
    handles = attach(optimizer, method)
    ((x, y),) = task.train
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        (task.loss.nll(model(x[rows]), y[rows]).mean() + method.extra_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    method.end_task(task)


@torch.no_grad()
def errors(model: nn.Module, values: Tensor) -> Tensor:
    """Squared error of every forecast of a series."""
    x, y = windows(values)
    return (model(x) - y).square()[:, 0]


def main(steps: int = 400, output: Path = Path("runs/regimes.png")) -> dict[str, float]:
    """The mean squared error on the regime that came back, by whose forecasts."""
    returned = series(*REGIMES["calm"], torch.Generator().manual_seed(99))
    found = {}
    for name, kind in METHODS.items():
        generator = torch.Generator().manual_seed(1)
        network = forecaster(generator)
        found.setdefault("nobody (the forecaster as it was)", errors(network, returned))
        model = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"]))
        method = kind(model)
        for regime, shape in REGIMES.items():
            task = Task(regime, [windows(series(*shape, generator))], loss=SquaredError())
            fit(model, method, task, steps, generator)
        method.activate("calm")
        found[name] = errors(model, returned)
    for name, values in found.items():
        print(f"calm again, by {name}: mean squared error {values.mean():.3f}")
    draw(returned, found, output)
    return {name: float(values.mean()) for name, values in found.items()}


def draw(returned: Tensor, found: dict[str, Tensor], path: Path) -> None:
    """The returned regime, and the running error of each on it."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 4.5), sharex=True, layout="constrained")
    above.plot(returned, color=MUTED, linewidth=0.8)
    above.set(title="the first regime, back after two others", ylabel="value")
    for name, values in found.items():
        smooth = values.unfold(0, 50, 1).mean(1)
        steps = range(WINDOW + 50, WINDOW + 50 + len(smooth))
        below.plot(steps, smooth, color=LINE.get(name, MUTED), label=name)
    below.set(xlabel="step", ylabel="squared error, last 50 steps", ylim=(0, None))
    below.legend(frameon=False, fontsize=8)
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training on every regime")
    parser.add_argument("--output", type=Path, default=Path("runs/regimes.png"))
    main(**vars(parser.parse_args()))
