"""Does a run of two processes, of which one or both were killed, end as if they had not been?

    nice -n 19 python -m benchmarks.kills_together --kills 16 --seed 0

As ``benchmarks.kills``, with two processes that train together over gloo, without export and report. SIGKILL strikes
the first, the second or both, where the first is at a random moment or in a named place. Whoever is left over ends by
itself, for want of the other, or is killed after a while. Writes the section "together" of results/kills.json.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.fisher import machine, versions
from benchmarks.kills import AGAIN, RESULTS, SILENCE, Aim, Life, aimed, asked, entered, left, note, redone
from benchmarks.victim import begin
from retain import store

VICTIMS = ("ewc-lora", "replay", "dwd", "eblora", "share")
WHOM = ((0,), (1,), (0, 1))
ALONE = 60.0  # seconds that one of two may take to notice that the other is gone
Calls = dict[str, list[float]]


def main() -> None:
    options = asked(__doc__, 16, "build/kills-together")
    console = Console()
    found = list(track(cases(options.kills, options.seed, options.work), "kills", total=options.kills, console=console))
    content = {"command": f"python -m benchmarks.kills_together --kills {options.kills} --seed {options.seed}"}
    content |= {"machine": machine(), "versions": versions()} | summary(found)
    console.print(content)
    store.write_json(RESULTS, store.read_json(RESULTS) | {"together": content})


def cases(kills: int, seed: int, work: Path, victims: tuple[str, ...] = VICTIMS) -> Iterator[dict[str, Any]]:
    """What came of one victim after another, each killed once."""
    whole: dict[str, tuple[dict[str, Any], Calls, float]] = {}
    for number in range(kills):
        victim, chance = victims[number % len(victims)], random.Random(f"{seed}/{number}")
        if victim not in whole:
            whole[victim] = left_alone(victim, work)
        yield one(victim, chance, work, *whole[victim])


def left_alone(victim: str, work: Path) -> tuple[dict[str, Any], Calls, float]:
    """What an unharmed pair leaves, the seconds of the first one's stays in each place, and those of its life."""
    home = work / "whole" / victim
    shutil.rmtree(home, ignore_errors=True)
    life, _ = live(victim, work, home)
    if life.code:
        raise RuntimeError(f"{victim} fails unharmed: {(work / 'log-0').read_text()}")
    return left(home / "run"), life.calls, life.seconds


def one(
    victim: str, chance: random.Random, work: Path, whole: dict[str, Any], calls: Calls, seconds: float
) -> dict[str, Any]:
    """Kill one of a pair, or both, let another pair end what they began, and compare it with one left alone."""
    home, whom = work / "killed", chance.choice(WHOM)
    shutil.rmtree(home, ignore_errors=True)
    life, alone = live(victim, work, home, aimed(chance, calls, seconds), whom)
    struck = life.code == -signal.SIGKILL
    closed = {path: path.read_bytes() for name in ("base", "tasks/*") for path in home.glob(f"run/{name}/done")}
    found = {"victim": victim, "whom": [*whom], "place": life.place, "struck": struck, "alone": alone}
    for _ in range(AGAIN):
        if life.code == -signal.SIGKILL:
            life, _ = live(victim, work, home)
    failed = "" if not life.code else (work / "log-0").read_text() if life.code > 0 else "hangs"
    theirs = {} if life.code else left(home / "run")
    differ = sorted(name for name in whole.keys() | theirs.keys() if whole.get(name) != theirs.get(name))
    return found | {"failed": failed, "differ": [] if life.code else differ, "lost": redone(closed)}


def live(
    victim: str, work: Path, home: Path, aim: Aim | None = None, whom: tuple[int, ...] = (0, 1)
) -> tuple[Life, str]:
    """A pair from begin to end, or until ``aim`` has struck; and how one that was left over has ended."""
    port = _free_port()
    start = partial(begin, victim, work.resolve(), home)
    numbers, ears = zip(*(start((work / f"log-{rank}").resolve(), (rank, port)) for rank in (0, 1)), strict=True)
    life, since, stack, rest, struck = Life(), time.monotonic(), list[tuple[str, float]](), b"", False
    due = since + aim.after if aim and not aim.place else None
    while True:
        ready = select.select([ears[0]], [], [], SILENCE if due is None else max(0.0, due - time.monotonic()))[0]
        if not ready:
            for rank in whom if due is not None else (0, 1):
                os.kill(numbers[rank], signal.SIGKILL)
            struck, life.place, due = True, stack[-1][0] if stack else life.place, None
            if 0 not in whom:
                break
        elif not (told := os.read(ears[0], 65536)):
            break
        else:
            *lines, rest = (rest + told).split(b"\n")
            for line in lines:
                note(life, stack, line.decode())
                if aim and line.decode() == f"+{aim.place}" and entered(life, stack, aim.place) == aim.call:
                    due = time.monotonic() + aim.after
    codes = [_ended(number, ALONE) for number in numbers]
    for ear in ears:
        os.close(ear)
    life.code, life.seconds = -signal.SIGKILL if struck else max(codes, key=abs), time.monotonic() - since
    spared = [codes[rank] for rank in (0, 1) if struck and rank not in whom]
    return life, "" if not spared else "by itself" if spared[0] >= 0 else "killed after a while"


def _ended(number: int, patience: float) -> int:
    """How the process has ended: by itself within ``patience`` seconds, or killed."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and every case that was not as it should be."""
    struck = [case for case in found if case["struck"]]
    return {
        "kills": len(struck),
        "of": dict(Counter({(0,): "the first", (1,): "the second"}.get(tuple(c["whom"]), "both") for c in struck)),
        "left_over_ended": dict(Counter(case["alone"] for case in struck if case["alone"])),
        "places": dict(Counter(case["place"] for case in struck)),
        "failed": sum(bool(case["failed"]) for case in found),
        "differences": sum(bool(case["differ"]) for case in found),
        "lost": sum(case["lost"] for case in found),
        "wrong": [case for case in found if case["failed"] or case["differ"] or case["lost"]],
    }


if __name__ == "__main__":
    main()
