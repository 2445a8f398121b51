"""``adapter_config.json`` as it is read: held against what peft writes, whoever has written it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from retain.files import StoreError
from retain.intake import read_section

LONG, QUANTIFIERS = 300, 3


def _pattern(text: str) -> str:
    """Refuse an expression that is none, or that could search without end: repeated groups, many repetitions."""
    plain = re.sub(r"\\.", "", text)
    if len(text) > LONG or re.search(r"\)\s*[*+{?]", plain) or len(re.findall(r"[*+{]", plain)) > QUANTIFIERS:
        raise ValueError(f"an expression that may search without end: {text[:40]!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no expression: {text[:40]!r} ({error})") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Positive = Annotated[float, Field(gt=0, le=1e9)]


class _Adapter(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    peft_type: str = "LORA"
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(gt=0, le=10**6)] = 8
    lora_alpha: Positive = 8
    rank_pattern: dict[Pattern, Annotated[int, Field(gt=0, le=10**6)]] | None = None
    alpha_pattern: dict[Pattern, Positive] | None = None
    use_rslora: bool = False
    modules_to_save: list[str] | None = None


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The configuration of a LoRA.

    Raises:
        StoreError: missing, damaged, or not what peft writes, by the first key.
    """
    found = read_section(path)
    try:
        _Adapter.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StoreError(f"{path}: damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return found
