"""How long `retain --help` takes, beside what it is made with, and an interpreter that does nothing.

    python -m benchmarks.startup

Processor time of the child, the least of so many, since other processes only add to it -> results/startup.json.
"""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

from retain import store

TIMES = 7
COMMANDS = {
    "retain --help": ["-m", "retain", "--help"],
    "typer and rich": ["-c", "import typer.rich_utils"],
    "python -c pass": ["-c", "pass"],
}


def seconds(arguments: list[str]) -> float:
    """Of a processor, user and system together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 4)


if __name__ == "__main__":
    found = {name: min(seconds(arguments) for _ in range(TIMES)) for name, arguments in COMMANDS.items()}
    help_, _, nothing = found.values()
    result = {"seconds": found, "ratio": round(help_ / nothing, 1), "of": TIMES, "python": platform.python_version()}
    store.write_json(Path(__file__).parent / "results" / "startup.json", result)
    print(result)
