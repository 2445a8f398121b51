"""The oldest versions that CI installs are those that pyproject.toml says are enough."""

import re
import tomllib
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
AT_LEAST = re.compile(r"([\w-]+)>=([\d.]+)")


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        need for extra in ("trl", "vision") for need in project["optional-dependencies"][extra]
    ]
    bounds = {found[1].lower(): found[2] for need in wanted if (found := AT_LEAST.match(need))}
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert bounds.keys() == pinned.keys() and len(bounds) == len(wanted)
    assert all(Version(pinned[name]) == Version(bound) for name, bound in bounds.items())
