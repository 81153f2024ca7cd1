"""A finished run without any model: records, failures and small real videos in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml

from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Item, Record

PROMPTS = {
    "still-circle": "a large red circle resting on a plain background",
    "fast-square": "a small blue square moving fast to the right over fine noise",
    "orbit": "a green triangle orbiting a yellow star over bricks, camera panning slowly",
    "bounce": "a purple star bouncing over a checker background",
    "drift": "a white circle drifting left over a gradient",
    "zoom": "an orange square on stripes while the camera zooms in",
    "pan": "a cyan triangle at rest over noise, fast pan",
    "two": "a red star and a blue circle crossing over a plain background",
}


def make_record(arm: str = "full", prompt_id: str = "still-circle", seed: int = 0, **changes: Any) -> Record:
    """A plausible record; the ``dvg`` arm is about twice as fast as ``full``."""
    fast = arm != "full"
    record = Record(
        item_key=hashlib.sha256(f"{arm}/{prompt_id}/{seed}".encode()).hexdigest()[:16],
        arm=arm,
        prompt_id=prompt_id,
        prompt=PROMPTS.get(prompt_id, prompt_id),
        seed=seed,
        model="wan-mini",
        planner="dvg" if fast else "full",
        budget=0.5 if fast else None,
        num_steps=30,
        guidance=1.0,
        num_frames=9,
        height=48,
        width=48,
        fps=16,
        spatial_demand=0.42 if fast else None,
        temporal_demand=0.17 if fast else None,
        spatial_weight=0.71 if fast else None,
        temporal_weight=0.29 if fast else None,
        neutral_demand=False,
        action="s0.70-f8" if fast else "full",
        s2=0.7 if fast else None,
        f2=8 if fast else None,
        why="more detail (0.42) than motion (0.17): keeps height and width" if fast else "the full grid at every step",
        density=0.48 if fast else 1.0,
        density_executed=0.49 if fast else 1.0,
        tokens_full=891,
        stage_grids="4x8x8|8x14x14|8x18x18|11x18x18" if fast else "11x18x18",
        stage_s="0.30|0.60|1.20|2.10" if fast else "8.40",
        text_s=0.05,
        sketch_s=0.3 if fast else 0.0,
        refine_s=3.9 if fast else 8.4,
        denoise_s=4.2 if fast else 8.4,
        decode_s=0.6,
        encode_s=0.1,
        latency_s=5.5 if fast else 9.6,
        device_s=4.9 if fast else 9.2,
        degree=1,
        attempts=1,
        device="cpu",
        host="node-0",
        video=f"videos/{arm}/{prompt_id}/{seed}.mp4",
        num_bytes=0,
        sha256=hashlib.sha256(f"{arm}/{prompt_id}/{seed}/video".encode()).hexdigest(),
        finished_at="2026-01-02T03:04:05+00:00",
        target="density=0.5" if fast else "",
        predicted_s=4.0 if fast else 8.0,
        cost_label="calibrated",
        cost_device="CPU",
    )
    return dataclasses.replace(record, **changes)


def moving_square(num_frames: int = 9, size: int = 48, speed: int = 2, noise: int = 0, seed: int = 0) -> np.ndarray:
    """uint8 [F, H, W, 3]: a bright square travelling over a gradient, with uniform noise of the given height on top."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(30, 120, size, dtype=np.int16)
    video = np.broadcast_to(ramp[None, None, :, None], (num_frames, size, size, 3)).copy()
    video[..., 2] = video[..., 2].transpose(0, 2, 1)
    side = size // 4
    for frame in range(num_frames):
        x = (size // 8 + speed * frame) % (size - side)
        video[frame, size // 3 : size // 3 + side, x : x + side] = (230, 90 + 40 * (seed % 4), 60)
    video += rng.integers(-noise, noise + 1, video.shape, dtype=np.int16)
    return video.clip(0, 255).astype(np.uint8)


def write_video(frames: np.ndarray, path: Path, fps: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make_records(num_prompts: int = 8, arms: tuple[str, ...] = ("full", "dvg")) -> list[Record]:
    return [make_record(arm, prompt_id) for prompt_id in list(PROMPTS)[:num_prompts] for arm in arms]


def make_spec(records: list[Record], **tracking: Any) -> dict[str, Any]:
    arms = {r.arm: {"name": r.arm, "planner": r.planner, "num_steps": 30, "dvg": {"tolerance": 0.02}} for r in records}
    prompts = {(r.prompt_id, r.seed): {"id": r.prompt_id, "prompt": r.prompt, "seed": r.seed} for r in records}
    return {
        "name": "demo",
        "reference": "full",
        "arms": list(arms.values()),
        "prompts": list(prompts.values()),
        "tracking": {"enabled": True, "uri": None, "experiment": "dvg", "videos": "all", **tracking},
    }


def make_run(root: Path, records: list[Record], spec: dict[str, Any] | None = None, videos: bool = True) -> RunPaths:
    """Write config, records and videos of a finished run."""
    paths = RunPaths(root)
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(yaml.safe_dump(spec or make_spec(records)))
    ledger = Ledger(paths)
    for record in records:
        if videos:
            seed = list(PROMPTS).index(record.prompt_id)
            frames = moving_square(record.num_frames, record.height, seed=seed, noise=0 if record.arm == "full" else 4 + 2 * seed)
            write_video(frames, paths.root / record.video, record.fps)
        ledger.append(record)
    return paths


def make_failure(paths: RunPaths, arm: str = "dvg", prompt_id: str = "orbit", seed: int = 7) -> dict[str, Any]:
    record = make_record(arm, prompt_id, seed)
    item = Item(item_key=record.item_key, arm=arm, prompt_id=prompt_id, prompt=record.prompt, seed=seed)
    story = ("12.1 s attempt 1 refine: worker pod-0 lost (SIGKILL)", "31.4 s attempt 2 refine: out of memory")
    return Ledger(paths).fail(item, "RuntimeError: out of memory on rank 1", story, attempts=2)


def quality_row(record: Record, psnr: float = 27.5, ssim: float = 0.91, reference_arm: str = "full") -> dict[str, Any]:
    return {
        "item_key": record.item_key,
        "arm": record.arm,
        "prompt_id": record.prompt_id,
        "seed": record.seed,
        "reference_arm": reference_arm,
        "sha256": record.sha256,
        "reference_sha256": make_record(reference_arm, record.prompt_id, record.seed).sha256,
        "psnr": psnr,
        "ssim": ssim,
    }
