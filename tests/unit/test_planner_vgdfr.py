"""The planner ``vgdfr``: how it measures and merges, where it comes back to, and clips made with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from orchestrator import vgdfr
from orchestrator.arms import Arm, Item, make_item
from orchestrator.checkpoints import Checkpoints, load
from orchestrator.config import load_sweep
from orchestrator.demands import actions_of
from orchestrator.dvg_config import DvgConfig
from orchestrator.eventlog import event_from, row
from orchestrator.events import Finish, Sketched
from orchestrator.flops import forward_tflops
from orchestrator.geometry import model
from orchestrator.methods import Request, find
from orchestrator.mistakes import ConfigError
from orchestrator.runbook import make_record
from orchestrator.types import Action, Decision, Merged, Stage, VideoShape
from stages.demand import DemandNotFinite
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Branch, Condition
from stages.planners import make_planner
from stages.planners.task import Crossing
from stages.planners.vgdfr import METHODS, RELEASED_LAYERS, VgdfrPlanner, VgdfrSettings, merge
from stages.sampling import initial_noise
from stages.similarity import likeness, ssim
from stages.video import read_video, verify
from stages.worker import ClipWorker
from tests.checkpoints import checkpoint, first_frame
from tests.spies import SpyModel

GEOMETRY = model("wan-mini")
SHAPE = VideoShape(25, 64, 64)
CONDITION = Condition(Branch({}), None, 1.0)


def planner(shape: VideoShape = SHAPE, num_steps: int = 12, name: str = "wan-mini", solver: Any = None, **settings: Any) -> Any:
    made = make_planner("vgdfr", model(name), shape, num_steps, None, DvgConfig(), solver, settings=settings)
    assert isinstance(made, VgdfrPlanner)
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip(*scenes: tuple[int, int]) -> Tensor:
    """Video in [-1, 1] of scenes, each so many frames of one still picture by its seed; seed 0: other frames each."""
    parts = [
        noise(1, 3, num, 64, 64, seed=99).clamp(-1, 1)
        if seed == 0
        else noise(1, 3, 1, 64, 64, seed=seed).clamp(-1, 1).expand(-1, -1, num, -1, -1)
        for num, seed in scenes
    ]
    return torch.cat(parts, dim=2)


def test_similarity_is_that_of_a_library() -> None:
    a, b = torch.rand(3, 3, 40, 50), torch.rand(3, 3, 40, 50)
    b[1] = (a[1] + 0.1 * b[1]).clamp(0, 1)
    _, cells = structural_similarity_index_measure(a, b, sigma=1.5, data_range=1.0, return_full_image=True)
    expected = cells[..., 5:-5, 5:-5].flatten(1).mean(1)  # without the borders, where that library mirrors the frame
    torch.testing.assert_close(ssim(a, b), expected, atol=2e-5, rtol=0)
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])


def test_likeness_is_by_distance_and_then_by_the_earlier_frame() -> None:
    video = torch.rand(1, 3, 12, 16, 16)
    found = likeness(video, 3)
    assert [len(found_d) for found_d in found] == [11, 10, 9]
    assert found[1][9] == pytest.approx(ssim(video[:, :, 9], video[:, :, 11]).item(), abs=1e-6)
    assert found[2][0] == pytest.approx(ssim(video[:, :, 0], video[:, :, 3]).item(), abs=1e-6)


def test_frames_that_are_not_finite_are_told() -> None:
    with pytest.raises(DemandNotFinite):
        likeness(torch.full((1, 3, 5, 16, 16), torch.nan), 1)


def test_a_group_becomes_its_mean_at_the_place_of_its_first() -> None:
    video = torch.arange(45.0).view(1, 1, 45, 1, 1).expand(1, 3, 45, 2, 2)
    merged = merge(video, Merged(45, by_twos=(17,), by_fours=(1,)))[0, 0, :, 0, 0].tolist()
    assert merged == [0, 2.5, 6.5, 10.5, 14.5, 17.5, 19.5, 21.5, 23.5, *range(25, 45)]


def test_content_decides_which_frames_stay() -> None:
    made = planner(similarity_threshold=0.75)
    decision = made.decide(noise(1, 16, 7, 8, 8), lambda x0: clip((9, 1), (16, 0)))
    assert decision.merged == Merged(25, (1,), ())
    assert decision.action.stages == (Stage((7, 8, 8), 1, GEOMETRY.full_shift), Stage((6, 8, 8), 11, GEOMETRY.full_shift))
    assert "25 frames to 21" in decision.why


def test_frames_are_compared_as_pictures_between_black_and_white() -> None:
    video = clip((25, 1)) * 0.8 + clip((25, 0)) * 0.1
    expected = likeness((video / 2 + 0.5), 1)[0]
    least = min(expected[1:17:2])
    below, above = (planner(similarity_threshold=least + margin) for margin in (-1e-4, 1e-4))
    assert below.decide(noise(1, 16, 7, 8, 8), lambda x0: video).merged == Merged(25, (1, 9), ())
    decided = above.decide(noise(1, 16, 7, 8, 8), lambda x0: video).merged
    assert decided is None or len(decided.by_twos) == 1


def test_a_ratio_may_merge_by_fours() -> None:
    made = planner(VideoShape(41, 64, 64), keep_token_ratio=0.414)
    weak = clip((41, 1)) * 0.3 + clip((41, 0)) * 0.3
    merged = made.decide(noise(1, 16, 11, 8, 8), lambda x0: weak).merged
    assert merged == Merged(41, (), (1, 17))


class Stub:
    """Encodes what it is given as ones, and writes it down."""

    def __init__(self, num_latents: int) -> None:
        self.num_latents, self.encoded = num_latents, []

    def latent_of(self, video: Tensor) -> Tensor:
        self.encoded.append(video)
        return torch.ones(1, 16, self.num_latents, 8, 8)


def test_what_is_left_comes_back_with_the_first_noise_of_its_latent_frames() -> None:
    made = planner(similarity_threshold=0.75)
    video, x0, stub = clip((9, 1), (16, 0)), noise(1, 16, 7, 8, 8), Stub(6)
    decision = made.decide(x0, lambda x0: video)
    x = made.cross(x0, Crossing(decision, 0, 0.3, 7, stub, x0, lambda x0: video, lambda: x0))
    first = initial_noise((7, 8, 8), 16, 7)[:, :, [0, 1, 3, 4, 5, 6]]
    torch.testing.assert_close(x, 0.7 + 0.3 * first)
    assert torch.equal(stub.encoded[0], merge(video, decision.merged))


def test_the_conditions_cells_are_those_of_the_latent_frames_that_stay() -> None:
    made = planner(similarity_threshold=0.75)
    decision = made.decide(noise(1, 16, 7, 8, 8), lambda x0: clip((9, 1), (16, 0)))
    whole, left = made.axes(decision.action.stages, decision)
    assert [len(axis) for axis in whole] == [7, 8, 8]
    assert left == ((0, 1, 3, 4, 5, 6), whole[1], whole[2])


class Previewing(SpyModel):
    """A spy whose clips decode to a given video."""

    def __init__(self, video: Tensor) -> None:
        super().__init__()
        self.video, self.previewed = video, []

    def preview(self, latent: Tensor) -> Tensor:
        self.previewed.append(latent)
        return self.video

    def latent_of(self, video: Tensor) -> Tensor:
        return torch.zeros(1, 16, (video.shape[2] - 1) // 4 + 1, 8, 8)


def engine(own: Previewing, made: Any) -> tuple[Boundary, Boundary]:
    """After the compression, and at the end."""
    boundary = start(own, made, CONDITION, 7)
    first, _ = run_stages(own, made, boundary, 1)
    assert first.decision is not None
    return first, run_stages(own, made, first, 2)[0]


def test_the_clean_estimate_is_that_after_so_many_steps_by_the_last_velocity() -> None:
    """As published: k Euler steps, then straight on along the last velocity; and back at the level of step k."""
    own, made = Previewing(clip((9, 1), (16, 0))), planner(similarity_threshold=0.75, before_compression_steps=3)
    first, last = engine(own, made)
    levels = made.task.solver(made.first()).levels
    x, v = own.outputs[2]
    stepped = x + (levels[3].sigma - levels[2].sigma) * v
    torch.testing.assert_close(own.previewed[0], stepped - levels[3].sigma * v, atol=1e-5, rtol=0)
    assert len(own.previewed) == 1, "decoded once, for choosing and for merging"
    noise_left = initial_noise((7, 8, 8), 16, 7)[:, :, [0, 1, 3, 4, 5, 6]]
    torch.testing.assert_close(first.x, levels[3].sigma * noise_left)
    assert [level.sigma for level in own.levels] == [level.sigma for level in levels]
    assert [x.shape[2] for x, _ in own.outputs] == [7] * 3 + [6] * 9
    assert last.x.shape == (1, 16, 6, 8, 8)


@pytest.mark.parametrize("settings", [{"similarity_threshold": 0.75}, {"similarity_threshold": 1.0}, {"keep_token_ratio": 1.0}])
def test_with_nothing_merged_every_step_is_the_plain_runs(settings: dict[str, float]) -> None:
    own, plain = Previewing(clip((25, 0))), SpyModel()
    made = planner(**settings, before_compression_steps=3)
    full = make_planner("full", GEOMETRY, SHAPE, 12, None, DvgConfig())
    ends = []
    for spy, policy in ((own, made), (plain, full)):
        boundary = start(spy, policy, CONDITION, 7)
        while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
            boundary, _ = run_stages(spy, policy, boundary, boundary.stage + 1)
        ends.append(boundary.x)
    assert torch.equal(*ends)


def test_layers_that_are_told_places_are_told_them_after_the_compression_only() -> None:
    made = planner(similarity_threshold=0.75, global_layers=(1, 3))
    decision = made.decide(noise(1, 16, 7, 8, 8), lambda x0: clip((9, 1), (16, 0)))
    assert made.positions(decision, 0) is None
    told = made.positions(decision, 1)
    assert (told.frames, told.layers) == ((0, 1, 3, 4, 5, 6), {1, 3})
    assert planner(similarity_threshold=0.75).positions(decision, 1) is None


@pytest.mark.parametrize(
    ("name", "layers"), [("hunyuanvideo", RELEASED_LAYERS), ("hunyuanvideo-i2v", RELEASED_LAYERS), ("wan2.1-14b", ())]
)
def test_only_hunyuanvideo_has_layers_that_the_release_chose(name: str, layers: tuple[int, ...]) -> None:
    request = Request(model(name), model(name).default_shape, 50, 6.0, "vgdfr", DvgConfig())
    found = METHODS["vgdfr"].resolve(VgdfrSettings(), request)
    assert (found.global_layers, found.keep_token_ratio, found.before_compression_steps) == (layers, 0.75, 5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep_token_ratio": 0.5, "similarity_threshold": 0.5}, "two schedules"),
        ({"before_compression_steps": 12}, "take fewer"),
        ({"global_layers": [7]}, r"\[7\] are none of the 7 layers"),
        ({"keep_token_ratio": 0.0}, "greater than 0"),
        ({"shape": VideoShape(9, 64, 64)}, "takes 13"),
        ({"shape": VideoShape(25, 16, 64)}, "too small"),
        ({"rife": "nowhere.pt"}, "no file"),
        ({"keep_token_ratio": 0.1, "shape": VideoShape(65, 64, 64)}, "0.1: of 65 frames windows leave 0.384 at least"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        planner(**settings)


@pytest.mark.parametrize("settings", [{"similarity_threshold": 0.6}, {"keep_token_ratio": 0.6}, {"keep_token_ratio": 1.0}])
@pytest.mark.parametrize("scenes", [((25, 1),), ((25, 0),), ((9, 1), (16, 0)), ((17, 0), (8, 2))])
def test_every_decision_is_among_the_actions_that_are_planned_for(settings: dict[str, float], scenes: Any) -> None:
    made = planner(**settings)
    request = Request(GEOMETRY, SHAPE, 12, 1.0, "vgdfr", DvgConfig())
    listed = METHODS["vgdfr"].actions(made.settings, request)
    assert made.decide(noise(1, 16, 7, 8, 8), lambda x0: clip(*scenes)).action in listed
    assert {action.stages[0] for action in listed} == {made.first()}


def test_a_decision_survives_the_event_log_and_checkpoints(tmp_path: Path) -> None:
    decision = Decision(Action("t6", (), 0.9), "as told", merged=Merged(25, (1,), ()))
    event = Sketched(1.0, "key", 1, decision, {})
    assert event_from(row(event, [])) == event
    boundary = Boundary(noise(1, 2, 3, 4, 4), 3, 1, decision, CONDITION, 7)
    kept = Checkpoints(tmp_path)
    kept.save("key", boundary.pack())
    found = kept.find("key")
    assert found is not None
    assert found.decision == decision
    assert Boundary.unpack(load(found.handle)).decision == decision


# Clips of tiny models


def arm(name: str, **changes: Any) -> Arm:
    given = changes.pop("settings", {})
    weights = str(checkpoint(changes.get("model", "wan-mini")))
    sizes = {"num_frames": 25, "height": 64, "width": 64, "fps": 8, "num_steps": 8, "guidance": 1.0}
    fields = {"model": "wan-mini", "weights": weights, "planner": "vgdfr", **sizes, **changes}
    return Arm.model_validate({"name": name, "planner_settings": given, **fields})


ALIKE = {"similarity_threshold": 0.01, "before_compression_steps": 2}
ARMS = {
    a.name: a
    for a in (
        arm("full", planner="full"),
        arm("all", settings={"keep_token_ratio": 1.0}),
        arm("wan", settings={**ALIKE, "global_layers": [0, 1]}),
        arm("hunyuan", model="hunyuanvideo", settings={**ALIKE, "global_layers": [0, 2]}),
        arm("hunyuan15", model="hunyuanvideo-1.5", settings=ALIKE),
        arm("image", model="hunyuanvideo-i2v", settings=ALIKE),
        arm("wan-image", model="wan2.1-i2v-14b", settings=ALIKE),
    )
}


def item(name: str, folder: Path) -> Item:
    if "image" not in name:
        return make_item(ARMS[name], "p", "a red circle moves left", 7)
    path = first_frame(folder / "first.png")
    return make_item(ARMS[name], "p", "a red circle", 7, str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def worker() -> ClipWorker:
    return ClipWorker(ARMS, num_threads=1)


@pytest.mark.parametrize("name", ["wan", "hunyuan", "hunyuan15", "image", "wan-image"])
def test_a_clip_of_every_family_has_all_its_frames_again(
    worker: ClipWorker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.planners.vgdfr.likeness", lambda video, furthest: [[0.9] * (video.shape[2] - 1)])
    asked = item(name, tmp_path)
    decision, sketch_s, boundary = worker.sketch(asked)
    assert decision.merged == Merged(25, (1, 9), ())
    last, refine_s = worker.refine(asked, Boundary.unpack(boundary.pack()))
    assert last.x.shape[2] == 5
    clip = worker.decode(asked, last, tmp_path / "a.mp4")
    assert verify(tmp_path / "a.mp4", 25) is None
    assert (clip.num_restored, clip.restored_by) == (8, "motion")
    timings_s = {**sketch_s, **refine_s, **clip.timings_s}
    finish = Finish(asked.item_key, 1, asked, decision, clip, timings_s, 1.0, 1.0, ())
    record = make_record(finish, ARMS[name], model(ARMS[name].model), "cpu", "here", "a.mp4")
    assert (record.num_restored, record.restored_by, record.f2) == (8, "motion", 5)
    assert record.restore_s == timings_s["restore_s"] > 0
    share = forward_tflops(model(record.model), decision.action.stages[1].grid)
    whole = forward_tflops(model(record.model), decision.action.stages[0].grid)
    branches = 1 if boundary.condition.negative is None else 2
    assert record.tflops == pytest.approx(branches * (2 * whole + 6 * share))
    assert record.density_executed == pytest.approx((2 * 7 + 6 * 5) / 56)


def test_a_clip_that_keeps_every_frame_is_the_plain_run(worker: ClipWorker, tmp_path: Path) -> None:
    videos = []
    for name in ("full", "all"):
        _, _, boundary = worker.sketch(item(name, tmp_path))
        boundary, _ = worker.refine(item(name, tmp_path), boundary)
        made = worker.decode(item(name, tmp_path), boundary, tmp_path / f"{name}.mp4")
        assert (made.num_restored, made.restored_by, "restore_s" in made.timings_s) == (0, "", False)
        videos.append(read_video(tmp_path / f"{name}.mp4"))
    assert (videos[0] == videos[1]).all()


def spec(folder: Path, **changes: Any) -> Path:
    path = folder / "spec.yaml"
    sizes = {"frames": 25, "height": 64, "width": 64, "steps": 8}
    content = {"prompts": ["a red circle"], "tracking": {"enabled": False}, **sizes, **changes}
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_spec_names_it_with_settings(tmp_path: Path) -> None:
    (found,) = load_sweep(spec(tmp_path, planner={"vgdfr": {"similarity_threshold": 0.8}}), []).arms
    assert found.planner_settings["similarity_threshold"] == 0.8
    assert found.planner_settings["before_compression_steps"] == 2
    assert found.sketch_parts == {"vae", "encoder"}
    assert [action.stages[1].grid[0] for action in actions_of(found)] == [7, 6, 5]
    assert find("vgdfr", "planner").follows == "release"


def test_a_spec_that_asks_for_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes 13 at least"):
        load_sweep(spec(tmp_path, planner="vgdfr", frames=5), [])


def test_a_changed_network_makes_other_videos() -> None:
    given = [VgdfrSettings(rife="net.pt", rife_sha256=digest).model_dump(mode="json") for digest in "ab"]
    assert len({make_item(arm("wan", settings=settings), "p", "x", 1).item_key for settings in given}) == 2


def test_fewest_frames_are_those_of_one_window() -> None:
    assert len(vgdfr.reachable(vgdfr.FEWEST_FRAMES, False)) == 2
    assert len(vgdfr.reachable(vgdfr.FEWEST_FRAMES - 4, False)) == 1


def test_it_goes_with_a_cache_that_begins_anew_after_the_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.planners.vgdfr.likeness", lambda video, furthest: [[0.9] * (video.shape[2] - 1)])
    planner = {"vgdfr": {**ALIKE, "before_compression_steps": 3}}
    given = {"planner": planner, "weights": str(checkpoint("wan-mini")), "steps": 12, "guidance": 1}
    spent = []
    for accelerators in ([], ["taylorseer"]):
        sweep = load_sweep(spec(tmp_path, **given, accelerators=accelerators), [])
        made = ClipWorker(sweep.arms_by_name, num_threads=1)
        _, _, boundary = made.sketch(sweep.items[0])
        spent.append(made.refine(sweep.items[0], boundary)[0].past.tflops)
    assert spent[1] < 0.8 * spent[0]
