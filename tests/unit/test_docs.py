"""The guides name what there is."""

from __future__ import annotations

import pathlib
import re

import pytest
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.geometry import MODELS

ROOT = pathlib.Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_models_page_has_every_model_with_its_published_weights() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| (.+) \|$", text, re.MULTILINE))
    assert rows == {name: f"`{model.hub}`" if model.hub else "ships with the project" for name, model in MODELS.items()}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(guide: pathlib.Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", guide.read_text())
    assert [link for link in links if not (guide.parent / link).exists()] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_and_options_of_dvg_are_real(guide: pathlib.Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in re.findall(r"\bdvg ([a-z]+)([^\n`]*)", guide.read_text()):
        assert name in commands, name
        known = {flag for option in commands[name].params for flag in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, (name, rest)
