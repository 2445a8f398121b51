"""The readers of ``benchmarks.fuzz`` once more, with inputs that the coverage of their code guides: atheris.

    nice python -m benchmarks.fuzz_guided --seconds 300

Each reader in a process of its own, for libFuzzer ends it; half of the mutations are those of ``fuzz_inputs``, half its
own. Writes the section "guided" of benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import atheris

from retain import store

with atheris.instrument_imports(include=["retain"]):
    from benchmarks import fuzz
    from retain import adapterfile, artefact, collection, config, intake, ledger, sections, summaries, vllm, yamls

WATCHED = (adapterfile, artefact, collection, config, intake, ledger, sections, summaries, vllm, yamls)
LONGEST = 20_000  # bytes of an input
EACH = 200  # inputs from one writing of the tally to the next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readers", nargs="*", help="all if not given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fuzz.json"))
    options = parser.parse_args()
    command = f"python -m benchmarks.fuzz_guided --seconds {options.seconds} --seed {options.seed}"
    told: dict[str, Any] = {"command": command, "readers": {}}
    for name, reader in fuzz.readers().items():
        if options.readers and name not in options.readers:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary).resolve()
            if (child := os.fork()) == 0:
                _guided(reader, place, options.seconds, options.seed)
            os.waitpid(child, 0)
            told["readers"][name] = store.read_json(place / "tally")
        print(name, told["readers"][name], flush=True)
        found = store.read_json(options.out) if options.out.exists() else {}
        store.write_json(options.out, found | {"guided": told})


def _guided(reader: fuzz.Reader, place: Path, seconds: int, seed: int) -> None:
    """Fuzz ``reader`` in ``place`` until this process ends."""
    tally, home, corpus = fuzz.Tally(), place / "run", place / "corpus"
    home.mkdir()
    corpus.mkdir()
    (corpus / "valid").write_bytes(reader.content)
    until = time.monotonic() + seconds

    def one(content: bytes) -> None:
        began = time.process_time()
        outcome = fuzz.outcome_of(reader, home, content)
        tally.add(outcome, content, time.process_time() - began)
        if tally.outcomes.total() % EACH == 0 or time.monotonic() > until:
            store.write_json(place / "tally", tally.told())
        if time.monotonic() > until:
            os._exit(0)

    def other(content: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        try:
            if draw.random() < 0.5:
                return fuzz.mutated(content, draw)[:longest]
        except RecursionError:  # brackets in brackets that the other mutations have found
            pass
        return atheris.Mutate(content, longest)

    arguments = [sys.argv[0], f"-seed={seed}", f"-max_len={LONGEST}", "-verbosity=0", str(corpus)]
    atheris.Setup(arguments, one, custom_mutator=other)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
