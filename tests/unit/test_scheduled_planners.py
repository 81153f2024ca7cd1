"""What holds for every planner that no content decides: its neutral setting, its work, its boundaries, first frames, specs."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from orchestrator import cli_sweep
from orchestrator.actions import forwards_per_stage
from orchestrator.cli import app
from orchestrator.config import build_sweep
from orchestrator.demands import actions_of
from orchestrator.dvg_config import DvgConfig
from orchestrator.flops import forward_tflops
from orchestrator.geometry import MODELS
from orchestrator.methods import find, read_settings
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.types import VideoShape
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Request, load
from stages.planners.scheduled import nearest_cells
from tests.checkpoints import checkpoint, first_frame
from tests.spies import CONDITION, SpyModel
from tests.unit.planner_runs import SEED, SMALL, finished, made, made_for, wan_mini

ROOT = pathlib.Path(__file__).parents[2]
NEUTRAL: Mapping[str, dict[str, Any]] = {
    "jenga-prores": {"rates": [1]},
    "bottleneck": {"rates": [1], "steps": 4},
    "changing-resolution": {"rates": [1]},
    "spectral": {"levels": 1},
    "fewer-steps": {"share": 1},
}
NAMES = tuple(NEUTRAL)
GROWING = tuple(name for name in NAMES if name != "fewer-steps")
PROMPT = "a small blue square is still on noise"
IMAGE_MODELS = ("wan2.1-i2v-14b", "wan2.2-ti2v-5b", "hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v")


def condition(shape: VideoShape = SMALL, guidance: float = 1.0) -> Any:
    return wan_mini().encode(Request(PROMPT, shape, guidance))


@functools.cache
def plain() -> Boundary:
    return finished(wan_mini(), made("full", 4), condition())


@pytest.mark.parametrize("name", NAMES)
def test_at_its_neutral_setting_a_clip_is_the_plain_runs_bit_for_bit(name: str) -> None:
    found = finished(wan_mini(), made(name, 4, **NEUTRAL[name]), condition())
    assert torch.equal(found.x, plain().x)
    assert found.past.tflops == plain().past.tflops


@pytest.mark.parametrize("name", NAMES)
def test_the_operations_of_a_clip_are_those_of_its_forwards(name: str) -> None:
    model = SpyModel()
    model.geometry = MODELS["wan2.1-14b"]
    planner = made(name, 50, "wan2.1-14b")
    stages = planner.decide(None).action.stages
    counts = forwards_per_stage([stage.steps for stage in stages])
    found = finished(model, planner)
    assert model.grids == [stage.grid for n, stage in zip(counts, stages, strict=True) for _ in range(n)]
    expected = sum(n * forward_tflops(model.geometry, stage.grid) for n, stage in zip(counts, stages, strict=True))
    assert found.past.tflops == pytest.approx(2 * expected), "of both branches of guidance"


def test_torch_counts_the_same_operations() -> None:
    shape, counts = VideoShape(5, 160, 160), []
    given = condition(shape)
    for name, settings in (("full", {}), ("jenga-prores", {"rates": [0.5, 1]})):
        with FlopCounterMode(display=False) as counter:
            found = finished(wan_mini(), made_for(shape, name, 4, "wan-mini", settings), given)
        counts.append((counter.get_total_flops() / 1e12, found.past.tflops))
    (whole, told_whole), (less, told_less) = counts
    assert told_whole == pytest.approx(whole, rel=0.2), "the text's own products, embeddings and refinements are left out"
    assert told_less / told_whole == pytest.approx(less / whole, rel=0.05)


def test_a_cache_begins_anew_where_grids_fall_and_rise() -> None:
    """The first step of every grid and its change are computed, whatever the cache left on the one before."""
    taylorseer = find("taylorseer", "accelerator")
    settings = read_settings(taylorseer, {})
    planner = made("bottleneck", 40, steps=20)
    planner.task = replace(planner.task, accelerators=(partial(taylorseer.make, settings, planner.task.geometry),))
    whole, found = (finished(wan_mini(), made_so, condition()) for made_so in (made("bottleneck", 40, steps=20), planner))
    assert found.x.isfinite().all()
    assert 0.3 < found.past.tflops / whole.past.tflops < 0.9


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("name", NAMES)
def test_stopping_at_any_boundary_and_packing_it_changes_nothing(name: str, solver: Any) -> None:
    whole = finished(SpyModel(), made(name, 20, solver=solver))
    model, planner = SpyModel(), made(name, 20, solver=solver)
    boundary = start(model, planner, CONDITION, SEED)
    assert boundary.decision is not None
    for stop in range(1, len(boundary.decision.action.stages) + 1):
        boundary, _ = run_stages(model, made(name, 20, solver=solver), Boundary.unpack(boundary.pack()), stop)
    assert torch.equal(boundary.x, whole.x)
    assert boundary.x.shape[2:] == planner.task.full_grid
    assert not torch.equal(whole.x, finished(SpyModel(), made(name, 20, solver=solver), seed=SEED + 1).x)


@pytest.mark.parametrize("model", sorted(name for name, model in MODELS.items() if model.image != "required"))
@pytest.mark.parametrize("name", NAMES)
def test_what_is_planned_by_arithmetic_is_what_runs(name: str, model: str) -> None:
    (arm,) = build_sweep({"prompts": [PROMPT], "planner": name, "model": model}, ROOT, with_weights=False).arms
    (action,) = actions_of(arm)
    planner = made_for(arm.shape, name, arm.num_steps, model, arm.planner_settings)
    assert planner.decide(None).action == action
    assert planner.first() == action.stages[0]
    assert action.num_sketched == 0
    assert action.stages[-1].grid == planner.task.full_grid


@pytest.mark.parametrize(("size", "cells"), [(4, (0, 1, 2, 3)), (2, (1, 3)), (3, (0, 2, 3)), (1, (2,))])
def test_a_small_grids_cells_are_those_at_their_centres(size: int, cells: tuple[int, ...]) -> None:
    assert nearest_cells((size, size, 4), (4, 4, 4)) == (cells, cells, (0, 1, 2, 3))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(first_frame(tmp_path_factory.mktemp("image") / "first.png"))


@pytest.mark.parametrize("mode", ["encode", "index"])
@pytest.mark.parametrize("model", IMAGE_MODELS)
def test_a_first_frame_follows_the_grids_down_and_up(model: str, mode: Any, image: str) -> None:
    loaded, shape = load(model, str(checkpoint(model))), VideoShape(5, 64, 64)
    settings, config = {"steps": 6, "step_rates": [0.34, 0.67]}, DvgConfig(image_condition=mode)
    planner = made_for(shape, "bottleneck", 6, model, settings, config)
    given = loaded.encode(Request("a red circle", shape, 1.0, image=image))
    found = finished(loaded, planner, given)
    assert found.x.isfinite().all()
    assert found.x.shape[2:] == planner.task.full_grid
    if model in ("wan2.2-ti2v-5b", "hunyuanvideo-i2v"):
        assert given.latent is not None
        assert torch.allclose(found.x[:, :, :1].cpu(), given.latent[:, :, :1].float().cpu(), atol=1e-5), "held in its place"


SPEC = {
    "name": "methods",
    "model": "wan-mini",
    "prompts": [PROMPT],
    "frames": 5,
    "height": 64,
    "width": 64,
    "steps": 10,
    "guidance": 1,
    "reference": "full",
    "arms": {
        "full": {"planner": "full"},
        **{name: {"planner": name} for name in NAMES},
        "bottleneck": {"planner": {"bottleneck": {"steps": 8, "step_rates": [0.25, 0.75]}}},
    },
    "metrics": {"names": []},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def test_a_sweep_of_them_makes_records_that_say_what_ran(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_sweep, "conclude", lambda *given: ())  # the report is another test's
    done = CliRunner().invoke(app, ["sweep", str(spec), "--local", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    rows = {row["arm"]: row for row in map(json.loads, RunPaths(tmp_path / "run").records.read_text().splitlines())}
    assert set(rows) == set(SPEC["arms"])  # type: ignore[arg-type]
    assert {arm: row["num_steps"] for arm, row in rows.items()} == {
        **dict.fromkeys(rows, 10), "bottleneck": 8, "fewer-steps": 2,
    }  # fmt: skip
    assert rows["full"]["density_executed"] == 1
    assert rows["fewer-steps"]["density"] == rows["fewer-steps"]["density_executed"] == 0.2
    assert {arm for arm, row in rows.items() if row["reconstructed"]} == {"bottleneck", "spectral"}
    for arm in NAMES:
        assert rows[arm]["tflops"] / rows["full"]["tflops"] == pytest.approx(rows[arm]["density_executed"], rel=0.05)
        assert rows[arm]["density_executed"] < 1


def test_they_are_planned_and_simulated_by_arithmetic_alone(spec: Path) -> None:
    planned = CliRunner().invoke(app, ["plan", str(spec), "--json"])
    assert planned.exit_code == 0, planned.output
    by_arm = {row["arm"]: row for row in json.loads(planned.stdout)["arms"]}
    assert set(by_arm) == set(SPEC["arms"])  # type: ignore[arg-type]
    simulated = CliRunner().invoke(app, ["simulate", str(spec), "--items", "24"])
    assert simulated.exit_code == 0, simulated.output


@pytest.mark.parametrize("name", GROWING)
def test_an_arm_with_too_few_steps_is_refused_with_what_would_do(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: with .* steps .*[Tt]ake more steps"):
        build_sweep({"prompts": [PROMPT], "planner": name, "steps": 2}, ROOT)


def test_settings_are_part_of_an_items_key_and_what_they_are_shares_of_is_not_lost() -> None:
    keys = {
        build_sweep({"prompts": [PROMPT], "planner": {"fewer-steps": {"steps": steps}}, "steps": 20}, ROOT).items[0].item_key
        for steps in (3, 4)
    }
    assert len(keys) == 2
    (arm,) = build_sweep({"prompts": [PROMPT], "planner": "fewer-steps", "steps": 50}, ROOT).arms
    assert (arm.num_steps, arm.planner_settings["steps"]) == (50, 11)
