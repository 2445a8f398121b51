"""The commands as a person types them: what they print, and one line for every mistake."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from retain import cli, config, store
from retain.methods import METHODS
from runs import document, left_by, yaml_file
from streams import jsonl, rows

pytestmark = pytest.mark.usefixtures("fast_runs")


class Shell:
    """Calls the command line as its entry point does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        self.monkeypatch.setattr(sys, "argv", ["retain", *arguments])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as done, warnings.catch_warnings():
            cli.main()
        out, err = self.capfd.readouterr()
        return int(done.value.code or 0), out, err

    def complaint(self, *arguments: str) -> str:
        """The one line that a mistake is told in."""
        code, out, err = self(*arguments)
        assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
        return err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def retain(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capfd)


@pytest.fixture
def stream(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sound configuration, beside files that are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    jsonl(tmp_path / "odd.jsonl", rows(["glad", "joyful"]))
    return yaml_file(document(bert, tmp_path, "mood", output="out"), tmp_path / "stream.yaml")


MISTAKES = {
    "missing data file": (["tasks.0.data_files=moood.jsonl"], "task 'mood': no such file.*moood.jsonl.*mood.jsonl"),
    "empty data set": (["tasks.0.data_files=empty.jsonl"], "task 'mood': .*empty.jsonl is empty"),
    "label never seen": (
        ["tasks.0.data_files={train: mood.jsonl, test: odd.jsonl}"],
        "task 'mood': test label 'joyful' is never seen in training; labels there: glad, sad",
    ),
    "target module": (["lora.target_modules=[qery]"], r"target_modules \['qery'\] match nothing.*did you mean 'query'"),
    "markup": (["lora.target_modules=['[red]']"], r"target_modules \['\[red\]'\] match nothing"),
    "rank": (["lora.r=33"], r"bert.encoder.layer.0.attention.self.query: rank 33 is larger than the layer, \(32, 32\)"),
    "unknown method": (["method.name=ewcc"], "method: unknown method 'ewcc'; known: .*did you mean 'ewc'"),
    "method keyword": (["method.strengt=3"], "method: unknown key 'strengt'"),
    "unknown key": (["modle.path=x"], "unknown key 'modle'.*did you mean 'model'"),
    "training keyword": (["training.learning_rat=1"], "training: unknown key 'learning_rat'.*'learning_rate'"),
    "task's training keyword": (["tasks.0.training={max_step: 1}"], "tasks.0.training: unknown key 'max_step'"),
    "no model": (["model.path=no/such/model"], "no text model at 'no/such/model', neither as a folder nor on the hub"),
    "not an override": (["seed"], "override 'seed' is not of the form section.key=value"),
    "scenario": (["scenario=tusk"], "scenario: 'tusk' is not allowed.*did you mean 'task'"),
    "lora value": (["lora.r=0"], "`r` should be a positive integer value but the value passed is 0"),
    "training value": (["training.lr_scheduler_type=sloped"], "sloped"),
    "a task's training value": (["tasks.0.training={optim: addam}"], "'?addam'? is not a valid"),
    "strength": (["method={name: ewc-lora, strength: -1}"], "strength must be at least 0 and finite, got -1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name: str, stream: str, retain: Shell) -> None:
    overrides, message = MISTAKES[name]
    complaint = retain.complaint("run", stream, *overrides)
    assert re.search(message, complaint), complaint
    assert not Path("out").exists()


def test_a_configuration_that_is_not_there(retain: Shell) -> None:
    assert retain.complaint("run", "nowhere.yaml").startswith("cannot read the configuration 'nowhere.yaml': No such")


def test_a_loss_that_is_no_number(stream: str, retain: Shell) -> None:
    code, _, err = retain("run", stream, "training.learning_rate=1e30")
    assert code == 1 and err.count("\n") == 1
    assert re.match("error: the loss on task 'mood' is (nan|inf): lower training.learning_rate", err)


def test_the_results_of_another_configuration(stream: str, retain: Shell) -> None:
    store.write(Path("out", "config.yaml"), config.dump(config.load(stream)))
    before = left_by("out")
    complaint = retain.complaint("run", stream, "training.max_steps=9", "seed=2")
    assert "out holds a run of another configuration: seed is 0 there and 2 here; choose another `output`" in complaint
    assert left_by("out") == before


def test_no_run_to_export(tmp_path: Path, retain: Shell) -> None:
    assert retain.complaint("export", str(tmp_path)) == f"{tmp_path} holds no run: it has no config.yaml"


def test_run_says_what_it_did_and_where(stream: str, retain: Shell) -> None:
    code, out, err = retain("run", stream, "training.max_steps=1", "seed=3")
    assert (code, err) == (0, "")
    assert "mood learned: " in out and "sequential: test accuracy (task known)" in out
    assert "adapter: out/adapter   results: out/results.json" in out
    assert max(map(len, out.splitlines())) <= 80
    results = store.read_json(Path("out", "results.json"))
    assert results["seed"] == 3
    code, again, err = retain("run", stream, "training.max_steps=1", "seed=3")
    assert (code, err) == (0, "") and again.strip().splitlines()[0] == "sequential: test accuracy (task known)"


def test_run_stops_after_so_many_tasks_and_goes_on(bert: str, tmp_path: Path, retain: Shell) -> None:
    file = yaml_file(document(bert, tmp_path, "mood sport", output=str(tmp_path / "out")), tmp_path / "two.yaml")
    code, out, _ = retain("run", file, "--stop-after", "1")
    assert code == 0 and "sport learned: " not in out and "tasks learned: 1; run again without --stop-after" in out
    code, out, _ = retain("run", file)
    assert code == 0 and "mood learned: " not in out and "sport learned: " in out and "adapter: " in out


def test_warnings_about_tomorrow_do_not_reach_a_user(retain: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: Any) -> None:
        warnings.warn("`x` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("nothing protects layer.3", UserWarning, stacklevel=1)

    monkeypatch.setattr("retain.commands.export.export", command)
    monkeypatch.setattr(
        warnings, "showwarning", lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    )
    assert retain("export", "x") == (0, "", "warning: nothing protects layer.3\n")


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("y"), TypeError("z")])
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: Any) -> None:
        raise error

    monkeypatch.setattr("retain.commands.export.export", command)
    monkeypatch.setattr(sys, "argv", ["retain", "export", "x"])
    with pytest.raises(type(error)), warnings.catch_warnings():
        cli.main()


def test_methods_lists_every_method_and_keyword(retain: Shell) -> None:
    code, out, _ = retain("methods")
    assert code == 0 and all(name in out for name in METHODS)
    assert "strength: null" in out and "strength: 1000.0" in out and "mode: shared" in out


def test_methods_says_what_the_keywords_of_one_mean(retain: Shell) -> None:
    code, out, _ = retain("methods", "ewc-lora")
    keywords = set(inspect.signature(METHODS["ewc-lora"]).parameters) - {"model"}  # which no file says there
    assert code == 0 and all(f"\n    {key}: " in out for key in keywords)
    assert "\n    model: " not in out and "docs/fisher.md" in out
    _, rest = str(inspect.getdoc(METHODS["ewc-lora"])).split("\n    strength: ")
    assert out.split("\n    strength: ")[1].split() == rest.split()  # filled anew, and nothing lost
    assert max(map(len, out.splitlines())) <= 80
    assert retain.complaint("methods", "ewc-lorra").startswith("unknown method 'ewc-lorra'; known: sequential, ")


@pytest.mark.parametrize(
    ("given", "methods", "overrides"),
    [
        ([], ["all"], []),
        (["--methods", "ewc", "olora", "--seeds", "2"], ["ewc", "olora"], []),
        (["--methods", "ewc:decay=0.5,seed=1", "seed=3", "lora.r=4"], ["ewc:decay=0.5,seed=1"], ["seed=3", "lora.r=4"]),
        (["seed=3", "--methods", "ewc", "--methods=olora", "lora.r=4"], ["ewc", "olora"], ["seed=3", "lora.r=4"]),
    ],
)
def test_compare_takes_several_methods_after_one_option(
    given: list[str], methods: list[str], overrides: list[str], stream: str, retain: Shell, monkeypatch: Any
) -> None:
    seen: list[Any] = []

    def command(settings: Any, asked: list[str], **options: Any) -> bool:
        seen.append((settings, asked, options))
        return not overrides

    monkeypatch.setattr("retain.commands.compare.compare", command)
    assert retain("compare", stream, *given)[0] == int(bool(overrides))  # a comparison with failures is no success
    assert seen[0][:2] == (config.load(stream, overrides), methods)
    assert seen[0][2]["seeds"] == (2 if "--seeds" in given else 3) and seen[0][2]["budget"] == "full"
    if not overrides:
        retain("compare", *given, stream)
        assert seen[1][:2] == seen[0][:2]


def test_compare_tells_mistakes_in_one_line(stream: str, retain: Shell) -> None:
    complaint = retain.complaint("compare", stream, "--methods", "sequential", "ewc-lorra")
    assert complaint.startswith("unknown method 'ewc-lorra'; known: ") and "did you mean 'ewc-lora'?" in complaint
    assert not Path("out-compare").exists()
    code, _, err = retain("compare", stream, "--seeds", "0")
    assert code == 2 and "--seeds" in err


def test_sweep_hands_on_what_it_is_told_and_tells_mistakes_in_one_line(
    stream: str, retain: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the stream needs two tasks or more" in retain.complaint("sweep", stream)
    complaint = retain.complaint("sweep", stream, "--pick", "bugdet=0.05")
    assert complaint == (
        "--pick 'bugdet=0.05': expected budget=FORGETTING or knee, such as budget=0.05; did you mean 'budget'?"
    )
    assert not Path("out-sweep").exists()
    seen: list[Any] = []

    def command(settings: Any, asked: list[str], **options: Any) -> bool:
        seen.append((settings.seed, asked, options))
        return False

    monkeypatch.setattr("retain.commands.sweep.sweep", command)
    given = ["--methods", "ewc-lora", "ewc", "seed=3", "--knob", "strength", "--range", "1", "1e3", "--pick", "knee"]
    assert retain("sweep", stream, *given)[0] == 1
    seed, asked, options = seen[0]
    assert (seed, asked, options["knob"], options["limits"]) == (3, ["ewc-lora", "ewc"], "strength", (1.0, 1000.0))
    assert (options["rule"].budget, options["points"], options["seeds"]) == (None, 9, 3)


def test_help(retain: Shell) -> None:
    code, out, _ = retain("--help")
    assert code == 0 and all(name in out for name in ("demo", "run", "compare", "export", "methods"))
    assert retain()[1].strip() == out.strip()  # no arguments
    for command in ("demo", "run", "compare", "export"):
        code, out, _ = retain(command, "--help")
        assert code == 0 and "   adapter:" not in out
    knobs = sum(method.knob is not None for method in METHODS.values())
    counted = f"{5 * knobs + 3 * len(METHODS)} whole runs: {knobs} of the {len(METHODS)} methods have a knob"
    assert counted in " ".join(retain("compare", "--help")[1].replace("│", " ").split())
    code, _, err = retain("walk")
    assert code == 2 and "No such command 'walk'" in err


def test_the_demo_s_verdict_is_its_exit_code(retain: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def command(output: Path, *, quick: bool, seed: int, console: Any, stop: Any) -> bool:
        seen.append((output, quick, seed))
        return quick

    monkeypatch.setattr("retain.commands.demo.demo", command)
    assert retain("demo", "--quick", "--seed", "5")[0] == 0
    assert retain("demo", "--output", "elsewhere")[0] == 1
    assert seen == [(Path("runs/demo"), True, 5), (Path("elsewhere"), False, 0)]
