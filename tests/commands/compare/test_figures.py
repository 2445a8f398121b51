"""Figures are drawn of whatever there is, and nobody has to tell two methods apart by colour alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from retain.commands.compare import figures
from retain.commands.compare.figures import draw
from retain.commands.compare.measure import ACCURACY
from retain.commands.many.spread import spread


def comparison(methods: int = 3, seeds: int = 2, state: int = 1000) -> dict[str, Any]:
    """Of two tasks; the last method trains on both at once."""
    found = {}
    for number in range(methods):
        joint = number == methods - 1
        points = [spread([0.5 + 0.01 * number + 0.02 * t + 0.01 * s for s in range(seeds)]) for t in (1, 2)]
        sizes = {t: 10_000 + t * number * state for t in (1, 2)}
        found[f"method-{number}"] = {
            "curve": [None if joint else points[0], points[1]],
            "scores": {"learning_accuracy": None if joint else points[0], "stability": None if joint else points[1]},
            "bytes": {"after": {2: sizes[2]} if joint else sizes},
        }
    return {"tasks": ["mood", "sport"], "methods": found, "unit": "accuracy"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    made: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **options: made.append(Figure(**options)) or made[-1])
    return made


@pytest.mark.parametrize(("methods", "seeds"), [(1, 1), (3, 2), (16, 3)])
def test_three_figures(methods: int, seeds: int, tmp_path: Path, drawn: list[Figure]) -> None:
    draw(comparison(methods, seeds), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(ACCURACY.figures)
    for name in ACCURACY.figures:
        height, width, _ = matplotlib.image.imread(tmp_path / name).shape
        assert width > height > 400
    accuracy, stability, size = (figure.axes[0] for figure in drawn)
    labels = [f"method-{number}" for number in range(methods)]
    assert accuracy.get_legend_handles_labels()[1] == labels == size.get_legend_handles_labels()[1]
    assert stability.get_legend_handles_labels()[1] == labels[:-1]
    assert [tick.get_text() for tick in accuracy.get_xticklabels()] == ["mood", "sport"]


def test_the_legend_is_not_on_the_data(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(comparison(13), tmp_path)
    for figure in drawn:
        figure.draw_without_rendering()
        legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
        assert not legend.overlaps(axes) and legend.y0 > 0


def test_looks_are_told_apart_without_colour(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(comparison(16), tmp_path)
    looks = [(line.get_marker(), line.get_linestyle()) for line in drawn[2].axes[0].lines]
    assert len(set(looks)) == 16


def test_bytes_of_several_sizes_are_drawn_on_a_scale_that_shows_them(tmp_path: Path, drawn: list[Figure]) -> None:
    for state in (1000, 10**7):
        draw(comparison(state=state), tmp_path)
    assert [drawn[i].axes[0].get_yscale() for i in (2, 5)] == ["linear", "log"]
