"""Links between the guides lead somewhere, down to the heading, and the worked examples of the guides work."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from typing import Any

import pytest
import torch

from orchestrator.actions import action_list
from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import Method
from stages.denoise import run_stages, start
from stages.planners.task import Planner, Task
from tests.spies import CONDITION, SpyModel

ROOT = pathlib.Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(path: pathlib.Path) -> str:
    """Without blocks of code, in which a # is no heading and brackets are no link."""
    return re.sub(r"^```.*?^```$|^ {4}[^\n]*$|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: pathlib.Path) -> set[str]:
    """What GitHub makes of the headings: lower case, no punctuation, spaces as hyphens, repeated ones counted."""
    titles = re.findall(
        r"^#{1,6} (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    names = [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in plain]
    seen: Counter[str] = Counter()
    found = set()
    for name in names:
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(guide: pathlib.Path) -> None:
    dead = []
    for link in LINK.findall(prose(guide)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (guide.parent / name).resolve() if name else guide
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_guide_is_in_the_index() -> None:
    index = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} - index == set()


def example(page: str) -> dict[str, Any]:
    """What the Python block of a page defines."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(block, page, "exec"), scope)
    return scope


def test_the_example_of_a_model_can_be_planned() -> None:
    geometry = example("adding-a-model.md")["WAN_7B"]
    assert geometry.heads * geometry.head_dim == 4096
    assert geometry.shape_mistakes(geometry.default_shape) == []
    actions = action_list(geometry, geometry.default_shape, geometry.default_steps, 0.5, DvgConfig.for_model(geometry))
    assert len(actions) == 15, "as for every model of this grid and 40 steps"


@pytest.mark.parametrize("num_steps", [8, 30])
def test_the_example_of_a_planner_runs_on_the_engine(num_steps: int) -> None:
    model = SpyModel()
    task = Task(model.geometry, model.geometry.default_shape, num_steps, DvgConfig.for_model(model.geometry))
    method: Method = example("adding-a-planner.md")["METHODS"]["rising"]
    planner: Planner = method.make(method.settings(), task, None)
    small, full = (stage.grid for stage in planner.decide(None).action.stages)
    assert full == task.full_grid
    assert small == (full[0], full[1] // 2 // 2 * 2, full[2] // 2 // 2 * 2)
    end, _ = run_stages(model, planner, start(model, planner, CONDITION, 3), 2)
    assert end.x.shape[2:] == full
    assert model.grids.count(small) == num_steps // 2 + 1, "the transition's forward runs on the grid that it leaves"
    assert model.grids.count(full) == num_steps - num_steps // 2 - 1
    assert bool(torch.isfinite(end.x).all())


def test_the_reference_of_the_protocol_has_every_method() -> None:
    page = (ROOT / "docs" / "adding-a-planner.md").read_text()
    asked = {name for name, value in vars(Planner).items() if callable(value) and not name.startswith("_")}
    assert asked == set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))
