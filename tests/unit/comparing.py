"""Run folders to compare: real records with figures that differ by prompt, seed and arm in known ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import PROMPTS, make_record, make_run, make_spec, quality_row

ARMS = {"full": 1.0, "dvg": 2.0, "tiny": 4.0}
"""How many times faster than ``full`` each denoises."""


def arm_record(arm: str, prompt_id: str, seed: int, **changes: Any) -> Record:
    """Prompts take between 8 and 15 seconds on ``full``; everything beside denoising takes 0.75 s."""
    pace = ARMS[arm]
    denoise_s = (8.0 + list(PROMPTS).index(prompt_id) + 0.1 * seed) / pace
    figures = {
        "denoise_s": denoise_s,
        "stage_s": f"{denoise_s}",
        "stage_grids": "11x18x18",
        "latency_s": denoise_s + 1.0,
        "device_s": denoise_s + 0.6,
        "density": 1 / pace,
    }
    return make_record(arm, prompt_id, seed, **(figures | changes))


def arm_records(arms: Sequence[str] = tuple(ARMS), num_prompts: int = 8, num_seeds: int = 2, **changes: Any) -> list[Record]:
    names = list(PROMPTS)[:num_prompts]
    return [arm_record(arm, name, seed, **changes) for name in names for seed in range(num_seeds) for arm in arms]


def quality_of(record: Record, **changes: float) -> dict[str, Any]:
    """``dvg`` is always a little nearer to ``full`` than ``tiny``, and flickers a little more on every other prompt."""
    index = list(PROMPTS).index(record.prompt_id)
    flicker = 0.95 + 0.001 * index - (0.002 * (index % 2) if record.arm == "dvg" else 0.0)
    row: dict[str, Any] = {"flicker": flicker, "motion": 0.1 * index, "unavailable": {}}
    if record.arm == "full":
        row = quality_row(record) | {"reference_arm": None, "reference_sha256": None} | row
        return {name: value for name, value in row.items() if name not in ("psnr", "ssim")}
    near = 1.0 if record.arm == "dvg" else 0.0
    own = {"lpips": 0.3 - 0.1 * near + 0.01 * index, **changes}
    return quality_row(record, psnr=25 + 2 * near + 0.5 * index, ssim=0.8 + 0.05 * near + 0.01 * index) | row | own


def write_run(root: Path, records: Sequence[Record], vbench: Mapping[str, float] | None = None, **spec: Any) -> RunPaths:
    """With quality of every record, and VBench's temporal flickering of ``vbench``'s arms where they are given."""
    paths = make_run(root, list(records), make_spec(list(records)) | spec, videos=False)
    paths.quality.write_text("".join(json.dumps(quality_of(record)) + "\n" for record in records))
    for arm, score in (vbench or {}).items():
        write_scores(paths, arm, score)
    return paths


def write_scores(paths: RunPaths, arm: str, score: float) -> None:
    """As VBench writes them: one dimension with each video's, another with the score alone."""
    videos = [
        {"video_path": f"view/{text}-{number}.mp4", "video_results": score + 0.001 * (number - 0.5)}
        for text in list(PROMPTS.values())
        for number in range(2)
    ]
    path = paths.vbench_results("vbench", arm)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"temporal_flickering": [score, videos], "color": [0.5, []]}))
