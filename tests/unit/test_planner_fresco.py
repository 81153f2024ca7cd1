"""Fresco, as reconstructed: one noise field, rising shifts, copies for children, settled squares first."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from typer.testing import CliRunner

from orchestrator import cli_sweep
from orchestrator.actions import density_executed, forwards_per_stage
from orchestrator.cli import app
from orchestrator.config import build_sweep
from orchestrator.demands import actions_of
from orchestrator.dvg_config import DvgConfig
from orchestrator.flops import forward_tflops, tokens_tflops
from orchestrator.geometry import MODELS
from orchestrator.geometry import model as geometry_of
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.types import VideoShape
from stages.denoise import Boundary, run_stages, start
from stages.mixed import Regions
from stages.models.base import Request, load
from stages.planners.fresco import FrescoPlanner, urgency
from stages.planners.passage import field
from stages.planners.task import Crossing
from stages.resize import nested_axes
from stages.sampling import sigmas
from tests.checkpoints import checkpoint, first_frame
from tests.spies import CONDITION, SpyModel
from tests.unit.planner_runs import SEED, SMALL, finished, made, made_for, refusals, scheduled, wan_mini, watched
from tests.unit.test_trunk import counting

ROOT = Path(__file__).parents[2]
PROMPT = "a small blue square is still on noise"
FULL = (2, 16, 16)
GRIDS = [(2, 8, 8), (2, 12, 12), FULL]
SHIFTS = [3.0, 3.0 * 9 / 7, 3.0 * 11 / 7]
REGIONS = Regions(2, FULL, (1, 2, 2))
WHOLE = tuple(tuple(range(size)) for size in FULL)
MODES = pytest.mark.parametrize("mixed", [True, False])
FOUR: dict[str, Any] = {"rates": [0.5, 0.7, 0.9, 1], "step_rates": [0.3, 0.5, 0.7]}


def fresco(num_steps: int = 10, **settings: Any) -> FrescoPlanner:
    planner = made("fresco", num_steps, steps=settings.pop("steps", num_steps), **settings)
    assert isinstance(planner, FrescoPlanner)
    return planner


def noise(planner: FrescoPlanner, axes: Any) -> Tensor:
    return field(axes, FULL, 16, SEED, torch.device("cpu"), planner.task.config)


def condition(shape: VideoShape = SMALL) -> Any:
    return wan_mini().encode(Request(PROMPT, shape, 1.0))


@functools.cache
def plain() -> Boundary:
    return finished(wan_mini(), made("full", 4), condition())


@MODES
def test_twenty_of_fifty_steps_on_hunyuanvideo(mixed: bool) -> None:
    geometry, action = geometry_of("hunyuanvideo"), scheduled("fresco", "hunyuanvideo", mixed=mixed)
    forwards = forwards_per_stage([stage.steps for stage in action.stages])
    assert forwards == (6, 4, 10)
    assert [stage.shift for stage in action.stages] == pytest.approx([7, 9, 11])
    assert [stage.grid for stage in action.stages] == [(32, 44, 80), (32, 66, 120), (32, 90, 160)]
    tokens = [22 * 40, 33 * 60, 45 * 80]
    assert density_executed(geometry, action, 50) == pytest.approx(
        sum(map(math.prod, zip(forwards, tokens, strict=True))) / 50 / tokens[-1]
    )
    work = sum(num * forward_tflops(geometry, stage.grid) for num, stage in zip(forwards, action.stages, strict=True))
    speedup = 50 * forward_tflops(geometry, (32, 90, 160)) / work
    assert speedup == pytest.approx(3.96, rel=0.08), "the published one, which has decoding in it"


def test_a_step_distilled_model_takes_all_its_steps() -> None:
    assert sum(stage.steps for stage in scheduled("fresco", "hunyuanvideo-1.5-i2v-step-distilled", 12).stages) == 12
    assert sum(stage.steps for stage in scheduled("fresco", "hunyuanvideo-1.5", 50).stages) == 20
    assert sum(stage.steps for stage in scheduled("fresco", "hunyuanvideo-1.5", 50, steps=30).stages) == 30


@MODES
def test_more_steps_than_the_arm_has_are_refused(mixed: bool) -> None:
    assert "steps is 60, and the arm's steps are 50: take at most those" in refusals("fresco", 50, steps=60, mixed=mixed)


@MODES
def test_grids_and_levels_of_a_clip(mixed: bool) -> None:
    spy = SpyModel()
    passages = watched(fresco(mixed=mixed), spy)
    stage_of = [0] * 3 + [1] * 2 + [2] * 5
    assert [level.sigma for level in spy.levels] == [float(sigmas(10, SHIFTS[stage_of[k]])[k]) for k in range(10)]
    assert spy.grids == [(FULL if mixed and GRIDS[k] == GRIDS[1] else GRIDS[k]) for k in stage_of]
    for passage, step, target in zip(passages, (2, 4), (1, 2), strict=True):
        assert torch.allclose(passage.clean, passage.x - float(sigmas(10, SHIFTS[target - 1])[step]) * passage.v, atol=1e-6)
        assert passage.sigma == float(sigmas(10, SHIFTS[target])[step + 1])


def test_a_rising_shift_goes_back_to_more_noise() -> None:
    spy = SpyModel()
    first, _ = watched(fresco(50), spy)
    assert first.sigma > spy.levels[13].sigma


def test_uniform_stages_are_copies_under_one_field() -> None:
    planner, spy = fresco(mixed=False), SpyModel()
    passages, axes = watched(planner, spy), nested_axes(tuple(GRIDS))
    assert torch.equal(spy.outputs[0][0], noise(planner, axes[0])), "the first noise is the field's too"
    for passage, target in zip(passages, (1, 2), strict=True):
        clean = F.interpolate(passage.clean, size=GRIDS[target], mode="nearest-exact")
        expected = (1 - passage.sigma) * clean + passage.sigma * noise(planner, axes[target])
        assert torch.allclose(passage.after, expected, atol=1e-6)


def test_mixed_stages_are_copies_under_the_same_field() -> None:
    planner, spy = fresco(), SpyModel()
    first, second = watched(planner, spy)
    assert torch.equal(spy.outputs[0][0], noise(planner, REGIONS.axes))
    whole = noise(planner, WHOLE)
    assert torch.equal(REGIONS.parents(whole), spy.outputs[0][0]), "a coarse cell's noise is one of its children's"
    mixed = planner.mixture(first.after, 1)
    assert mixed is not None
    assert mixed.num_tokens == pytest.approx(2 * 6 * 6, abs=1.5)
    fine = (1 - first.sigma) * REGIONS.children(first.clean) + first.sigma * whole
    expected = torch.where(mixed.cells, REGIONS.children(REGIONS.parents(fine)), fine)
    assert torch.allclose(first.after, expected, atol=1e-6)
    assert torch.allclose(second.after, (1 - second.sigma) * second.clean + second.sigma * whole, atol=1e-6)


def crossing(planner: FrescoPlanner, recent: list[Tensor], index: int = 0, mixed: Any = None) -> Crossing:
    told = planner.decide(), index, 0.7, SEED, SpyModel(), recent[-1], (lambda x: x), (lambda: recent[-1])
    return Crossing(*told, tuple(recent), mixed)


def restless(grid: tuple[int, ...], order: Tensor, num: int = 3) -> list[Tensor]:
    """Clean estimates that move by ``order`` in each of the small grid's squares."""
    amount = order.repeat_interleave(grid[1] // 4, 1).repeat_interleave(grid[2] // 4, 2).float()
    return [torch.ones(1, 16, *grid) + (-1) ** k * amount for k in range(num)]


def test_squares_that_moved_least_are_promoted_first_and_stay() -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3)).view(2, 4, 4)
    planner = fresco(**FOUR)
    x = planner.cross(*(lambda past: (past[-1], crossing(planner, past)))(restless((2, 8, 8), order)))
    first = planner.mixture(x, 1)
    assert first is not None
    assert first.whole.equal(order >= 32 - first.num_whole)
    turned = torch.where(first.whole, 31 - order, 100)  # those that were promoted move most now
    x = planner.cross(*(lambda past: (past[-1], crossing(planner, past, 1, first)))(restless(FULL, turned)))
    second = planner.mixture(x, 2)
    assert second is not None
    assert 0 < second.num_whole < first.num_whole
    still = torch.where(first.whole, 31 - order, -1)
    assert second.whole.equal(still >= still.flatten().sort(descending=True).values[second.num_whole - 1])


