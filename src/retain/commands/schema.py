"""``retain schema``: the configuration as JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from transformers import TrainingArguments

from retain.config import METHOD, RunConfig
from retain.lora import LoraConfig, lora_config_fields
from retain.methods import METHODS
from retain.sections import ASKED, OF_CLASSES, OF_SERIES, OURS, training_kinds

UNKNOWN = (PydanticUserError, PydanticSchemaGenerationError, PydanticInvalidForJsonSchema)


def schema() -> dict[str, Any]:
    """JSON Schema of the whole file, with the keywords of every method and of the sections that are passed through."""
    document = RunConfig.model_json_schema()
    training = _section(
        (f.name for f in fields(TrainingArguments) if f.name not in OURS),
        training_kinds(),
        "keywords of transformers.TrainingArguments",
    )
    found = document["properties"]
    found["lora"] = _section(lora_config_fields(), get_type_hints(LoraConfig), "keywords of peft.LoraConfig")
    found["training"] = document["$defs"]["TaskConfig"]["properties"]["training"] = training
    for key in (*OF_CLASSES, *OF_SERIES, *ASKED, "prompt", "training"):
        del document["$defs"]["GuardConfig"]["properties"][key]
    found["method"] = {"anyOf": [_method(name) for name in METHODS]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "retain"} | document


def _method(name: str) -> dict[str, Any]:
    maker = METHODS[name]
    parameters = list(inspect.signature(maker).parameters.values())[1:]
    does = (inspect.getdoc(maker) or "").split("\n\n")[0].replace("\n", " ")
    section = _section((p.name for p in parameters), get_type_hints(maker.__init__), does)
    for parameter in parameters:
        if isinstance(parameter.default, str | int | float | bool | None):
            section["properties"][parameter.name]["default"] = parameter.default
    section["properties"] = {"name": {"const": name}} | section["properties"]
    return section | ({} if name == METHOD["name"] else {"required": ["name"]})


def _section(names: Iterable[str], kinds: Mapping[str, Any], says: str) -> dict[str, Any]:
    properties = {name: _kind(kinds.get(name, Any)) for name in names}
    return {"type": "object", "description": says, "properties": properties, "additionalProperties": False}


def _kind(kind: Any) -> dict[str, Any]:
    """The schema of a type; anything, where an object of a library's own would be needed."""
    try:
        found = TypeAdapter(kind).json_schema()
    except UNKNOWN:
        return {}
    return {} if "$defs" in found else found
