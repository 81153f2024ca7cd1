"""Quality and speed of the embedded model as it ships, by one script.

``python -m experiments.embedded.evaluate --captions 20 --speed`` takes some minutes on two cores; ``--captions 200`` is the
published evaluation, about 25 minutes there or a few on a GPU (``--device cuda``). ``--rows FILE`` keeps each caption's
result, so that an interrupted evaluation goes on.

"direction" is over the scenes that say one (left, right, up, down); "course" over every moving scene, where a bounce has to
bounce and an orbit to go around. In a scene of two things both have to be right.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from experiments.embedded import vae as autoencoder
from experiments.embedded.captions import caption
from experiments.embedded.export import MAX_BYTES
from experiments.embedded.judging import first_frames, judge, medians, pixels, shares
from experiments.embedded.render import render
from experiments.embedded.sampling import Sampler, contact_sheet
from experiments.embedded.scenes import BACKGROUNDS, Scene, held_out_scenes
from experiments.embedded.train_vae import psnr
from orchestrator.actions import DvgConfig
from orchestrator.geometry import model as geometry_of
from stages import sketch
from stages.denoise import run_stages
from stages.models import embedded
from stages.models.base import Model, Request, load
from stages.planners.base import Planner, make_planner

TARGETS = {"colour": 0.95, "shape": 0.90, "direction": 0.90, "speed": 0.85, "background": 0.90}
PSNR_TARGETS_DB = {"all but noise": 30.0, "noise": 26.0}
MAX_SECONDS = 12.0
GEOMETRY = geometry_of(embedded.NAME)
SHEET_VIDEOS = 16


@lru_cache(maxsize=1)
def _model(device: str) -> Model:
    """One per process; on a CPU each process keeps to one thread, so that two use two cores."""
    if device == "cpu":
        torch.set_num_threads(1)
    return load(embedded.NAME, None, device)


@dataclass(frozen=True)
class Setting:
    """``budget`` None: every step on the full grid; otherwise DVG at that budget. ``with_image`` gives the first frame."""

    guidance: float
    device: str
    budget: float | None = None
    with_image: bool = False

    def planner(self) -> Planner:
        name, config = "full" if self.budget is None else "dvg", DvgConfig.for_model(GEOMETRY)
        return make_planner(name, GEOMETRY, GEOMETRY.default_shape, GEOMETRY.default_steps, self.budget, config)


def make_video(number: int, setting: Setting) -> np.ndarray:
    """The video uint8 [F, H, W, 3] of the held-out scene ``number``, which is also its seed."""
    scene = held_out_scenes()[number]
    with tempfile.TemporaryDirectory() as folder:
        image = save_first_frame(scene, pathlib.Path(folder) / "first.png") if setting.with_image else None
        request = Request(caption(scene), GEOMETRY.default_shape, setting.guidance, image=image)
        loaded, planner = _model(setting.device), setting.planner()
        decision, _, boundary = sketch.sketch(loaded, planner, request, number)
    boundary, _ = run_stages(loaded, planner, boundary, len(decision.action.stages))
    return np.concatenate(list(loaded.decode(boundary.x)))


def save_first_frame(scene: Scene, path: pathlib.Path) -> str:
    from PIL import Image

    Image.fromarray(pixels(first_frames([scene]).transpose(0, 1))[0]).save(path)
    return str(path)


def judge_one(number: int, setting: Setting) -> dict[str, Any]:
    """One caption's row: what of it the video shows, and how near it comes to the scene whose first frame it was given."""
    scene = held_out_scenes()[number]
    return {"i": number, "caption": caption(scene), **judge(make_video(number, setting), scene, setting.with_image)}


def judged(number: int, setting: Setting, workers: int, rows_file: pathlib.Path | None) -> list[dict[str, Any]]:
    """Rows of the first ``number`` held-out captions, in order; those in ``rows_file`` are not made again."""
    rows = {row["i"]: row for row in _read(rows_file)}
    todo = [i for i in range(number) if i not in rows]
    with ProcessPoolExecutor(max_workers=workers if setting.device == "cpu" else 1) as pool:
        for row in pool.map(partial(judge_one, setting=setting), todo):
            rows[row["i"]] = row
            if rows_file:
                with rows_file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [rows[i] for i in range(number)]


