"""docs/adding-a-method.md as it stands: its file and its line make a method, and its spec runs."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from orchestrator import methods
from orchestrator.cli import app
from orchestrator.config import Sweep, build_sweep
from orchestrator.mistakes import ConfigError
from stages.denoise import Boundary
from stages.worker import ClipWorker

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adding-a-method.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def added(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's file, under the name that its line gives, and the line."""
    ((name, module),) = re.findall(r'^    "([\w-]+)": "([\w.]+)",$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    package, _, stem = module.rpartition(".")
    assert f"`{package.replace('.', '/')}/{stem}.py`" in PAGE.read_text(encoding="utf-8")
    (tmp_path / f"{stem}.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(methods.ACCELERATORS, name, stem)  # type: ignore[arg-type]


def swept(**changes: Any) -> Sweep:
    return build_sweep(yaml.safe_load(block("yaml")) | changes, PAGE.parent)


def test_its_spec_runs_and_leaves_out_what_its_rule_says(added: None) -> None:
    sweep = swept()
    worker = ClipWorker(sweep.arms_by_name)
    ends: dict[str, Boundary] = {}
    for item in sweep.items:
        _, _, boundary = worker.sketch(item)
        ends[item.arm], _ = worker.refine(item, boundary)
    work = {arm: end.past.tflops for arm, end in ends.items()}
    assert work["cached"] / work["full"] == pytest.approx(5 / 8), "steps 0, 2, 4, 6 and the last"
    assert torch.equal(ends["neutral"].x, ends["full"].x)
    assert not torch.equal(ends["cached"].x, ends["full"].x)
    assert work["dvg-cached"] < work["dvg"] < work["full"]
    assert bool(torch.isfinite(ends["dvg-cached"].x).all())


def test_it_is_told_refused_and_combined_as_every_method(added: None) -> None:
    told = CliRunner().invoke(app, ["methods", "every-other"]).stdout
    assert "combines with: full, dvg, " in " ".join(told.split())
    assert "dualparal" not in told.partition("combines with:")[2].partition("settings")[0]
    assert "All blocks are computed every so many steps" in " ".join(told.split())
    for accelerators, words in (
        ([{"every-other": {"interval": 9}}], "every-other: interval is 9, and a clip has 8 steps: take fewer, or taylorseer"),
        ([{"every-other": {"intervall": 2}}], "did you mean 'interval'?"),
        (["every-other", "teacache"], "every-other and teacache cannot be combined: both are a cache"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            swept(arms={"a": {"planner": "full", "accelerators": accelerators}})


def test_without_its_line_it_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown accelerator 'every-other'"):
        swept()
