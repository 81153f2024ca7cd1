"""The schema for editors and the reference for people say what the loader does."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config import build_sweep
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import MODELS
from orchestrator.mistakes import ConfigError
from orchestrator.spec import ArmOptions, SweepSpec
from orchestrator.spec_schema import spec_schema

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "spec.md"


def sections() -> Iterator[tuple[str, dict[str, Any]]]:
    schema = spec_schema()
    yield "the spec", schema
    yield from schema["$defs"].items()


def test_the_reference_is_what_the_schema_gives() -> None:
    done = CliRunner().invoke(app, ["schema", "--markdown"])
    assert done.stdout == PAGE.read_text(), "run `dvg schema --markdown > docs/spec.md`"


def test_the_command_prints_the_schema_alone() -> None:
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    assert schema == json.loads(json.dumps(spec_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_key_is_described_and_none_with_markup_of_docstrings() -> None:
    for name, section in sections():
        assert section["description"], name
        for key, part in section["properties"].items():
            assert part.get("description"), f"{name}.{key} has no docstring"
            assert not re.search(r"``|:\w+:`|\n", part["description"]), (name, key)


def test_every_key_has_its_row_with_its_default() -> None:
    page = PAGE.read_text()
    for model in (SweepSpec, DvgConfig):
        for key, field in model.model_fields.items():
            row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
            if isinstance(field.default, str | bool) and field.default:
                assert f"`{json.dumps(field.default).strip(chr(34))}`" in row, row
    assert "| `prompts` | list of (text or [a prompt](#a-prompt)) or text | required |" in page


def test_models_planners_and_knobs_are_choices() -> None:
    schema = spec_schema()
    assert schema["properties"]["model"]["enum"] == [*MODELS, None]
    knobs = set(schema["properties"]["sweep"]["properties"])
    assert knobs == set(ArmOptions.model_fields) | {f"dvg.{key}" for key in DvgConfig.model_fields}


GOOD: list[dict[str, Any]] = [
    {"prompts": ["a cat", {"prompt": "a dog", "seed": 3, "num_videos": 2}]},
    {"prompts": "vbench", "seeds": [0, 1], "only": "a,b", "arms": {"a": {}, "b": {"planner": "full"}}},
    {"prompts": ["a cat"], "budget": "speedup=2", "arms": {"a": {"budget": 0.4}, "b": {"budget": {"speedup": 2.5}}}},
    {"prompts": ["a cat"], "budget": "0.5", "sweep": {"budget": [0.4, "speedup=2"], "dvg.sharpness": [1, 2.6]}},
    {"prompts": ["a cat"], "dvg": {"shifts": [3, 3, 3, 3], "matching": "fitted"}, "sweep": {"steps": [20, 30]}},
    {"prompts": ["a cat"], "cluster": {"sizing": {"rule": "fixed", "width": 2}, "compile": False}, "tracking": {"videos": 3}},
]
BAD: list[dict[str, Any]] = [
    {},
    {"prompts": 3},
    {"prompts": ["a cat"], "stepz": 3},
    {"prompts": ["a cat"], "steps": 0},
    {"prompts": ["a cat"], "model": "wan-maxi"},
    {"prompts": ["a cat"], "planner": "frescoes"},
    {"prompts": ["a cat"], "accelerators": ["cache-dit"]},
    {"prompts": ["a cat"], "budget": 1.5},
    {"prompts": ["a cat"], "budget": {"minutes": 3}},
    {"prompts": ["a cat"], "arms": {".a": {}}},
    {"prompts": ["a cat"], "arms": {"a": {"plan": "dvg"}}},
    {"prompts": ["a cat"], "dvg": {"sharpnes": 1}},
    {"prompts": ["a cat"], "sweep": {"dvg.sharpnes": [1]}},
    {"prompts": ["a cat"], "sweep": {"steps": []}},
    {"prompts": ["a cat"], "cluster": {"decode_on": "moon"}},
    {"prompts": ["a cat"], "metrics": {"names": ["beauty"]}},
]


@pytest.mark.parametrize("data", GOOD, ids=str)
def test_what_the_loader_takes_editors_accept(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_sweep({"model": "wan-mini", **data}, ROOT).items
    assert [error.message for error in jsonschema.Draft202012Validator(spec_schema()).iter_errors(data)] == []


@pytest.mark.parametrize("data", BAD, ids=str)
def test_what_editors_mark_the_loader_refuses(data: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(spec_schema()).is_valid(data)
    with pytest.raises(ConfigError):
        build_sweep(data, ROOT)
