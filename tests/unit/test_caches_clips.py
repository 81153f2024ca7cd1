"""TeaCache, AdaCache and MagCache over whole clips of the embedded model: what they save, and what they leave as it is."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from experiments.calibrate_cache import PROMPTS, mean_ratios, watched
from orchestrator import cli_sweep
from orchestrator.arms import Arm
from orchestrator.cli import app
from orchestrator.dvg_config import DvgConfig
from orchestrator.flops import forward_tflops
from orchestrator.mistakes import ConfigError
from orchestrator.prompts import Prompt
from orchestrator.resolve import resolve_arm
from orchestrator.types import VideoShape
from stages.accelerators import makers
from stages.accelerators.base import Now
from stages.accelerators.fitting import load as load_fit
from stages.accelerators.trunk import Trunk
from stages.denoise import Boundary, run_stages, start
from stages.models import embedded
from stages.models.base import Condition, Request, load
from stages.planners import make_planner
from stages.vocabulary import unknown_words

SHAPE = VideoShape(17, 64, 96, 16)
SIZE = {"frames": 17, "height": 64, "width": 96}
CACHES = ("teacache", "adacache", "magcache")
NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "teacache": {"threshold": 0.0},
    "adacache": {"max_skips": 0},
    "magcache": {"threshold": 0.0},
}
"""Settings by which a cache computes every step."""


@functools.cache
def model() -> Any:
    return load("wan-mini", None)


@functools.cache
def condition() -> Condition:
    found: Condition = model().encode(Request(PROMPTS[4], SHAPE, 2.0))
    return found


def arm(planner: str = "full", steps: int = 12, **accelerators: Any) -> Arm:
    mistakes: list[str] = []
    given = {"model": "wan-mini", "planner": planner, "steps": steps, "accelerators": [accelerators] if accelerators else None}
    found = resolve_arm("cached", {**given, **SIZE, **({"budget": 0.5} if planner == "dvg" else {})}, mistakes)
    assert found is not None, mistakes
    return found


def clip(own: Arm, *more: Any) -> Boundary:
    """The last boundary of a clip; ``more`` makes an accelerator in the place of the arm's."""
    budget = own.budget if own.planner == "dvg" else None
    made = more or makers(own, model().geometry)
    config = DvgConfig(tolerance=0.3) if own.planner == "dvg" else own.dvg
    plan = make_planner(own.planner, model().geometry, SHAPE, own.num_steps, budget, config, accelerators=made)
    boundary = start(model(), plan, condition(), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model(), plan, boundary, boundary.stage + 1)
    return boundary


@functools.cache
def plain(planner: str, steps: int = 12) -> Boundary:
    return clip(arm(planner, steps))


class Watched:
    """An accelerator, and for each forward whether it was computed."""

    def __init__(self, inner: Any, told: list[tuple[Now, float]]) -> None:
        self.inner, self.told = inner, told

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        out: Tensor = self.inner.forward(trunk, now)
        self.told.append((now, sum(trunk.work)))
        return out


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_at_its_neutral_setting_changes_no_bit(name: str, planner: str) -> None:
    steps = 6 if planner == "full" else 12
    assert torch.equal(clip(arm(planner, steps, **{name: dict(NEUTRAL[name])})).x, plain(planner, steps).x)


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_executes_what_its_steps_come_to_and_no_more(name: str, planner: str) -> None:
    """By its default setting; what is executed is counted from the forwards that ran, grid by grid."""
    steps = 20
    own, told = arm(planner, steps, **{name: {}}), list[tuple[Now, float]]()
    (make,) = makers(own, model().geometry)
    found = clip(own, lambda: Watched(make(), told))
    assert all(work == pytest.approx(1) or work == 0 for _, work in told)
    expected = sum(forward_tflops(model().geometry, now.event.grid) for now, work in told if work)
    assert found.past.tflops == pytest.approx(expected)
    assert found.past.tflops < 0.95 * plain(planner, steps).past.tflops
    assert not torch.equal(found.x, plain(planner, steps).x)
    if planner == "dvg":
        must = [work for now, work in told if now.must_compute]
        assert must == [pytest.approx(1)] * len(must), "the first step of a stage, and what the passage rests on"


