"""``retain doctor``: whether this machine has what runs need, and what to do where it has not."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from retain.units import human

LITTLE = 5 * 2**30  # bytes of disk that checkpoints of a small model fill soon
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[bold red]wrong[/]"}
EXTRA = re.compile(r"""extra == ['"]([\w-]+)['"]""")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: "ok", a "note" that stops nothing, or "wrong", with what to do."""

    what: str
    state: str
    found: str
    fix: str = ""


def doctor(console: Console, folder: Path = Path()) -> bool:
    """Print what was found; returns whether nothing is wrong."""
    table = Table("", "what", "found", "what to do")
    findings = list(examine(folder))
    for finding in findings:
        table.add_row(MARKS[finding.state], finding.what, finding.found, finding.fix)
    console.print(table)
    return all(finding.state != "wrong" for finding in findings)


def examine(folder: Path) -> Iterator[Finding]:
    """All findings: libraries, whether they work together, the accelerator, and the disk under ``folder``."""
    yield Finding("python", "ok", platform.python_version())
    for line in requires("retain") or []:
        requirement = Requirement(line)
        if not (extra := EXTRA.search(line)):
            yield installed(requirement, version)
        elif extra[1] not in ("dev", "peers", "docs"):
            yield optional(requirement, extra[1], version)
    yield imports(
        "transformers", "PreTrainedModel", "a torchvision that is not of torch's own build does this: uninstall it"
    )
    yield accelerator()
    free = shutil.disk_usage(folder).free
    short = "" if free > LITTLE else "checkpoints need room: choose another `output`"
    yield Finding("disk here", "note" if short else "ok", f"{human(free)} free", short)


def installed(requirement: Requirement, find: Callable[[str], str]) -> Finding:
    """Whether a library that everything needs is there, in a version that will do."""
    try:
        found = find(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "wrong", "missing", f'pip install "{_bare(requirement)}"')
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(requirement.name, "ok", found)
    return Finding(
        requirement.name, "wrong", f"{found}, not {requirement.specifier}", f'pip install "{_bare(requirement)}"'
    )


def optional(requirement: Requirement, extra: str, find: Callable[[str], str]) -> Finding:
    """Whether a library of an extra is there; that it is not stops nothing else."""
    finding = installed(requirement, find)
    if finding.state == "ok":
        return finding
    return Finding(requirement.name, "note", finding.found, f'pip install "retain\\[{extra}]" if you need it')


def imports(module: str, name: str, hint: str) -> Finding:
    """Whether ``name`` can be had from ``module``: libraries may be there and not fit together."""
    try:
        getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever an import of others' code may raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(f"import {module}", "wrong", reason[:80], hint)
    return Finding(f"import {module}", "ok", "works")


def accelerator() -> Finding:
    """What models will run on."""
    import torch

    if not torch.cuda.is_available():
        return Finding("accelerator", "note", "none: models run on the CPU", "fine for small models; see retain plan")
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use model.dtype: float32 or training.fp16"
    return Finding("accelerator", "ok", f"{name}, {human(memory)}, {half}")


def _bare(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
