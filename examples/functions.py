"""One small network fits a function piece after piece, and forgets the first, or does not: EWC without any LoRA.

    python examples/functions.py

A quarter of a minute: prints the error on every piece after the last was learned, and draws runs/functions.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from retain import EWC, SquaredError, Task, attach

PIECES = {"first": (-3, -1), "second": (-1, 1), "third": (1, 3)}
# EWC of strength 0 is plain training. What 100 means: squared errors on old pieces weigh 100 times those on the new.
METHODS = {
    "no protection": {"strength": 0},
    "EWC": {"strength": 100},
    "Online EWC": {"strength": 100, "decay": 0.9},
}
MUTED, LINE, BANDS = "#8a919b", "#d1495b", ["#edf2f7", "#f7f4ed", "#eef6f0"]


class Bumps(nn.Module):
    """x (N, 1) -> how near it is to each of ``n`` places (N, n).

    They give every piece weights of its own, as pixels do for pictures. In a network that sees x itself every weight
    matters everywhere at once, and no diagonal Fisher can say which of them may move.
    """

    def __init__(self, n: int = 24) -> None:
        super().__init__()
        self.places, self.width = torch.linspace(-3.2, 3.2, n), 6.4 / n

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((x - self.places) / self.width) ** 2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Bumps(), nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def target(x: Tensor) -> Tensor:
    return torch.sin(3 * x) - x


def make_task(name: str) -> Task:
    x = torch.linspace(*PIECES[name], 200)[:, None]
    return Task(name, [(x, target(x))], loss=SquaredError())


def fit(model: nn.Module, method: EWC, task: Task, steps: int) -> None:
    method.begin_task(task)
    optimizer = torch.optim.Adam(method.param_groups(), lr=1e-2)
    attach(optimizer, method)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ((x, y),) = task.train
    for _ in range(steps):
        loss = task.loss.nll(model(x), y).mean() + method.extra_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    method.end_task(task)


@torch.no_grad()
def error(model: nn.Module, task: Task) -> float:
    ((x, y),) = task.train
    return (model(x) - y).square().mean().sqrt().item()


def main(steps: int = 300, output: Path = Path("runs/functions.png")) -> dict[str, list[float]]:
    """Train every method; returns its errors on the pieces, in their order."""
    torch.set_num_threads(1)
    x, curves, errors = torch.linspace(-3, 3, 600)[:, None], {}, {}
    print(f"{'error at the end':<18}" + "".join(f"{piece:>9}" for piece in PIECES))
    for name, keywords in METHODS.items():
        model = network()
        # "exact" and all rows: the Fisher of a small regression costs nothing and need not be sampled.
        method = EWC(model, fisher={"labels": "exact", "samples": None}, **keywords)
        tasks = [make_task(piece) for piece in PIECES]
        for task in tasks:
            fit(model, method, task, steps)
        errors[name] = [error(model, task) for task in tasks]
        curves[name] = model(x).detach()
        print(f"{name:<18}" + "".join(f"{e:>9.3f}" for e in errors[name]), flush=True)
    draw(x, curves, errors, output)
    print(f"figure: {output}")
    return errors


def draw(x: Tensor, curves: dict[str, Tensor], errors: dict[str, list[float]], output: Path) -> None:
    figure, panels = plt.subplots(1, len(curves), figsize=(11, 3.4), sharey=True, layout="constrained")
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        for (piece, (start, end)), color, rmse in zip(PIECES.items(), BANDS, errors[name], strict=True):
            panel.axvspan(start, end, color=color, lw=0)
            panel.text((start + end) / 2, -4.1, f"{piece}\n{rmse:.3f}", ha="center", fontsize=9)
        panel.plot(x, target(x), color=MUTED, lw=5, alpha=0.45, solid_capstyle="round", label="what it was taught")
        panel.plot(x, curve, color=LINE, lw=1.8, label="what it knows at the end")
        panel.set(title=name, xlim=(-3, 3), ylim=(-4.5, 4.5), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        panel.spines[:].set_visible(False)
        panel.tick_params(colors=MUTED, length=0)
    panels[0].legend(frameon=False, loc="upper right", fontsize=9)
    figure.supxlabel("pieces learned from left to right; numbers are root mean squared errors", fontsize=9, color=MUTED)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
