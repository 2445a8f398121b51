"""Figures for pages."""

from matplotlib.axes import Axes

from retain.plots import INK, style, svg


def draw(ax: Axes) -> None:
    ax.plot([1, 2], [3, 4], label="one & two", **style(0))


def test_text_stays_text_in_the_colour_of_the_page() -> None:
    figure = svg(draw, 'rise & "fall"')
    assert figure.startswith("<svg") and 'role="img" aria-label="rise &amp; &quot;fall&quot;"' in figure
    assert "one &amp; two</text>" in figure and "currentColor" in figure and INK not in figure
    assert "<metadata" not in figure and 'height="' not in figure.split(">")[0]


def test_the_same_data_make_the_same_figure() -> None:
    assert svg(draw, "a") == svg(draw, "a") != svg(draw, "b")


def test_series_differ_in_more_than_colour() -> None:
    looks = [style(i) for i in range(21)]
    assert len({tuple(sorted(look.items())) for look in looks}) == 21
    assert len({look["marker"] for look in looks[:7]}) == 7
