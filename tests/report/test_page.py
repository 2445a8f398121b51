"""The page: from true runs, one file, no network, and no more of the data than is asked for."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reported import FAITHFUL, FORGETFUL, told
from retain import files, store
from retain.commands.inspect import inspect
from retain.report import report
from retain.report.page import page
from retain.report.read import read_run
from retain.run import run
from runs import quiet, settings

pytestmark = pytest.mark.usefixtures("fast_runs")

VOID = {"meta", "img", "hr", "br", "path", "use"}


class Balance(HTMLParser):
    """Every element that opens, closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]


@pytest.fixture(scope="module")
def finished(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny run of EWC-LoRA on three tasks that forgot something (its record says so)."""
    folder = tmp_path_factory.mktemp("report")
    run(settings(bert, folder, method={"name": "ewc-lora", "fisher": {"samples": 4}}), quiet())
    output = folder / "out"
    shutil.copytree(output, folder / "whole")
    first, last = output / "tasks" / "00-mood" / "scores.json", output / "tasks" / "02-greek" / "scores.json"
    for path, bits in ((first, "1"), (last, "0")):
        record = store.read_json(path)
        record["tasks"]["mood"]["known"] = bits * record["tasks"]["mood"]["rows"]
        store.write_json(path, record)
        store.close(path.parent)
    yield output


def test_a_page_is_one_file_that_needs_no_network(finished: Path, tmp_path: Path) -> None:
    report([finished], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(html)
    assert not parser.open and parser.links and all(link.startswith(("#", "data:")) for link in parser.links)
    assert "<script" not in html and "@import" not in html and "url(http" not in html
    assert html.count("<svg") == 5  # accuracy, foreseen and measured, growth, drift, spectrum
    assert "prefers-color-scheme: dark" in html and "@media print" in html and 'lang="en"' in html


@pytest.mark.slow
def test_the_curve_of_a_sweep_is_shown_beside_it_and_in_it(finished: Path, tmp_path: Path) -> None:
    def html(folder: Path) -> str:
        report([folder], tmp_path / "page.html", examples=0)
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    def point(value: float, learned: float, run: str) -> dict[str, Any]:
        means = {"learned": learned, "forgetting": 0.1, "final": 0.6}
        known = {name: {"mean": mean, "std": 0.02} for name, mean in means.items()}
        return known | {"value": value, "front": learned > 0.5, "complete": True, "runs": {"0": run}}

    points = [point(10.0, 0.9, "ewc-lora/strength=10/seed-0"), point(77.0, 0.4, "ewc-lora/strength=77/seed-0")]
    curves = {"ewc-lora": {"keyword": "strength", "knee": 10.0, "points": points}}
    content = {"curves": curves, "unit": "share of rows", "learned": "learning accuracy", "seeds": [0]}
    content["steps"] = {"taken": 37, "apart": 45}
    assert "Stability against plasticity" not in html(finished)
    store.write_json(tmp_path / "bot-sweep" / "sweep.json", content)
    for place in ("bot", "bot-sweep/ewc-lora/strength=10/seed-0"):
        shutil.copytree(finished, tmp_path / place)
        shown = html(tmp_path / place)
        assert "Stability against plasticity" in shown and ">77<" in shown and "forgetting, share of rows" in shown
        assert (">this run<" in shown) == ("seed-0" in place) and "37 optimizer steps" in shown
        own = "nothing better in both, knee" + ", this run" * ("seed-0" in place)
        cells = f'<td>0.900 ± 0.020</td><td>0.100 ± 0.020</td><td>0.600 ± 0.020</td><td class="text">{own}</td>'
        assert f'<th scope="row">ewc-lora, strength 10</th>{cells}' in shown


@pytest.mark.slow
def test_forgotten_rows_are_shown_with_text_and_label(finished: Path, bert: str, tmp_path: Path) -> None:
    report([finished], tmp_path / "page.html", examples=1)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (finished.parent / "mood.jsonl").read_text().splitlines()]
    (shown,) = re.findall(r"<td>(glad|sad)</td><td class=\"text\">(.*?)</td>", html)
    words = shown[1].removeprefix("[CLS] ")  # which the tests' tokenizer does not know to be special
    assert {"text": words, "label": shown[0]} in [{k: row[k] for k in ("text", "label")} for row in rows]
    assert "mood: 4 of 4 forgotten" in html


@pytest.mark.slow
def test_nobodys_data_are_read_if_none_are_to_be_shown(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retain.report.forgotten.load_stream", lambda *_: pytest.fail("the data were read"))
    report([finished], tmp_path / "page.html", examples=0)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "mood: 4 of 4 forgotten" in html and '<td class="text">' not in html.split("What was forgotten")[1]


@pytest.mark.slow
def test_the_ledger_is_told_or_why_it_is_not_trusted(finished: Path) -> None:
    assert "tells no end of" in page([read_run(finished)], 0)  # the fixture has changed two of its stages
    whole = read_run(finished.parent / "whole")
    html = page([whole], 0)
    assert "9 lines, each with a hash" in html and "torch 2" in html and "peft 0" in html
    line = r'<th scope="row">([^<]*)</th><td>[-0-9]{10} [:0-9]{5}</td><td>[^<]*</td><td>([^<]*)</td><td>(\d+)<'
    stages = [("the untouched model", "none"), *((name, f"{name} 16") for name in ("mood", "sport", "greek"))]
    assert re.findall(line, html) == [(*stage, "12") for stage in stages]
    (whole.folder / "ledger.jsonl").unlink()
    assert "nothing says which rows were read when" in page([whole], 0)


@pytest.mark.slow
def test_data_that_are_gone_are_said_to_be(finished: Path, tmp_path: Path) -> None:
    moved = (finished.parent / "mood.jsonl").rename(finished.parent / "away.jsonl")
    try:
        report([finished], tmp_path / "page.html")
    finally:
        moved.rename(finished.parent / "mood.jsonl")
    assert "Their contents cannot be shown" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_adapter_of_a_run_has_a_card(finished: Path) -> None:
    found = (finished / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "PeftModel.from_pretrained" in found and "## Scores (accuracy; test rows)" in found and "| mood |" in found


def test_runs_can_be_inspected(finished: Path) -> None:
    output = io.StringIO()
    inspect(finished, Console(file=output, width=120))
    found = output.getvalue()
    assert "ewc-lora on" in found and "00-mood" in found and found.count("yes") >= 4 and "average accuracy" in found


def test_language_models_are_told_in_nats() -> None:
    levels = {"untouched": 5.0, "just_learned": 4.0, "final": 4.2, "gained": 1.0, "forgetting": 0.25}
    nats = {"matrix": [[5.0] * 3, [4.0, 5.0, 5.0], [4.2, 4.0, 5.0], [4.3, 4.2, 4.1]], "scores": levels}
    nats |= {"intervals_95": {k: [v - 0.1, v + 0.1] for k, v in levels.items()}, "reading": dict.fromkeys(levels, "x")}
    other = nats | {"scores": levels | {"final": 4.5, "forgetting": 0.5}}
    runs = [told(name, FORGETFUL, nats_per_token=n) for name, n in (("ewc-lora", nats), ("sequential", other))]
    html = page(runs, 5)
    assert "Lost 0.250 (0.150 to 0.350) nats a token on faq and sql while learning what came after." in html
    assert "sequential ended at 4.500 nats a token and lost +0.500 on earlier tasks; ewc-lora is 0.300 better." in html
    assert "Nats a token after each task" in html and "Lower is better." in html and "What was forgotten" not in html
    assert re.findall(r'--v:([\d.]+)">5.000', html)[0] == "0.000"  # untouched: the worst of its column


def test_several_runs_stand_side_by_side_with_bounds() -> None:
    joint = told("joint", [FAITHFUL[0], FAITHFUL[3]])
    joint.records[1]["learned"] = 3
    html = page([told("ewc-lora", FORGETFUL), told("sequential", FORGETFUL), joint], 0)
    assert "3 runs side by side" in html and html.count('<tr class="bound">') == 1
    assert html.count("minus sequential") == 1  # only the first is compared with the others


def test_names_are_text_and_no_markup() -> None:
    html = page([told("ewc-lora", FORGETFUL, tasks="<b>x</b> sql law")], 0)
    assert "<b>x" not in html and "&lt;b&gt;x" in html


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "holds no run"),
        ("results.json", None, "is not finished"),
        ("config.yaml", "a: [", "damaged"),
        ("base/scores.json", "{}", "damaged"),
    ],
)
def test_what_is_no_finished_run_is_refused(
    finished: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    files.copy_folder(finished, tmp_path / "run")
    path = tmp_path / "run" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(store.StoreError, match=message):
        report([tmp_path / "run"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
