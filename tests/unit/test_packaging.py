"""What is installed is all that is imported."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOPS = ("orchestrator", "stages", "parallel", "experiments")


def test_every_folder_with_modules_is_installed() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(told)