def _read(path: pathlib.Path | None) -> Iterable[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


@torch.no_grad()
def reconstruction(sampler: Sampler, scenes: Sequence[Scene]) -> dict[str, float]:
    """Median PSNR (dB) of encode and decode of full-length scenes, in float32, by background and over all but noise."""
    found: dict[str, list[float]] = {name: [] for name in BACKGROUNDS}
    shape = GEOMETRY.default_shape
    for scene in scenes:
        video = render([scene], shape.num_frames, shape.height, shape.width, sampler.device)
        out = autoencoder.decode(sampler.vae, autoencoder.encode(sampler.vae, video)[0])
        found[scene.background].append(float(psnr(video, out)))
    rest = [value for name, values in found.items() if name != "noise" for value in values]
    groups = {"all but noise": rest, **found}
    return {name: statistics.median(values) for name, values in groups.items() if values}


def cpu_speed(repeats: int = 3) -> dict[str, float]:
    """Median seconds of a full-grid video at the default settings through the product's own worker, decode and mp4 included."""
    from orchestrator.arms import make_item
    from orchestrator.resolve import resolve_arm
    from stages.worker import ClipWorker

    arm = resolve_arm("full", {"planner": "full"}, [])
    if arm is None:
        raise RuntimeError("the embedded model does not resolve")
    worker, rows = ClipWorker({"full": arm}), []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):
            item, started = make_item(arm, "speed", caption(held_out_scenes()[repeat]), repeat), time.perf_counter()
            _, _, boundary = worker.sketch(item)
            boundary, refine_s = worker.refine(item, boundary)
            clip = worker.decode(item, boundary, pathlib.Path(folder) / f"{repeat}.mp4")
            rows.append({"video_s": time.perf_counter() - started, "denoise_s": refine_s["refine_s"], **clip.timings_s})
    return {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}


def show(result: Mapping[str, Any]) -> None:
    lines = [(name, f"{share:.1%}", TARGETS.get(name), "{:.0%}") for name, share in result["attributes"].items()]
    lines += [(name.replace("_", ", "), f"{value:.3f}", None, "") for name, value in result["likeness"].items()]
    for name, value in result["reconstruction_db"].items():
        lines.append((f"reconstruction, {name} (dB)", f"{value:.2f}", PSNR_TARGETS_DB.get(name), "{:.0f}"))
    for name, value in result.get("cpu_speed", {}).items():
        lines.append((f"CPU, {name}", f"{value:.2f}", MAX_SECONDS if name == "video_s" else None, "{:.0f}"))
    lines.append(("weights and tokenizer (bytes)", f"{result['bytes']:,}", MAX_BYTES, "{:,}"))
    print(f"{'what':44} {'value':>12} {'target':>12}")
    for name, value, target, form in lines:
        print(f"{name:44} {value:>12} {'' if target is None else form.format(target):>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--captions", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=GEOMETRY.default_guidance)
    parser.add_argument("--budget", type=float, help="DVG at this budget instead of the full grid")
    parser.add_argument("--image", action="store_true", help="give each scene's first frame")
    parser.add_argument("--workers", type=int, default=2, help="processes on a CPU")
    parser.add_argument("--clips", type=int, default=60, help="held-out scenes that are encoded and decoded")
    parser.add_argument("--rows", type=pathlib.Path, help="JSONL of each caption's result, to go on from")
    parser.add_argument("--speed", action="store_true", help="also time the product's worker on this CPU")
    parser.add_argument("--sheet", type=pathlib.Path, help="PNG: eight frames of each of the first sixteen videos")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    scenes = held_out_scenes()[: args.captions]
    result: dict[str, Any] = {
        "captions": len(scenes),
        "steps": GEOMETRY.default_steps,
        "guidance": args.guidance,
        "budget": args.budget,
        "with_image": args.image,
    }
    if args.speed:
        result["cpu_speed"] = cpu_speed()
    setting = Setting(args.guidance, args.device, args.budget, args.image)
    rows = judged(len(scenes), setting, args.workers, args.rows)
    result["attributes"] = shares(rows, scenes)
    result["likeness"] = medians(rows)
    result["clips"] = args.clips
    sampler = Sampler.from_folder(embedded.FOLDER, args.device)
    result["reconstruction_db"] = reconstruction(sampler, held_out_scenes()[: args.clips])
    result["bytes"] = sum(path.stat().st_size for path in embedded.FOLDER.rglob("*") if path.is_file())
    if args.sheet:
        save_sheet(args.sheet, setting, min(SHEET_VIDEOS, len(scenes)))
    show(result)
    if args.out:
        from experiments.bench.common import save

        save(args.out, "wan-mini", {**result, "rows": rows})


def save_sheet(path: pathlib.Path, setting: Setting, number: int) -> None:
    from PIL import Image

    videos = np.stack([make_video(i, setting) for i in range(number)])
    Image.fromarray(contact_sheet(videos[:, :, ::2, ::2])).save(path, optimize=True)


if __name__ == "__main__":
    main()
