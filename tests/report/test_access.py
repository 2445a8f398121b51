"""What can be told of the page's accessibility without a browser: names, order, focus, contrast."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from reported import FORGETFUL, told
from retain.report.page import page

LEAST = 4.5  # of text, WCAG 2.2, 1.4.3 (AA)
SCROLLS = (("class", "scroll"), ("tag", "pre"), ("tag", "figure"))


@pytest.fixture(scope="module")
def html() -> str:
    ratio = {"foreseen": 0.001, "measured": 0.1, "standard_error": 0.01, "ratio": 0.01}
    calibration = [{"after": 2, "total": ratio, "tasks": {"faq": ratio}}]
    sizes = {"adapter": 10, "state": 20, "kinds": {"fisher": 20}}
    found = {
        "calibration": calibration,
        "bytes": sizes,
        "warnings": {"after 2": ["x"]},
        "boundary": {"after 2": {"y": 1}},
    }
    return page([told("ewc-lora", FORGETFUL, **found), told("sequential", FORGETFUL)], 0)


class Elements(HTMLParser):
    """Every element with its attributes, in the order of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append({"tag": tag} | {key: value or "" for key, value in attrs})


@pytest.mark.slow
def test_what_is_read_out_has_a_name_and_an_order(html: str) -> None:
    elements = Elements(html).found
    levels = [int(e["tag"][1]) for e in elements if re.fullmatch(r"h\d", e["tag"])]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    assert all(e.get("scope") in ("row", "col") for e in elements if e["tag"] == "th")
    assert all(e.get("role") == "img" and e.get("aria-label") for e in elements if e["tag"] == "svg")
    assert next(e for e in elements if e["tag"] == "html")["lang"] == "en"
    regions = [e["aria-label"] for e in elements if e["tag"] == "section"]
    assert len(set(regions)) == len(regions) == 2


def test_what_scrolls_can_be_reached_with_the_keyboard(html: str) -> None:
    elements = Elements(html).found
    for key, value in SCROLLS:
        parts = [e for e in elements if e.get(key) == value]
        assert parts and all(e.get("tabindex") == "0" for e in parts)
        assert value == "figure" or all(e.get("role") == "group" and e.get("aria-label") for e in parts)
    assert html.count("<table") == html.count('<div class="scroll"')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(html: str, scheme: str) -> None:
    """On the page, code, warnings, and a cell of the matrix at its darkest, which is 70 % of the heat colour."""
    schemes = re.findall(r":root \{ (--ink.*?) \}", html)
    colours = dict(re.findall(r"--(\w+): (#\w+)", schemes[scheme == "dark"]))
    page_, heat = _rgb(colours["page"]), _rgb(colours["heat"])
    cell = tuple(0.7 * a + 0.3 * b for a, b in zip(heat, page_, strict=True))
    for behind in (page_, _rgb(colours["code"]), _rgb(colours["warn"]), cell):
        assert contrast(_rgb(colours["ink"]), behind) >= LEAST
    assert contrast(_rgb(colours["dim"]), page_) >= LEAST  # notes


def test_contrast_is_that_of_wcag() -> None:
    assert contrast(_rgb("#000"), _rgb("#fff")) == pytest.approx(21)
    assert contrast(_rgb("#777777"), _rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """(L1 + 0.05) / (L2 + 0.05) of relative luminances, the lighter first."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _rgb(colour: str) -> tuple[float, ...]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
