"""What is read may have been written by anybody: how large it may be, how it is read, and where its paths may lead."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from retain import yamls
from retain.files import StoreError

JSON = 64 * 2**20  # bytes of a file: the scores of a million test rows
HEADER = 16 * 2**20  # bytes of names and shapes in a file of tensors: a hundred thousand of them

Shapes = dict[str, tuple[int, ...]]


def inside(folder: Path, name: str) -> Path:
    """The file that ``name``, as read somewhere, is in ``folder``; links that lead elsewhere are followed and refused.

    Raises:
        StoreError: it is none of the folder's.
    """
    try:
        home, path = folder.resolve(), (folder / name).resolve()
        path.exists()  # which fails where a name is too long for any file
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, or no path at all
        raise StoreError(f"{folder}: {name!r} is no path of a file ({error})") from None
    if path == home or not path.is_relative_to(home):
        raise StoreError(f"{folder}: {name!r} leads out of this folder, to {path}; nothing there is read")
    return folder / name


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        StoreError: it is no file (a pipe, a device), or larger than ``limit``.
    """
    with checked(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise StoreError(f"{path}: larger than {limit:,} bytes, the most that is read of such a file")
    return content


def checked(path: Path) -> Path:
    """``path``, if it is a file, so that opening it does not wait for anybody.

    Raises:
        OSError: it is not there.
        StoreError: it is something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise StoreError(f"{path}: not a file")
    return path


def read_text(path: Path, limit: int = yamls.LONGEST) -> str:
    """The content of a text file, as of ``read_bytes``.

    Raises:
        OSError: as there.
        ValueError: as there, or not UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: missing, damaged, too large, or nested too deeply.
    """
    try:
        return json.loads(read_text(path, JSON), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing") from error
    except StoreError:
        raise
    except RecursionError:
        raise StoreError(f"{path}: not readable as JSON (nested too deeply)") from None
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error})") from error


def read_section(path: Path) -> dict[str, Any]:
    """Read JSON that is a dictionary.

    Raises:
        StoreError: as of ``read_json``, or another kind of value.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise StoreError(f"{path}: damaged: holds a {type(found).__name__}, not sections")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of sections that a run has written.

    Raises:
        StoreError: missing or damaged.
    """
    try:
        found = yamls.read(read_text(path))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path}: damaged: holds no sections")
    return found


def read_tensors(path: Path, expected: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Read safetensors.

    Args:
        path: of the file.
        expected: the shape of each tensor by name; held against the file's header before anything is allocated.

    Raises:
        StoreError: missing, damaged, or not what is expected.
    """
    found = shapes(path)
    if expected is not None:
        check_shapes(path, found, expected)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path}: not readable as safetensors ({error})") from error


def shapes(path: Path) -> Shapes:
    """The shape of each tensor in a safetensors file, by name, from its header alone.

    Raises:
        StoreError: missing or damaged.
    """
    try:
        with checked(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER, path.stat().st_size):
            raise StoreError(f"{path}: not readable as safetensors (a header of {length:,} bytes)")
        with safe_open(path, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing") from error
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: not readable as safetensors ({error})") from error


def check_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors at ``path`` that are not the ``expected`` ones, by the first name that differs.

    Raises:
        StoreError: what is there, and what is expected.
    """
    for name in sorted(found.keys() | expected.keys()):
        here, wanted = found.get(name), expected.get(name)
        if here != wanted:
            there = f"is {list(here)}" if here is not None else "is missing"
            raise StoreError(f"{path}: {name!r} {there}, expected {'none' if wanted is None else list(wanted)}")


def hash_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with checked(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
