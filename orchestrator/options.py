"""The forms in which a person may write the values of a spec, each read into one type."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from orchestrator.arms import LoraSpec
from orchestrator.budgets import Target, parse_target
from orchestrator.mistakes import FORM
from orchestrator.prompts import Prompt

AttentionName = Literal["auto", "cudnn", "flash", "flash3", "flash4", "efficient", "math"]
"""As in ``stages.attention``, which loads torch."""
Backend = Literal["auto", "native", "peer", "ulysses", "usp"]
"""As in ``parallel.backends``, which says what each of them cannot do."""


MAX_NAME_BYTES = 100


def _one_folder(name: str) -> str:
    """A sweep's default run folder has its name."""
    if not name.strip() or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError("a sweep's name is that of its run folder: it must not be empty, start with '.' or hold '/'")
    if not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a sweep's name is one line of at most {MAX_NAME_BYTES} bytes")
    return name


def _file_safe(name: str) -> str:
    """Arm names are folder names."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name) or name.startswith("."):
        raise ValueError("an arm's name may hold letters, digits, '_', '-' and '.', at most 60, and not start with '.'")
    return name


def _lora_fields(value: Any) -> Any:
    """``PATH[:SCALE][:EXPERT]``, as on the command line, or the fields themselves."""
    if not isinstance(value, str):
        return value
    fields: dict[str, Any] = {}
    path, colon, last = value.rpartition(":")
    if colon and last in ("both", "high", "low"):
        fields["expert"], value = last, path
        path, colon, last = value.rpartition(":")
    if colon and re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", last):
        fields["scale"], value = last, path
    return {"path": value, **fields}


def _prompt_fields(value: Any) -> Any:
    return {"prompt": value} if isinstance(value, str) else value


LIST, FILE = FORM.format("list"), FORM.format("file")


def _prompts_form(value: Any) -> str | None:
    return FILE if isinstance(value, str) else LIST if isinstance(value, list) else None


ArmName = Annotated[str, AfterValidator(_file_safe)]
SweepName = Annotated[str, AfterValidator(_one_folder)]
BudgetOption = Annotated[Target, BeforeValidator(parse_target)]
LoraOption = Annotated[LoraSpec, BeforeValidator(_lora_fields)]
PromptOption = Annotated[Prompt, BeforeValidator(_prompt_fields)]
PromptsOption = Annotated[
    Annotated[list[PromptOption], Tag(LIST)] | Annotated[str, Tag(FILE)],
    Discriminator(
        _prompts_form,
        custom_error_type="prompts_form",
        custom_error_message="must be a list of prompts, or the path of a text or JSONL file",
    ),
]
