"""Does a run that was killed end as if it had not been? Every method, anywhere, bit for bit.

    nice -n 19 python -m benchmarks.kills --kills 200 --seed 0

Each victim is a small run of two or three tasks with dropout, accumulation and checkpoints, its export and its report,
in a process of its own. It is killed (SIGKILL) one to three times, at a random moment or somewhere within a named
place, each time continued by the same commands, and then compared with one that was left alone: adapters, states,
scores, results, and that no file is left over. A stage that was finished must not be done again. What was done is
kept in --work: when this is stopped, the same command goes on. Writes benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from benchmarks.fisher import machine, versions
from benchmarks.victim import VICTIMS, begin, furnish, warm
from retain import store

RESULTS = Path(__file__).parent / "results" / "kills.json"
BETWEEN, MOST = "between", 3  # where no named place is; kills of one run
# Seconds without news after which a victim is killed once more, and how often: a copy of a process whose libraries have
# threads may wait for one that was not copied.
SILENCE, AGAIN = 120.0, 3
UNTIMED = ("seconds", "steps")  # what may differ: how long it took, and the steps that this sitting took
UNCOMPARED = ("done", "ledger.jsonl", ".lock", "report.html")


@dataclass(frozen=True)
class Aim:
    """When to kill: ``after`` seconds, from the start or from the ``call``-th time that the run is in ``place``."""

    after: float
    place: str = ""
    call: int = 1


@dataclass
class Life:
    """What was seen of a victim's process: where it was when, and how it ended (minus the signal, else exit code)."""

    code: int = 0
    seconds: float = 0.0
    place: str = BETWEEN
    calls: dict[str, list[float]] = field(default_factory=dict)


def asked(description: str | None, kills: int, work: str) -> argparse.Namespace:
    """What is asked on the command line of this and ``kills_together``, once all is there for it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(work))
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare(options.work)
    warm(options.work.resolve())
    return options


def main() -> None:
    options = asked(__doc__, 200, "build/kills")
    console, found = Console(), list[dict[str, Any]]()
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=console) as bar:
        shown = bar.add_task("kills", total=options.kills)
        for case in cases(options.kills, options.seed, options.work):
            found.append(case)
            bar.update(shown, completed=sum(len(case["kills"]) for case in found), description=case["victim"])
            if case["failed"] or case["differ"] or case["lost"]:
                bar.console.print(case, soft_wrap=True)
    content = {"command": f"python -m benchmarks.kills --kills {options.kills} --seed {options.seed}"}
    content |= {"machine": machine(), "versions": versions()} | summary(found)
    show(console, content)
    others = store.read_json(RESULTS) if RESULTS.exists() else {}  # the section of kills_together
    store.write_json(RESULTS, others | content)


def cases(kills: int, seed: int, work: Path, victims: tuple[str, ...] = tuple(VICTIMS)) -> Iterator[dict[str, Any]]:
    """What came of victim after victim, until ``kills`` have struck; those of an earlier sitting in ``work`` first."""
    journal, count, number = work / f"seed-{seed}.jsonl", 0, 0
    for line in journal.read_text().splitlines() if journal.exists() else ():
        with suppress(ValueError):  # torn
            case = json.loads(line)
            number, count = number + 1, count + len(case["kills"])
            yield case
    while count < kills:
        case = one(victims[number % len(victims)], random.Random(f"{seed}/{number}"), work, kills - count)
        with journal.open("a") as file:
            file.write(json.dumps(case) + "\n")
        number, count = number + 1, count + len(case["kills"])
        yield case


def prepare(work: Path) -> None:
    """The model and the rows, once, in a process of their own: the one that forks stays without threads."""
    if not (work / "ways.jsonl").exists():
        work.mkdir(parents=True, exist_ok=True)
        if (number := os.fork()) == 0:
            furnish(work)
            os._exit(0)
        os.waitpid(number, 0)


def one(victim: str, chance: random.Random, work: Path, most: int) -> dict[str, Any]:
    """Kill one victim a few times, let it end, and compare it with one that was left alone."""
    whole, calls, seconds = left_alone(victim, work)
    home, kills, closed = work / "killed", list[dict[str, Any]](), dict[Path, bytes]()
    shutil.rmtree(home, ignore_errors=True)
    life, lost = Life(-signal.SIGKILL), 0
    for _ in range(min(chance.randint(1, MOST), most)):
        aim = aimed(chance, calls, seconds)
        life = live(victim, work, home, aim)
        if life.code != -signal.SIGKILL:
            break
        kills.append({"aim": aim.place or "time", "place": life.place, "seconds": round(life.seconds, 3)})
        lost += redone(closed)
        closed = {path: path.read_bytes() for name in ("base", "tasks/*") for path in home.glob(f"run/{name}/done")}
    for _ in range(AGAIN):
        if life.code == -signal.SIGKILL:
            life = live(victim, work, home)
    failed = "" if not life.code else "hangs" if life.code < 0 else (work / "log").read_text()
    theirs = {} if life.code else left(home / "run")
    differ = sorted(name for name in whole.keys() | theirs.keys() if whole.get(name) != theirs.get(name))
    found = {"victim": victim, "kills": kills, "failed": failed, "differ": [] if life.code else differ}
    return found | {"lost": lost + redone(closed)}


def redone(closed: dict[Path, bytes]) -> int:
    """How many of the stages that were ``closed`` are no longer what they were."""
    return sum(not path.exists() or path.read_bytes() != content for path, content in closed.items())


def left_alone(victim: str, work: Path) -> tuple[dict[str, Any], dict[str, list[float]], float]:
    """What an unharmed victim leaves, the seconds of its stays in each place, and those of its life."""
    home = work / "whole" / victim
    if not (home / "life.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        life = live(victim, work, home)
        if life.code:
            raise RuntimeError(f"{victim} fails unharmed: {(work / 'log').read_text()}")
        store.write_json(home / "life.json", {"calls": life.calls, "seconds": life.seconds})
    life_of = store.read_json(home / "life.json")
    return left(home / "run"), life_of["calls"], life_of["seconds"]


def aimed(chance: random.Random, calls: dict[str, list[float]], seconds: float) -> Aim:
    """A moment, or one within a place, each as likely."""
    if chance.random() < 0.4:
        return Aim(chance.uniform(0, seconds))
    place = chance.choice(sorted(calls))
    call = chance.randrange(len(calls[place]))
    return Aim(chance.uniform(0, calls[place][call]), place, call + 1)


def live(victim: str, work: Path, home: Path, aim: Aim | None = None) -> Life:
    """A victim's process from begin to end, or until ``aim`` has struck."""
    number, reading = begin(victim, work.resolve(), home, (work / "log").resolve())
    life, since, stack, rest = Life(), time.monotonic(), list[tuple[str, float]](), b""
    due = since + aim.after if aim and not aim.place else None
    while True:
        wait = SILENCE if due is None else max(0.0, due - time.monotonic())
        if not select.select([reading], [], [], wait)[0]:
            os.kill(number, signal.SIGKILL)
            due = None
        elif not (told := os.read(reading, 65536)):
            break
        else:
            *lines, rest = (rest + told).split(b"\n")
            for line in lines:
                note(life, stack, line.decode())
                if aim and line.decode() == f"+{aim.place}" and entered(life, stack, aim.place) == aim.call:
                    due = time.monotonic() + aim.after
    os.close(reading)
    life.code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    life.seconds = time.monotonic() - since
    life.place = stack[-1][0] if stack else BETWEEN
    return life


