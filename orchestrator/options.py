"""The forms in which a person may write the values of a spec, each read into one type."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag, WithJsonSchema

from orchestrator.arms import LoraSpec
from orchestrator.budgets import Kind, Target, parse_target
from orchestrator.methods import Kind as MethodKind
from orchestrator.methods import available, checked, refuse_absent
from orchestrator.mistakes import FORM
from orchestrator.prompts import Prompt

AttentionName = Literal["auto", "cudnn", "flash", "flash3", "flash4", "efficient", "math"]
"""As in ``stages.attention``, which loads torch."""
Backend = Literal["auto", "native", "peer", "ulysses", "usp"]
"""As in ``parallel.backends``, which says what each of them cannot do."""


MAX_NAME_BYTES = 100
ARM_NAME = r"^(?!\.)[A-Za-z0-9_.-]{1,60}$"


def _one_folder(name: str) -> str:
    """A sweep's default run folder has its name."""
    if not name.strip() or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError("a sweep's name is that of its run folder: it must not be empty, start with '.' or hold '/'")
    if not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a sweep's name is one line of at most {MAX_NAME_BYTES} bytes")
    return name


def _file_safe(name: str) -> str:
    """Arm names are folder names."""
    if not re.fullmatch(ARM_NAME, name):
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


def _words(value: Any) -> Any:
    """``a,b``, as on a command line, or a list of names."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _prompt_fields(value: Any) -> Any:
    return {"prompt": value} if isinstance(value, str) else value


LIST, FILE = FORM.format("list"), FORM.format("file")


def _prompts_form(value: Any) -> str | None:
    return FILE if isinstance(value, str) else LIST if isinstance(value, list) else None


def _method_form(value: Any) -> Any:
    """``{name: {setting: value}}`` as text, as on a command line, is read as in a spec. Raises ValueError for what is no YAML."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"{value!r} is not {{name: {{setting: value}}}}, in YAML") from error


def _method_forms(kind: MethodKind) -> dict[str, Any]:
    """A method's name, or its name with settings, for editors."""
    names = list(available(kind))
    if not names:
        return {"not": {}}
    settings = {"type": "object", "propertyNames": {"enum": names}, "minProperties": 1}
    settings |= {"maxProperties": 1, "additionalProperties": {"type": ["object", "null"]}}
    return {"anyOf": [{"enum": names}, settings]}


BUDGET_FORMS: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^ *((density|speedup|gpu_seconds) *= *)?[0-9.eE+-]+ *$"},
        {
            "type": "object",
            "properties": {kind: {"type": "number", "exclusiveMinimum": 0} for kind in get_args(Kind)},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ]
}
"""What ``parse_target`` reads, for editors."""
ArmName = Annotated[str, AfterValidator(_file_safe), WithJsonSchema({"type": "string", "pattern": ARM_NAME})]
ArmNames = Annotated[list[str], BeforeValidator(_words, json_schema_input_type=list[str] | str)]
PlannerOption = Annotated[
    str | dict[str, Any],
    BeforeValidator(refuse_absent),
    BeforeValidator(_method_form),
    AfterValidator(checked("planner")),
    WithJsonSchema(_method_forms("planner")),
]
AcceleratorOption = Annotated[
    str | dict[str, Any],
    BeforeValidator(refuse_absent),
    BeforeValidator(_method_form),
    AfterValidator(checked("accelerator")),
    WithJsonSchema(_method_forms("accelerator")),
]
SweepName = Annotated[str, AfterValidator(_one_folder)]
BudgetOption = Annotated[Target, BeforeValidator(parse_target), WithJsonSchema(BUDGET_FORMS)]
LoraOption = Annotated[LoraSpec, BeforeValidator(_lora_fields, json_schema_input_type=str | LoraSpec)]
PromptOption = Annotated[Prompt, BeforeValidator(_prompt_fields, json_schema_input_type=str | Prompt)]
PromptsOption = Annotated[
    Annotated[list[PromptOption], Tag(LIST)] | Annotated[str, Tag(FILE)],
    Discriminator(
        _prompts_form,
        custom_error_type="prompts_form",
        custom_error_message="must be a list of prompts, or the path of a text or JSONL file",
    ),
]
