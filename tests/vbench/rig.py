"""VBench's own run in its own environment, and small videos for it. Without pytest: the benchmark of evaluation uses it too."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np

from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_record, make_run, make_spec, write_video

OFFICIAL = Path(__file__).with_name("official.py")


def official(cache: Path, *arguments: str) -> None:
    """Run official.py in VBench's environment."""
    environment = {**os.environ, "VBENCH_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # as the packages of VBench's day had it
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [os.environ["DVG_VBENCH_PYTHON"], "-P", str(OFFICIAL), *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def clip(index: int, num_frames: int, size: int = 128) -> np.ndarray:
    """uint8 [F, H, W, 3]: a bright square on smooth noise, from resting to fast."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(40, 160, (size // 16, size // 16, 3)).repeat(16, 0).repeat(16, 1)
    video = np.repeat(coarse[None], num_frames, 0).astype(np.int16)
    for frame in range(num_frames):
        x = (8 + frame * 3 * index) % (size - 40)
        video[frame, 40:80, x : x + 40] = (220, 60 + 20 * index, 90)
    return (video + rng.integers(-index, index + 1, video.shape)).clip(0, 255).astype(np.uint8)


def vbench_run(root: Path, prompts: list[str], num_videos: int) -> RunPaths:
    """A finished run of ``num_videos`` clips of unequal lengths, true digests recorded, the suite named."""
    records: list[Record] = []
    for index in range(num_videos):
        prompt, num_frames = prompts[index // 2], 5 + 2 * (index % 3)
        record = make_record(
            "full", f"prompt-{index // 2}", index % 2, prompt=prompt, num_frames=num_frames, height=128, width=128
        )
        path = root / record.video
        write_video(clip(index, num_frames), path, record.fps)
        data = path.read_bytes()
        records.append(dataclasses.replace(record, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data)))
    spec = make_spec(records) | {"suite": {"name": "vbench"}}
    return make_run(root, records, spec, videos=False)


def records_of(paths: RunPaths) -> list[Record]:
    return Ledger(paths).records()
