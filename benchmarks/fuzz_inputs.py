"""Files that are valid, and what may become of them: bytes changed, values replaced by others."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from retain import artefact, ledger

TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"\\u0000"),
    *(
        b"\\ud800",
        b"\x00",
        b"\xff\xfe",
        b"\n",
        b"- ",
        b"? ",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system ",
        b"!!int ",
    ),
    *(b"|", b">", b"%YAML 9.9", b"---", b"...", b"../", b"/etc/hostname", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000),
)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**63, 10**30, 1e308, -1e308, 0.5, "", "a", "../secret", "/etc/hostname", "\x00", "\ud800"),
    *(
        "[/]",
        "[red]",
        "a" * 10_000,
        "NaN",
        [],
        {},
        [[]],
        {"": {}},
        [None] * 50,
        ["../secret"],
        {"../secret": "0"},
        "🦀",
    ),
)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """``content`` with one to four things wrong; JSON sometimes in its values, everything sometimes in its bytes."""
    if draw.random() < 0.5 and (value := _parsed(content)) is not None:
        for _ in range(draw.randint(1, 3)):
            value = _replaced(value, draw)
        return json.dumps(value).encode("utf-8", "surrogatepass")
    found = bytearray(content)
    if content[8:9] == b"{" and draw.random() < 0.5:  # safetensors: the header with its length put right, or wrong
        length = struct.unpack("<Q", content[:8])[0]
        header = mutated(content[8 : 8 + length], draw)
        claimed = len(header) if draw.random() < 0.8 else draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(header) + 1))
        return struct.pack("<Q", claimed) + header + content[8 + length :]
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        kind = draw.randrange(6)
        if kind == 0 and found:
            found[at % len(found)] = draw.randrange(256)
        elif kind == 1:
            found[at:at] = draw.choice(TOKENS)
        elif kind == 2:
            del found[at : at + draw.randint(1, 40)]
        elif kind == 3:
            found[at:at] = found[at : at + draw.randint(1, 200)] * draw.choice((1, 2, 50))
        elif kind == 4:
            other = draw.randrange(len(found) + 1)
            found[at:at] = found[other : other + draw.randint(1, 60)]
        else:
            found = found[:at]
    return bytes(found)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _replaced(value: Any, draw: random.Random) -> Any:
    """A copy of ``value`` with something in it replaced, left out, or doubled."""
    value = copy.deepcopy(value)
    places = [place for place in _places(value) if place]
    if not places:
        return draw.choice(ODD)
    *way, last = draw.choice(places)
    here = value
    for step in way:
        here = here[step]
    if draw.random() < 0.2:
        del here[last]
    elif draw.random() < 0.1 and isinstance(here, dict):
        here[str(draw.choice(ODD))] = here[last]
    else:
        here[last] = draw.choice(ODD)
    return value


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from _places(part, (*way, key))


CONFIG = b"""# retain run bot.yaml
model: {path: bert, dtype: float32}
lora: &lora {r: 4, target_modules: [query, value]}
method: {name: ewc-lora, strength: auto, fisher: {form: diagonal, samples: 8}}
training: {learning_rate: 1e-4, num_train_epochs: 1}
tasks:
  - {name: faq, path: json, data_files: faq.jsonl, classes: [a, b]}
  - {name: sql, path: json, data_files: {train: a.jsonl, test: b.jsonl}, training: {num_train_epochs: 2}}
evaluation: {batch_size: 3}
output: out
seed: 0
"""


DONE = json.dumps({"scores.json": "0" * 64, "state/model.safetensors": "1" * 64}).encode()


def tensors() -> bytes:
    name = "base_model.model.bert.query.lora_{}.weight"
    return safetensors.torch.save({name.format("A"): torch.ones(2, 4), name.format("B"): torch.ones(3, 2)})


def adapter() -> bytes:
    plain = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["query"],
        "bias": "none",
        "use_dora": False,
    }
    more = {
        "base_model_name_or_path": "bert",
        "rank_pattern": {"x": 3},
        "alpha_pattern": {"que.*": 2},
        "use_rslora": True,
    }
    return json.dumps(plain | more | {"modules_to_save": ["classifier"], "layer_replication": None}).encode()


def manifest() -> bytes:
    task = {"name": "mood", "number": 0, "labels": ["a", "b"], "rows": 16, "fingerprint": "0" * 64}
    part = {"weight": 0.5, "rows": {"mood": 8}, "files": {"model.safetensors": "0"}}
    told = {
        "base": {"name": "bert", "kind": "Bert", "fingerprint": "1" * 64},
        "targets": {"layers": 4, "ranks": [2], "fingerprint": "2" * 64},
        "method": "ewc-lora",
        "keywords": {"strength": None, "fisher": {"samples": 8}},
        "free": ["strength"],
        "scenario": "task",
        "format": artefact.FORMAT,
        "tasks": [task],
        "made": {"retain": "0.1.0"},
        "files": dict.fromkeys(("model.safetensors", "method.safetensors"), hashlib.sha256(tensors()).hexdigest()),
        "merged": [part],
    }
    return json.dumps(told).encode()


def chain() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        book = ledger.Ledger(Path(folder, "ledger.jsonl"))
        for number in range(3):
            book.append("begin", number=number, name="ä", reads=[{"task": "a", "split": "train", "rows": 3}])
        return book.path.read_bytes()


def results() -> bytes:
    names = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer")
    rise = {"foreseen": 0.1, "measured": 0.2, "standard_error": 0.01, "ratio": 0.5}
    return json.dumps(
        {
            "retain": "0.1.0",
            "method": {"name": "ewc-lora"},
            "scenario": "task",
            "seed": 0,
            "tasks": ["mood", "sport"],
            "rows": "test",
            "accuracy": {
                "matrix": [[0.5, 0.5], [1.0, None], [0.9, 1.0]],
                "scores": dict.fromkeys(names, 0.5),
                "intervals_95": {name: [0.4, 0.6] for name in names},
            },
            "calibration": [{"after": 2, "total": rise, "tasks": {"mood": rise}}],
            "warnings": {"after 2": ["inert"]},
            "bytes": {"adapter": 10, "state": 20, "kinds": {"fisher": 20}},
            "boundary": {"after 1": {"rows": 3}},
            "seconds": {"train": 1.5},
        }
    ).encode()
