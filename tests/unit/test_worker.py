"""The worker, end to end on a tiny checkpoint: an item becomes a video, the same on every worker."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.arms import Arm, make_item
from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Item, VideoShape
from stages.denoise import Boundary, StepDone
from stages.models.base import ALL_PARTS, Condition, Lora, Request
from stages.video import read_video, verify
from stages.worker import ClipWorker
from tests.spies import SpyModel
from tests.tiny import checkpoint

SHAPE = {"num_frames": 25, "height": 96, "width": 96, "fps": 8}


def arm(name: str, planner: str, budget: float | None = None, **changes: object) -> Arm:
    fields = {"model": "wan-mini", "weights": str(checkpoint()), "num_steps": 12, "guidance": 1.0, **SHAPE, **changes}
    return Arm.model_validate({"name": name, "planner": planner, "budget": budget, **fields})


ARMS = {
    a.name: a
    for a in (
        arm("full", "full"),
        arm("dvg", "dvg", 0.5),
        arm("guided", "dvg", 0.5, guidance=3.0, negative_prompt="slow square"),
        arm("fixed", "fixed", solver="unipc"),
    )
}


def item(arm_name: str, seed: int = 7) -> Item:
    return make_item(ARMS[arm_name], "p", "a red circle moves left", seed)


@pytest.fixture(scope="module")
def worker() -> ClipWorker:
    return ClipWorker(ARMS, num_threads=1)


def test_a_clip_refined_stage_by_stage_is_the_clip_refined_at_once(worker: ClipWorker) -> None:
    _, _, first = worker.sketch(item("dvg"))
    whole, whole_s = worker.refine(item("dvg"), first)
    boundary, timings_s = first, {}
    for stop in range(2, 5):
        boundary, more_s = worker.refine(item("dvg"), Boundary.unpack(boundary.pack()), stop=stop)
        assert boundary.stage == stop
        timings_s |= more_s
    assert torch.equal(boundary.x, whole.x)
    assert timings_s.keys() == whole_s.keys()


@pytest.mark.parametrize("name", list(ARMS))
def test_an_item_becomes_a_whole_video(worker: ClipWorker, name: str, tmp_path: Path) -> None:
    decision, sketch_s, boundary = worker.sketch(item(name))
    boundary, refine_s = worker.refine(item(name), boundary)
    clip = worker.decode(item(name), boundary, tmp_path / "a.mp4")
    assert verify(tmp_path / "a.mp4", 25) is None
    assert read_video(tmp_path / "a.mp4").shape == (25, 96, 96, 3)
    assert clip.num_bytes == (tmp_path / "a.mp4").stat().st_size
    stages = {f"stage{k}_s" for k in range(1, len(decision.action.stages) + 1)}
    assert {*sketch_s, *refine_s, *clip.timings_s} == {"text_s", "sketch_s", "refine_s", "decode_s", "encode_s", *stages}
    assert all(seconds >= 0 for seconds in {**sketch_s, **refine_s, **clip.timings_s}.values())


def test_seconds_of_compiling_count_apart(worker: ClipWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    spent_s = itertools.count(step=1000.0)
    monkeypatch.setattr("stages.denoise.compile_seconds", lambda: next(spent_s))
    _, sketch_s, boundary = worker.sketch(item("dvg"))
    _, refine_s = worker.refine(item("dvg"), boundary)
    assert (sketch_s["compile_s"], refine_s["compile_s"]) == (1000.0, 3000.0)
    assert abs(sketch_s["sketch_s"] - sketch_s["stage1_s"]) < 500
    assert refine_s["refine_s"] == pytest.approx(sum(refine_s[f"stage{k}_s"] for k in (2, 3, 4)))


def test_dvg_crosses_every_grid_of_the_action_it_chose(worker: ClipWorker) -> None:
    told: list[StepDone] = []
    decision, _, boundary = worker.sketch(item("dvg"), told.append)
    assert boundary.stage == 1
    assert boundary.x.shape[2:] == decision.action.stages[1].grid
    boundary, _ = worker.refine(item("dvg"), boundary, told.append)
    assert [step.step for step in told] == list(range(12))
    grids = [step.grid for step in told]
    assert list(dict.fromkeys(grids)) == [stage.grid for stage in decision.action.stages]
    assert grids[-1] == (7, 12, 12)
    assert decision.demand is not None
    assert boundary.x.shape[2:] == (7, 12, 12)


def test_a_full_run_leaves_every_step_to_refine(worker: ClipWorker) -> None:
    told: list[StepDone] = []
    decision, _, boundary = worker.sketch(item("full"), told.append)
    assert not told
    assert (boundary.step, boundary.stage, decision.action.density) == (0, 0, 1.0)


def test_the_boundary_carries_the_arms_guidance_and_the_items_seed(worker: ClipWorker) -> None:
    _, _, guided = worker.sketch(item("guided"))
    _, _, plain = worker.sketch(item("dvg"))
    assert (guided.condition.guidance, plain.condition.guidance) == (3.0, 1.0)
    assert guided.condition.negative is not None
    assert guided.condition.negative.num_pads == 509, "three tokens: slow square and the end"
    assert plain.condition.negative is None
    assert guided.seed == 7


def make(worker: ClipWorker, of: Item, path: Path) -> str:
    boundary, _ = worker.refine(of, worker.sketch(of)[2])
    return worker.decode(of, boundary, path).sha256


def test_the_same_item_gives_the_same_bytes_and_another_seed_others(worker: ClipWorker, tmp_path: Path) -> None:
    first = make(worker, item("guided"), tmp_path / "a.mp4")
    make(worker, item("full"), tmp_path / "b.mp4")
    assert make(ClipWorker(ARMS), item("guided"), tmp_path / "c.mp4") == first
    assert make(worker, item("guided", seed=8), tmp_path / "d.mp4") != first


ELSEWHERE = """
import pickle, sys
from stages.denoise import Boundary
from stages.worker import ClipWorker
arms, item, packed, out = pickle.load(open(sys.argv[1], "rb"))
worker = ClipWorker(arms, frozenset({"transformer"}), num_threads=1)
boundary, _ = worker.refine(item, Boundary.unpack(packed))
pickle.dump(boundary.pack(), open(out, "wb"))
"""


@pytest.mark.slow
def test_a_sketch_handed_to_another_process_goes_on_bit_for_bit(worker: ClipWorker, tmp_path: Path) -> None:
    _, _, boundary = worker.sketch(item("guided"))
    job, out = tmp_path / "job.pickle", tmp_path / "out.pickle"
    job.write_bytes(pickle.dumps((ARMS, item("guided"), boundary.pack(), str(out))))
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(job)], cwd=Path(__file__).parents[2], check=True, timeout=120)
    there = Boundary.unpack(pickle.loads(out.read_bytes()))
    here, _ = worker.refine(item("guided"), boundary)
    assert torch.equal(there.x, here.x)
    assert there.decision == here.decision


def test_what_cannot_be_done_yet_is_refused(worker: ClipWorker, tmp_path: Path) -> None:
    _, _, boundary = worker.sketch(item("dvg"))
    with pytest.raises(RuntimeError, match="only a finished latent"):
        worker.decode(item("dvg"), boundary, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="arm 'other'; this worker has full, dvg, guided, fixed"):
        worker.sketch(Item("k", "other", "p", "a", 1))


def test_the_arm_and_the_item_say_what_is_loaded_and_encoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[tuple[object, ...]] = []
    requests: list[Request] = []

    class Listening(SpyModel):
        def encode(self, request: Request) -> Condition:
            requests.append(request)
            return super().encode(request)

    monkeypatch.setattr("stages.worker.load", lambda *given: (loads.append(given), Listening())[1])
    lora = ({"path": "a.safetensors", "scale": 0.5, "expert": "low"},)
    arms = {
        a.name: a
        for a in (
            arm("plain", "dvg", 0.5, guidance_low=2.0, negative_prompt="no"),
            arm("indexed", "dvg", 0.5, lora=lora, dvg=DvgConfig(image_condition="index", demand_space="pixels")),
        )
    }
    pair: Any = SimpleNamespace(size=2)
    shards = {"plain": None, "indexed": pair}
    worker = ClipWorker(arms, frozenset({"transformer"}), "cpu", attention="torch", compile_blocks=False, shards=shards)
    worker.warm_up()
    on = ("wan-mini", str(checkpoint()), "cpu")
    assert loads == [
        (*on, frozenset({"transformer", "encoder"}), (), False, "torch", None, False),
        (*on, frozenset({"transformer"}), (Lora("a.safetensors", 0.5, "low"),), False, "torch", pair, False),
    ]
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"a cat")
    of = make_item(arms["plain"], "p", "a cat", 7, str(picture), hashlib.sha256(b"a cat").hexdigest())
    worker.sketch(of)
    assert requests == [Request("a cat", VideoShape(25, 96, 96, 8), 1.0, "no", 2.0, str(picture))]
    picture.write_bytes(b"a dog")
    with pytest.raises(ValueError, match="has changed since"):
        worker.sketch(of)
    picture.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        worker.sketch(of)


def test_each_arm_runs_on_its_own_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.worker.load", lambda *given: SpyModel())
    arms = {
        a.name: a for a in (arm("own", "fixed"), arm("euler", "fixed", solver="euler"), arm("unipc", "fixed", solver="unipc"))
    }
    own, euler, unipc = (ClipWorker(arms).sketch(make_item(arms[name], "p", "a", 1))[2].x for name in arms)
    assert torch.equal(own, euler)
    assert not torch.equal(own, unipc)


def test_a_worker_that_sketches_in_pixel_space_loads_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[frozenset[str]] = []
    monkeypatch.setattr("stages.worker.load", lambda name, weights, device, given, *rest: (parts.append(given), SpyModel())[1])
    arms = {"a": arm("a", "dvg", 0.5, dvg=DvgConfig(demand_space="pixels"))}
    ClipWorker(arms, frozenset({"text", "transformer"})).warm_up()
    assert parts == [frozenset({"text", "transformer", "vae"})]


@pytest.mark.parametrize(("parts", "late"), [({"text", "transformer"}, True), ({"transformer"}, False), (ALL_PARTS, False)])
def test_a_worker_that_only_sketches_leaves_the_low_noise_expert_for_later(
    parts: set[str], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[tuple[object, ...]] = []
    monkeypatch.setattr("stages.worker.load", lambda *given: (loads.append(given), SpyModel())[1])
    ClipWorker({"dvg": arm("dvg", "dvg", 0.5)}, frozenset(parts)).warm_up()
    assert loads[0][-1] is late


@pytest.mark.parametrize("phase,doing", [("encode", "denoising 3x6x6"), ("denoise", "denoising 3x6x6"), ("load", "loading")])
def test_a_lack_of_gpu_memory_says_what_was_under_way_and_what_helps(
    monkeypatch: pytest.MonkeyPatch, phase: str, doing: str
) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB")

    model = SpyModel()
    monkeypatch.setattr("stages.worker.load", full if phase == "load" else lambda *given: model)
    monkeypatch.setattr(SpyModel, phase, full, raising=False)
    arms = {"a": arm("a", "dvg", 0.5)}
    with pytest.raises(RuntimeError, match=rf"out of GPU memory while {doing} wan-mini.*2\.50 GiB.*What helps") as caught:
        ClipWorker(arms).sketch(make_item(arms["a"], "p", "a", 1))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_bad_weights_are_noticed_when_the_worker_warms_up(tmp_path: Path) -> None:
    broken = ClipWorker({"x": arm("x", "full", weights=str(tmp_path))})
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        broken.warm_up()


def test_a_plain_run_samples_under_the_shift_of_its_arm() -> None:
    shifted = ClipWorker({"full": arm("full", "full", shift=5.0)}, num_threads=1)
    decision, _, _ = shifted.sketch(make_item(shifted.arms["full"], "p", "a red circle", 0))
    assert decision.action.stages[0].shift == 5.0
