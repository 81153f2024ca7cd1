"""The guides name what there is."""

from __future__ import annotations

import fnmatch
import pathlib
import re
import shlex
import textwrap
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from orchestrator import calibration, cli_generate, images, resolve
from orchestrator.cli import app
from orchestrator.config import build_sweep
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
    for name, rest in re.findall(r"\bdvg ([a-z]+(?:-[a-z]+)*)([^\n`]*)", guide.read_text()):
        assert name in commands, name
        known = {flag for option in commands[name].params for flag in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, (name, rest)


def named(text: str) -> set[str]:
    """What stands in backquotes, ``{a,b}`` written out."""
    found = set()
    for word in re.findall(r"`([^`\n]+)`", text):
        begin, several, end = re.fullmatch(r"([^{]*)(?:\{([\w,]+)\})?(.*)", word).groups()  # type: ignore[union-attr]
        found |= {f"{begin}{one}{end}" for one in (several or "").split(",")}
    return found


def test_the_page_on_structure_names_every_module_of_the_orchestrator_and_none_that_is_gone() -> None:
    words = {word.partition(":")[0] for word in named((ROOT / "docs" / "structure.md").read_text())}
    there = {path.stem for path in (ROOT / "orchestrator").glob("[a-z]*.py")}
    assert there - {re.split(r"[./]", word.removesuffix(".py"))[-1] for word in words} == set()
    packages = ("orchestrator", "stages", "parallel", "experiments", "tests")
    files = [path.as_posix() for package in packages for path in (ROOT / package).rglob("*.py")]
    paths = [word for word in words if re.fullmatch(r"[\w/*]+\.py", word)]
    assert [path for path in paths if not fnmatch.filter(files, f"*/{path}")] == []


class Admitted(Exception):
    """What stands where a model would be loaded."""


@pytest.fixture
def everything_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Weights, adapters and images that an example names exist; nothing is loaded."""

    def admit(*_: Any) -> None:
        raise Admitted

    monkeypatch.chdir(tmp_path)
    for name in ("experiments", "ray_cluster.yaml", "kuberay_rayjob.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "SPEC.yaml").write_text("prompts: [a red circle]\n")
    monkeypatch.setenv(calibration.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(resolve, "check_weights", lambda model, weights: (f"/nowhere/{weights}", []))
    monkeypatch.setattr(resolve, "check_lora", lambda path, transformer: (path, "00"))
    monkeypatch.setattr(images.FirstFrames, "check", lambda self, image: (image, "00"))
    monkeypatch.setattr(cli_generate, "_make", admit)


@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_examples_of_generate_and_plan_are_accepted_as_they_stand(guide: pathlib.Path) -> None:
    for line in re.findall(r"^ +(?:\.venv/bin/)?dvg ((?:generate|plan) .+)$", guide.read_text(), re.MULTILINE):
        done = CliRunner().invoke(app, shlex.split(line, comments=True))
        assert done.exit_code == 0 or isinstance(done.exception, Admitted), (line, done.exception)


@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_examples_of_specs_are_accepted_as_they_stand(guide: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+|(?<=```yaml\n)[^`]+", guide.read_text(), re.MULTILINE)
    for block in map(textwrap.dedent, blocks):
        if re.match(r"\s*(model|prompts|lora):", block):
            assert build_sweep({"prompts": ["a red circle"], **yaml.safe_load(block)}, tmp_path).items, block