def note(life: Life, stack: list[tuple[str, float]], line: str) -> None:
    """Take note of a place that a process says it has come to (+) or left (-)."""
    if line.startswith("+"):
        stack.append((line[1:], time.monotonic()))
    else:
        place, since = stack.pop()
        life.calls.setdefault(place, []).append(time.monotonic() - since)


def entered(life: Life, stack: list[tuple[str, float]], place: str) -> int:
    """How many times a process has been in ``place``, the present one included."""
    return len(life.calls.get(place, ())) + sum(name == place for name, _ in stack)


def left(folder: Path) -> dict[str, Any]:
    """What a run leaves, by path: JSON without times, hashes of the rest; the page of the report if it is whole."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.name in UNCOMPARED:
            found[name] = path.name != "report.html" or content.rstrip().endswith(b"</html>")
        else:
            found[name] = untimed(json.loads(content)) if path.suffix == ".json" else store.hash_of(path)
    return found


def untimed(value: Any) -> Any:
    """``value`` without what takes other times."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in UNTIMED}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the table of kills by victim and place, and every case that was not as it should be."""
    table = {victim: Counter[str]() for victim in VICTIMS}
    for case in found:
        table[case["victim"]].update(kill["place"] for kill in case["kills"])
    return {
        "kills": sum(len(case["kills"]) for case in found),
        "runs": len(found),
        "failed": sum(bool(case["failed"]) for case in found),
        "differences": sum(bool(case["differ"]) for case in found),
        "lost": sum(case["lost"] for case in found),
        "aims": dict(Counter(kill["aim"] for case in found for kill in case["kills"])),
        "table": {victim: dict(sorted(places.items())) for victim, places in table.items()},
        "wrong": [case for case in found if case["failed"] or case["differ"] or case["lost"]],
    }


def show(console: Console, content: dict[str, Any]) -> None:
    """The table, and what it comes to."""
    places = sorted({place for row in content["table"].values() for place in row})
    table = Table("", *places, "all")
    for victim, row in content["table"].items():
        table.add_row(victim, *(str(row.get(place, "")) for place in places), str(sum(row.values())))
    every = [sum(row.get(place, 0) for row in content["table"].values()) for place in places]
    table.add_row("all", *map(str, every), str(sum(every)))
    console.print(table)
    counts = ", ".join(f"{name} {content[name]}" for name in ("kills", "runs", "failed", "differences", "lost"))
    console.print(counts)


if __name__ == "__main__":
    main()