def test_the_variance_is_over_steps_not_over_cells() -> None:
    steady = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 50
    moved = steady.clone()
    moved[:, :, 1, 2:4, 4:6] += 0.1
    found = urgency(REGIONS, [steady, steady, moved], None)
    assert (found < 0).nonzero().tolist() == [[1, 1, 2]]


@pytest.mark.parametrize("window", [2, 3])
def test_a_passage_is_told_the_last_clean_estimates(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, spy, told = fresco(20, window=window), SpyModel(), []
    cross = planner.cross
    monkeypatch.setattr(planner, "cross", lambda x0, c: (told.append((x0, c)), cross(x0, c))[1])
    finished(spy, planner)
    for (x0, c), last in zip(told, (5, 9), strict=True):
        assert c.recent[-1] is x0
        assert len(c.recent) == window
        shift = SHIFTS[c.stage_index]
        for clean, step in zip(c.recent, range(last + 1 - window, last + 1), strict=True):
            x, v = spy.outputs[step]
            assert torch.allclose(clean, x - float(sigmas(20, shift)[step]) * v, atol=1e-6)


def test_planners_that_look_at_no_past_are_given_none() -> None:
    assert fresco(mixed=False).remembers == fresco(rates=[0.5, 1], step_rates=[0.5]).remembers == made("full", 4).remembers == 0


@MODES
def test_at_its_neutral_setting_a_clip_is_the_plain_runs_bit_for_bit(mixed: bool) -> None:
    found = finished(wan_mini(), fresco(4, rates=[1], mixed=mixed), condition())
    assert torch.equal(found.x, plain().x)
    assert found.past.tflops == plain().past.tflops


@pytest.mark.parametrize("settings", [{}, {"mixed": False}, FOUR])
@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_stopping_at_any_boundary_and_packing_it_changes_nothing(solver: Any, settings: dict[str, Any]) -> None:
    def planner() -> FrescoPlanner:
        return fresco(20, solver=solver, **settings)

    whole = finished(SpyModel(), planner())
    model = SpyModel()
    boundary = start(model, planner(), CONDITION, SEED)
    for stop in range(1, len(planner().action.stages) + 1):
        boundary, _ = run_stages(model, planner(), Boundary.unpack(boundary.pack()), stop)
    assert torch.equal(boundary.x, whole.x)
    assert not torch.equal(whole.x, finished(SpyModel(), planner(), seed=SEED + 1).x)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_mixed_clip_goes_on_from_its_boundaries_with_the_same_tokens(solver: Any) -> None:
    given, planner = condition(), fresco(6, solver=solver, step_rates=[0.34, 0.67])
    whole, boundary = finished(wan_mini(), planner, given), start(wan_mini(), planner, given, SEED)
    for stop in (1, 2, 3):
        boundary, _ = run_stages(wan_mini(), planner, Boundary.unpack(boundary.pack()), stop)
    assert torch.equal(boundary.x, whole.x)
    uniform = finished(wan_mini(), fresco(6, solver=solver, step_rates=[0.34, 0.67], mixed=False), given)
    assert not torch.equal(uniform.x, whole.x)


def test_the_operations_are_those_of_the_tokens_and_torch_counts_the_same() -> None:
    shape, counts = VideoShape(5, 160, 208), []
    given = condition(shape)
    settings = {"steps": 5, "step_rates": [0.4, 0.8]}
    for name, told in (("full", {}), ("fresco", settings), ("fresco", {**settings, "mixed": False})):
        with counting() as counter:
            found = finished(wan_mini(), made_for(shape, name, 5, "wan-mini", told), given)
        counts.append((counter.get_total_flops() / 1e12, found.past.tflops))
    for less, told_less in counts[1:]:
        assert told_less / counts[0][1] == pytest.approx(less / counts[0][0], rel=0.05)
    geometry, lying = geometry_of("wan-mini"), Regions(2, (2, 20, 26), (1, 2, 2))
    tokens = [60, lying.num_tokens(lying.num_whole(126)), 260]
    expected = sum(n * tokens_tflops(geometry, count) for n, count in zip((2, 2, 1), tokens, strict=True))
    assert counts[1][1] == pytest.approx(expected)
    assert counts[1][1] == pytest.approx(counts[2][1], rel=0.05), "a mixed stage has the tokens of the grid that it is told by"


@pytest.mark.parametrize("model", sorted(name for name, model in MODELS.items() if model.image != "required"))
def test_what_is_planned_by_arithmetic_is_what_runs(model: str) -> None:
    (arm,) = build_sweep({"prompts": [PROMPT], "planner": "fresco", "model": model}, ROOT, with_weights=False).arms
    (action,) = actions_of(arm)
    planner = made_for(arm.shape, "fresco", arm.num_steps, model, arm.planner_settings)
    assert planner.decide(None).action == action
    assert action.num_sketched == 0
    assert isinstance(planner, FrescoPlanner)
    assert planner.regions is not None
    assert planner.regions.coarse_grid == action.stages[0].grid
    lying, middle = planner.regions, planner.task.geometry.num_tokens(action.stages[1].grid)
    assert lying.num_tokens(lying.num_whole(middle)) == pytest.approx(middle, rel=0.01)


@pytest.mark.parametrize("model", ["wan2.1-i2v-14b", "wan2.2-ti2v-5b", "hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v"])
def test_a_first_frame_follows_the_grids(model: str, tmp_path: Path) -> None:
    loaded, shape = load(model, str(checkpoint(model))), VideoShape(5, 64, 64)
    planner = made_for(shape, "fresco", 8, model, {"steps": 8, **FOUR}, DvgConfig(image_condition="encode"))
    given = loaded.encode(Request("a red circle", shape, 1.0, image=str(first_frame(tmp_path / "first.png"))))
    found = finished(loaded, planner, given)
    assert found.x.isfinite().all()
    assert found.x.shape[2:] == planner.task.full_grid
    if model in ("wan2.2-ti2v-5b", "hunyuanvideo-i2v"):
        assert torch.allclose(found.x[:, :, :1].cpu(), given.latent[:, :, :1].float().cpu(), atol=1e-5), "held in its place"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = {"full": "full", "mixed": "fresco", "uniform": {"fresco": {"mixed": False}}}
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    told = {"name": "fresco", "model": "wan-mini", "prompts": [PROMPT], "frames": 5, "height": 128, "width": 128, "steps": 20}
    more = {"guidance": 1, "reference": "full", "metrics": {"names": []}, "tracking": {"enabled": False}}
    path.write_text(yaml.safe_dump({**told, **more, "arms": {arm: {"planner": named} for arm, named in arms.items()}}))
    return path


def test_a_sweep_of_it_makes_records_that_say_what_ran(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_sweep, "conclude", lambda *given: ())
    done = CliRunner().invoke(app, ["sweep", str(spec), "--local", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    rows = {row["arm"]: row for row in map(json.loads, RunPaths(tmp_path / "run").records.read_text().splitlines())}
    for arm in ("mixed", "uniform"):
        assert (rows[arm]["num_steps"], rows[arm]["reconstructed"]) == (8, "fresco")
        assert rows[arm]["stage_grids"] == "2x8x8|2x12x12|2x16x16"
        assert rows[arm]["tflops"] / rows["full"]["tflops"] == pytest.approx(rows[arm]["density_executed"], rel=0.05)
    assert rows["mixed"]["sha256"] != rows["uniform"]["sha256"]
    planned = CliRunner().invoke(app, ["plan", str(spec), "--json"])
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": [0.75, 1], "step_rates": [0.5]}, "first rate must be 1/2, 1/3 .* mixed: false"),
        ({"rates": [0.5, 0.75]}, "the last 1"),
        ({"rates": [0.5, 1, 1]}, "they must rise"),
        ({"rates": [0.5, 1]}, "2 rates need 1 changes"),
        ({"shifts": [7, 9]}, "of 3 rates there must be 3"),
        ({**FOUR, "steps": 10, "step_rates": [0.3, 0.4, 0.6]}, "two steps to tell"),
        ({"steps": 3}, "its own 3 of the arm.s .* steps .* planner full"),
        ({"window": 1}, "greater than or equal to 2"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert refusals("fresco", **settings) == ""


def test_a_video_without_a_square_is_refused() -> None:
    size = {"frames": 1, "height": 16, "width": 64}
    with pytest.raises(ConfigError, match=r"1 x 1 x 4 tokens, which hold no square of 2 x 2; take a larger video"):
        build_sweep({"model": "wan-mini", "prompts": [PROMPT], "planner": "fresco", **size}, ROOT)
    assert refusals("fresco", rates=[0.75, 1], step_rates=[0.5], mixed=False) == ""


def test_a_cache_that_compares_frames_is_refused_beside_it() -> None:
    both = {"model": "wan-mini", "prompts": [PROMPT], "planner": "fresco", "steps": 20}
    with pytest.raises(ConfigError, match=r"adacache.*form no frames"):
        build_sweep({**both, "accelerators": ["adacache"]}, ROOT)
    assert build_sweep({**both, "accelerators": ["first-block"]}, ROOT).items
