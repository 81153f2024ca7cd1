"""The studies' batched runs are the product's runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments.bench.lockstep import Clips, Lockstep
from experiments.embedded.captions import caption
from experiments.embedded.judging import first_frames, pixels
from experiments.embedded.scenes import held_out_scenes
from orchestrator.actions import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models.base import Model, Request, load
from stages.models.embedded import FOLDER, NAME
from stages.planners import Planner, make_planner

pytestmark = pytest.mark.skipif(not (FOLDER / "model_index.json").is_file(), reason="a checkout without the embedded weights")
GEOMETRY = geometry_of(NAME)
SHAPE, NUM_STEPS, GUIDANCE = VideoShape(21, 96, 96), 8, 2.0
SCENES, SEEDS = held_out_scenes()[3:5], (7, 8)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME, None)


@pytest.fixture(scope="module")
def batched() -> Lockstep:
    return Lockstep(FOLDER, "cpu", GUIDANCE)


def planner(name: str, budget: float | None, **knobs: object) -> Planner:
    return make_planner(name, GEOMETRY, SHAPE, NUM_STEPS, budget, DvgConfig.for_model(GEOMETRY, knobs))


def one_by_one(model: Model, plan: Planner, images: list[str | None]) -> list[tuple[str, torch.Tensor]]:
    """What the engine chooses and makes of each clip."""
    made = []
    for scene, seed, image in zip(SCENES, SEEDS, images, strict=True):
        boundary = start(model, plan, model.encode(Request(caption(scene), SHAPE, GUIDANCE, image=image)), seed)
        if boundary.decision is None:
            boundary, _ = run_stages(model, plan, boundary, 1)
        assert boundary.decision is not None
        boundary, _ = run_stages(model, plan, boundary, len(boundary.decision.action.stages))
        made.append((boundary.decision.action.name, boundary.x))
    return made


def check_equal(batched: Lockstep, clips: Clips, plan: Planner, made: list[tuple[str, torch.Tensor]]) -> None:
    played = batched.play(plan, clips)
    assert [decision.action.name for decision in played.decisions] == [name for name, _ in made]
    assert (played.latents - torch.cat([x for _, x in made])).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "budget", "knobs"),
    [
        ("full", None, {}),
        ("dvg", 0.6, {}),
        ("dvg", 0.6, {"initial_noise": "coordinate", "noise_field": "stock", "shifts": (3.0, 4.0, 5.0, 5.0)}),
        ("fixed", None, {}),
    ],
)
def test_batched_clips_equal_the_engines(
    model: Model, batched: Lockstep, name: str, budget: float | None, knobs: dict[str, object]
) -> None:
    plan, prompts = planner(name, budget, **knobs), tuple(map(caption, SCENES))
    check_equal(batched, Clips(prompts, SEEDS), plan, one_by_one(model, plan, [None, None]))


@pytest.mark.parametrize("mode", ["index", "encode"])
def test_batched_clips_with_a_first_frame_equal_the_engines(model: Model, batched: Lockstep, mode: str, tmp_path: Path) -> None:
    if GEOMETRY.image == "none":
        pytest.skip("the model takes no image")
    images = first_frames(SCENES, SHAPE.height, SHAPE.width)
    paths = [str(tmp_path / f"{seed}.png") for seed in SEEDS]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(pixels(image[:, None])[0]).save(path)
    plan = planner("dvg", 0.6, image_condition=mode)
    clips = Clips(tuple(map(caption, SCENES)), SEEDS, images)
    check_equal(batched, clips, plan, one_by_one(model, plan, list(paths)))


def run_script(main: Callable[[], None], arguments: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a study writes for one short run, as JSON."""
    monkeypatch.setattr("sys.argv", ["study", *arguments.split(), "--steps", "6", "--workers", "0", "--out", str(out)])
    main()
    assert out.with_suffix(".md").read_text().startswith(("|", "###"))
    written: dict[str, Any] = json.loads(out.read_text())
    return written


def test_the_ablation_compares_each_variant_with_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.bench import ablation

    arguments = "--prompts 1 --seeds 0 --budget 0.7 --variants full dvg aligned-dvg"
    study = run_script(ablation.main, arguments, tmp_path / "a.json", monkeypatch)
    full, plain, aligned = study["rows"]
    assert "psnr" not in full
    assert aligned["psnr"] != plain["psnr"]
    by_name = {entry["variant"]: entry for entry in study["summary"]}
    assert by_name["dvg"]["figures"]["psnr"][0] == pytest.approx(plain["psnr"], abs=1e-3)
    assert by_name["full"]["differences"]["score"][0] == pytest.approx(full["score"] - plain["score"], abs=1e-3)


def test_the_oracle_is_never_worse_than_any_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.bench import oracle

    arguments = "--prompts 1 --seeds 1 --budget 0.7 --settings aligned"
    study = run_script(oracle.main, arguments, tmp_path / "o.json", monkeypatch)
    by_choice = {entry["choice"]: entry for entry in study["summary"]}
    best = by_choice["oracle by psnr"]
    assert best["lost_db"][0] == 0
    assert best["top1"] == 1
    rules = [name for name in by_choice if name != "fixed"]
    assert all(by_choice[name]["psnr"][0] <= best["psnr"][0] + 1e-9 for name in rules)
    again = run_script(oracle.main, f"--budget 0.7 --rows {tmp_path / 'o.json'}", tmp_path / "again.json", monkeypatch)
    assert [row["chosen"] for row in again["rows"]] == [row["chosen"] for row in study["rows"]]
