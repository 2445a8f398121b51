"""Damaged and hostile files for every reader: who ends otherwise than with our own error, hangs, or reads elsewhere.

    nice python -m benchmarks.fuzz --inputs 100000 --out benchmarks/results/fuzz.json

Inputs are mutations of files that are valid (``fuzz_inputs``). Each may take a second of processor time. Every file
that is opened is seen by an audit hook: all must lie in the folder that is read. The hook also sees what no reader is
to do: start a process, connect to somewhere, look for the class of a pickle.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import retain
from benchmarks import fuzz_inputs
from benchmarks.fuzz_inputs import mutated
from retain import artefact, collection, ledger, store
from retain import config as configuration
from retain.commands.table import print_scores
from retain.config import ConfigError
from retain.store import StoreError
from retain.summaries import read_results
from retain.vllm import judge

LIMIT = 1.0  # seconds of processor time for an input
EACH = 5000  # inputs from one writing of the results to the next
NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
CODE = tuple(
    Path(path).resolve() for path in (sys.prefix, sys.base_prefix, torch.__path__[0] + "/..", retain.__path__[0])
)


class Hang(BaseException):
    """An input has taken longer than it may."""


@dataclass(frozen=True)
class Reader:
    """What reads one kind of file: its name, what a valid one holds, what lies beside it, and its own error."""

    file: str
    content: bytes
    read: Callable[[Path], Any]
    beside: dict[str, bytes] = field(default_factory=dict)
    own: type[Exception] = StoreError


def readers() -> dict[str, Reader]:
    """By name, one for every kind of file that may come from elsewhere; each is given the folder."""
    tensors = fuzz_inputs.tensors()
    both = {"model.safetensors": tensors, "method.safetensors": tensors}
    return {
        "config": Reader("run.yaml", fuzz_inputs.CONFIG, _configuration, own=ConfigError),
        "done": Reader("done", fuzz_inputs.DONE, store.verify_all),
        "manifest": Reader("manifest.json", fuzz_inputs.manifest(), artefact.read_manifest, both),
        "ledger": Reader("ledger.jsonl", fuzz_inputs.chain(), _ledger),
        "safetensors": Reader("x.safetensors", tensors, _tensors),
        "adapter_config": Reader(
            "adapter_config.json", fuzz_inputs.adapter(), _adapter, {"adapter_model.safetensors": tensors}
        ),
        "results": Reader("results.json", fuzz_inputs.results(), _results),
    }


def _configuration(folder: Path) -> None:
    configuration.load(folder / "run.yaml")


def _ledger(folder: Path) -> None:
    ledger.read(folder / "ledger.jsonl")


def _tensors(folder: Path) -> None:
    store.read_tensors(folder / "x.safetensors")


def _adapter(folder: Path) -> None:
    collection.read_adapter(folder)
    judge(folder)


def _results(folder: Path) -> None:
    print_scores(Console(file=io.StringIO(), width=100), read_results(folder / "results.json"))


@dataclass
class Tally:
    """What came of the inputs of a reader; of each kind of failure the first input that had it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0

    def add(self, outcome: str, content: bytes, seconds: float) -> None:
        self.slowest = max(self.slowest, seconds)
        self.outcomes[outcome if outcome in ("read", "refused") else "failed"] += 1
        if outcome not in ("read", "refused"):
            self.failures.setdefault(outcome, repr(content[:400]))

    def told(self) -> dict[str, Any]:
        count = {"inputs": self.outcomes.total(), "failed": 0, **dict(self.outcomes)}
        return count | {"slowest_seconds": round(self.slowest, 3), "failures": self.failures}


def fuzz(reader: Reader, numbers: Iterable[int], seed: int) -> Iterator[Tally]:
    """Inputs of ``reader`` by their ``numbers``; yields the tally after each."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary).resolve() / "run"
        (home.parent / "secret").write_text("of somebody else")
        home.mkdir()
        for number in numbers:
            content = mutated(reader.content, random.Random(f"{seed} {number}"))
            began = time.process_time()
            outcome = outcome_of(reader, home, content)
            tally.add(outcome, content, time.process_time() - began)
            yield tally


def outcome_of(reader: Reader, home: Path, content: bytes) -> str:
    """What comes of ``content`` in the folder ``home``: "read" or "refused", as it should, or what else."""
    _fill(home, reader, content)
    with _watched(home) as elsewhere:
        outcome = _tried(reader, home)
    return f"read elsewhere: {min(elsewhere)}" if elsewhere else outcome


def _tried(reader: Reader, home: Path) -> str:
    try:
        with _limited():
            reader.read(home)
    except reader.own:
        return "refused"
    except Hang:
        return f"more than {LIMIT} s"
    except BaseException as error:  # whatever else it is, that is what is looked for
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "read"


def _fill(home: Path, reader: Reader, content: bytes) -> None:
    for name, other in reader.beside.items():
        if not (home / name).exists():
            (home / name).write_bytes(other)
    (home / reader.file).write_bytes(content)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


_OPENED: list[str] | None = None  # what is opened, while somebody watches: an audit hook cannot be taken back
_DONE: list[str] = []  # of NEVER, in that time
_HOOKED = False


@contextmanager
def _watched(home: Path) -> Iterator[set[str]]:
    """What of ``NEVER`` the block does, and its files outside ``home``, but for the code that is imported."""
    global _OPENED, _HOOKED
    if not _HOOKED:
        sys.addaudithook(_hear)
        _HOOKED = True
    found, _OPENED = set[str](), list[str]()
    try:
        yield found
    finally:
        opened, _OPENED = _OPENED, None
        found.update(_DONE)
        _DONE.clear()
        for name in {name for name in opened if ".." in name or not name.startswith(f"{home}/")}:
            path = Path(name).resolve()
            if not path.is_relative_to(home) and not any(path.is_relative_to(code) for code in CODE):
                found.add(str(path))


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _OPENED is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        name = arguments[0]
        _OPENED.append(name if isinstance(name, str) else name.decode("utf-8", "replace"))
    elif event in NEVER:
        _DONE.append(event)


def main() -> None:
    """Fuzz every reader, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", help="all if not given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fuzz.json"))
    arguments = parser.parse_args()
    command = f"python -m benchmarks.fuzz --inputs {arguments.inputs} --seed {arguments.seed}"
    others = store.read_json(arguments.out) if arguments.out.exists() else {}  # the section of fuzz_guided
    told: dict[str, Any] = others | {"command": command, "limit_seconds": LIMIT, "readers": {}}
    console, every = Console(stderr=True), readers()
    for name in arguments.readers or every:
        numbers = track(range(arguments.inputs), name, console=console, disable=not console.is_terminal)
        for tally in fuzz(every[name], numbers, arguments.seed):
            if tally.outcomes.total() % EACH in (0, arguments.inputs % EACH):
                told["readers"][name] = tally.told()
                told["peak_mebibytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
                store.write_json(arguments.out, told)
        print(name, json.dumps(told["readers"][name])[:2000], flush=True)


if __name__ == "__main__":
    main()