class Poisoned:
    """Spoils whatever it has kept when its stage is over."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        out: Tensor = self.inner.forward(trunk, now)
        if now.step == now.event.last and now.branch == 1:
            for kept in self.inner._kept.values():
                for name, value in vars(kept).items():
                    if isinstance(value, Tensor):
                        setattr(kept, name, torch.full_like(value, float("nan")))
                    elif isinstance(value, float):
                        setattr(kept, name, float("nan"))
                    elif isinstance(value, int):
                        setattr(kept, name, 10**6)
        return out


@pytest.mark.parametrize("name", CACHES)
def test_what_a_cache_kept_is_of_no_use_after_a_transition(name: str) -> None:
    """Spoilt at the end of every stage, it changes no bit of the clip; in the middle of one it does."""
    own = arm("dvg", 20, **{name: {}})
    (make,) = makers(own, model().geometry)
    expected = clip(own)
    assert expected.decision is not None
    assert len(expected.decision.action.stages) > 1
    assert torch.equal(clip(own, lambda: Poisoned(make())).x, expected.x)

    class Midway(Poisoned):
        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            if now.since >= 2:
                for kept in self.inner._kept.values():
                    kept.residual.mul_(3.0)
            out: Tensor = self.inner.forward(trunk, now)
            return out

    assert not torch.equal(clip(own, lambda: Midway(make())).x, expected.x), "the control"


@settings(max_examples=3, deadline=None)
@given(name=st.sampled_from(CACHES), seed=st.integers(0, 99), steps=st.integers(9, 14))
def test_a_stage_with_a_cache_depends_on_nothing_but_its_boundary(name: str, seed: int, steps: int) -> None:
    """Run on from any boundary by another planner object, in another model's hands, the clip is the same."""
    own = arm("dvg", steps, **{name: {}})
    made = makers(own, model().geometry)

    def planner() -> Any:
        config = DvgConfig(tolerance=0.3)
        return make_planner("dvg", model().geometry, SHAPE, steps, own.budget, config, accelerators=made)

    boundary = start(model(), planner(), condition(), seed)
    boundary, _ = run_stages(model(), planner(), boundary, 1)
    assert boundary.decision is not None
    num = len(boundary.decision.action.stages)
    through, _ = run_stages(model(), planner(), boundary, num)
    while boundary.stage < num:
        boundary, _ = run_stages(model(), planner(), Boundary.unpack(boundary.pack()), boundary.stage + 1)
    assert torch.equal(through.x, boundary.x)
    assert through.past.tflops == pytest.approx(boundary.past.tflops)


def test_a_spec_that_asks_for_a_method_nobody_can_serve_is_refused_with_what_serves() -> None:
    mistakes: list[str] = []
    asked = {"model": "wan2.2-a14b", "planner": "full", "accelerators": ["magcache"]}
    assert resolve_arm("mag", asked, mistakes, with_weights=False) is None
    assert any("dvg calibrate-cache wan2.2-a14b" in line for line in mistakes)
    mistakes.clear()
    assert (
        resolve_arm("two", {"model": "wan-mini", "planner": "full", "accelerators": ["teacache", "adacache"]}, mistakes) is None
    )
    assert any("teacache and adacache cannot be combined" in line for line in mistakes)


SPEC = """
prompts: [a red circle]
arms:
  full: {planner: full}
  tea: {planner: full, accelerators: [teacache]}
  tea-tight: {planner: full, accelerators: [{teacache: {threshold: 0.05}}]}
  ada: {planner: full, accelerators: [{adacache: {codebook: slow}}]}
  mag: {planner: full, accelerators: [magcache]}
  both: {planner: dvg, budget: 0.5, accelerators: [magcache]}
steps: 20
frames: 9
height: 64
width: 64
metrics: {names: []}
tracking: {enabled: false}
"""


