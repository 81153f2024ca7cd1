"""The JSON schema of a sweep's YAML, for editors: what pydantic knows of it, and the forms that it does not see into."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import MODELS
from orchestrator.spec import ArmOptions, SweepSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REF = "#/$defs/"
Schema = dict[str, Any]


def spec_schema() -> Schema:
    """Every key of a spec with its description, choices and default; sections under ``$defs`` by the name of their class."""
    whole = SweepSpec.model_json_schema()
    sections = whole.pop("$defs") | {DvgConfig.__name__: DvgConfig.model_json_schema()}
    for section in (whole, *sections.values()):
        _tidy(section)
    for section in (whole, sections[ArmOptions.__name__]):
        section["properties"]["dvg"] = _reference(section["properties"]["dvg"])
        section["properties"]["model"] = {"enum": [*MODELS, None]} | _described(section["properties"]["model"])
    whole["properties"]["arms"]["additionalProperties"] = False  # beside the pattern of their names
    whole["properties"]["sweep"] = _knobs(whole["properties"]["sweep"], sections)
    return {"$schema": DIALECT, **whole, "title": "A sweep of dvg", "$defs": sections}


def _tidy(section: Schema) -> None:
    """Prose as people read it, without what repeats the key or another section."""
    section.pop("title", None)
    for part in (section, *section["properties"].values()):
        if "description" in part:
            part["description"] = plain(part["description"])
    for part in section["properties"].values():
        part.pop("title", None)
        if "$ref" in part or part.get("default", 0) is None:
            part.pop("default", None)


def plain(text: str) -> str:
    """A docstring's markup as that of Markdown, on one line."""
    text = re.sub(r":class:`[\w.]*?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def _reference(part: Schema) -> Schema:
    return {"$ref": REF + DvgConfig.__name__} | _described(part)


def _described(part: Schema) -> Schema:
    return {"description": part["description"]}


def _knobs(part: Schema, sections: dict[str, Schema]) -> Schema:
    """``sweep`` takes lists of what the key itself takes."""
    lists = {knob: {"type": "array", "minItems": 1, "items": form} for knob, form in _forms(sections)}
    return {"type": "object", "properties": lists, "additionalProperties": False} | _described(part)


def _forms(sections: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    for prefix, name in (("", ArmOptions.__name__), ("dvg.", DvgConfig.__name__)):
        for key, part in sections[name]["properties"].items():
            yield prefix + key, {word: value for word, value in part.items() if word not in ("description", "default")}