def test_caches_run_from_a_spec_and_records_tell_what_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_sweep, "conclude", lambda *given: ())  # the report is another test's
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    done = CliRunner().invoke(app, ["sweep", str(spec), "--local", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    rows = {row["arm"]: row for row in map(json.loads, (tmp_path / "run" / "records.jsonl").read_text().splitlines())}
    assert {arm: row["accelerators"] for arm, row in rows.items()} == {
        "full": "", "tea": "teacache", "tea-tight": "teacache", "ada": "adacache", "mag": "magcache", "both": "magcache",
    }  # fmt: skip
    of = {arm: row["tflops"] / rows["full"]["tflops"] for arm, row in rows.items()}
    assert of["tea"] < of["tea-tight"] <= of["full"] == 1
    assert max(of["ada"], of["mag"]) < 0.9
    assert of["both"] < 0.5


def test_what_a_fit_decides_is_part_of_the_arm() -> None:
    """A video is known by it: the same spec under another fit makes other videos."""
    (use,) = arm("full", 12, teacache={}).accelerators
    assert use.settings["coefficients"]
    assert use.settings["threshold"] > 0
    (use,) = arm("full", 12, magcache={}).accelerators
    assert len(use.settings["ratios"]) == 2


def test_changes_are_those_of_the_clip_and_the_clip_is_unchanged() -> None:
    own = arm("full", 6)
    changes = watched(model(), own, VideoShape(9, 32, 32, 16), Prompt(prompt=PROMPTS[0]), 1)
    assert [(change.step, change.branch) for change in changes] == [(step, branch) for step in range(1, 6) for branch in (0, 1)]
    for first, second in zip(changes[::2], changes[1::2], strict=True):
        assert first.signals["time"] == second.signals["time"] > 0, "time is told to both branches alike"
    ratios = mean_ratios(changes, 6)
    assert [row[0] for row in ratios] == [1.0, 1.0]
    assert all(0.2 < ratio < 2 for row in ratios for ratio in row)


def test_the_default_prompts_are_known_to_the_embedded_model() -> None:
    assert not [word for prompt in PROMPTS for word in unknown_words(prompt, embedded.FOLDER)]


def test_calibrate_cache_writes_a_fit_that_a_spec_can_name(tmp_path: Path) -> None:
    out = tmp_path / "fits" / "own.json"
    out.parent.mkdir()
    options = [
        "--limit",
        "1",
        "--steps",
        "8",
        "--frames",
        "9",
        "--grids",
        "3x4x4,3x4x6",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--json",
    ]
    done = CliRunner().invoke(app, ["calibrate-cache", "wan-mini", *options], catch_exceptions=False)
    assert json.loads(done.stdout)["path"] == str(out)
    fit = load_fit(out)
    assert (fit.model, fit.grids, fit.num_steps, fit.num_clips) == ("wan-mini", ((3, 4, 4), (3, 4, 6)), 8, 2)
    assert (fit.solver, fit.shift, fit.guidance) == ("euler", 3.0, 2.0)
    assert len(fit.revision) == 12
    (use,) = arm("full", 8, teacache={"fit": str(out), "signal": "input"}).accelerators
    assert tuple(use.settings["coefficients"]) == fit.signals["input"].coefficients


def test_calibrate_cache_tells_every_mistake_before_it_loads_anything(tmp_path: Path) -> None:
    options = ["--prompts", "none.txt", "--frames", "8", "--device", "cpu"]
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(app, ["calibrate-cache", "wan-mini", *options], catch_exceptions=False)
    told = "\n".join(caught.value.mistakes)
    assert "num_frames is 8" in told
    assert "none.txt" in told
    with pytest.raises(ConfigError, match="is a folder"):
        CliRunner().invoke(app, ["calibrate-cache", "wan-mini", "--out", str(tmp_path)], catch_exceptions=False)
