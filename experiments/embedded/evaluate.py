"""Quality and speed of the embedded model as it ships, by one script.

On a GPU: ``python -m experiments.embedded.evaluate --device cuda --captions 200``; on a CPU: ``--captions 20 --speed``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from experiments.embedded import vae as autoencoder
from experiments.embedded.captions import caption
from experiments.embedded.export import FOLDER, MAX_BYTES
from experiments.embedded.latents import FULL, Shape
from experiments.embedded.render import render
from experiments.embedded.sampling import NUM_STEPS, Sampler, contact_sheet
from experiments.embedded.scenes import BACKGROUNDS, Scene, held_out_scenes

TARGETS = {"colour": 0.95, "shape": 0.90, "direction": 0.90, "speed": 0.85, "background": 0.90}
PSNR_TARGETS_DB = {"all but noise": 30.0, "noise": 26.0}
MAX_SECONDS = 12.0


def judge(pair: tuple[np.ndarray, Scene]) -> dict[str, bool | None]:
    from experiments.embedded.checker import check

    return check(*pair)


def generate(sampler: Sampler, scenes: Sequence[Scene], shape: Shape, guidance: float, batch: int) -> np.ndarray:
    """uint8 [B, F, H, W, 3]; seed i for scene i."""
    videos = []
    for start in range(0, len(scenes), batch):
        part = [caption(scene) for scene in scenes[start : start + batch]]
        videos.append(sampler.videos(sampler.latents(part, shape, seed=start, guidance=guidance), chunk=batch))
    return np.concatenate(videos)


def attribute_shares(videos: np.ndarray, scenes: Sequence[Scene], workers: int) -> dict[str, float]:
    """Share of videos that show each attribute, over those in which it can be seen."""
    with ProcessPoolExecutor(max_workers=workers) as pool:
        rows = list(pool.map(judge, zip(videos, scenes, strict=True), chunksize=4))
    seen = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {key: sum(map(bool, values)) / max(1, len(values)) for key, values in seen.items()}


@torch.no_grad()
def reconstruction(sampler: Sampler, scenes: Sequence[Scene]) -> dict[str, float]:
    """Median PSNR (dB) of encode and decode of full-length scenes, in float32, by background and in the two groups."""
    rows: dict[str, list[float]] = {name: [] for name in BACKGROUNDS}
    for scene in scenes:
        video = render([scene], 41, 144, 144, sampler.device)
        out = autoencoder.decode(sampler.vae, autoencoder.encode(sampler.vae, video)[0]).clamp(-1, 1)
        rows[scene.background].append(float(-10 * ((out - video).square().mean() / 4).log10()))
    rest = [value for name, values in rows.items() if name != "noise" for value in values]
    groups = {"all but noise": rest, **{name: values for name, values in rows.items() if values}}
    return {name: statistics.median(values) for name, values in groups.items()}


def cpu_speed(repeats: int = 3) -> dict[str, float]:
    """Median seconds of one full-grid video at the default settings through the product's own worker, decode and mp4 included."""
    import tempfile

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


def show(result: dict[str, Any]) -> None:
    print(f"{'what':44} {'value':>9} {'target':>9}")
    for name, share in result["attributes"].items():
        print(f"{name:44} {share:9.1%} {TARGETS.get(name, float('nan')):9.0%}")
    for name, value in result["reconstruction_db"].items():
        print(f"{'reconstruction, ' + name + ' (dB)':44} {value:9.2f} {PSNR_TARGETS_DB.get(name, float('nan')):9.1f}")
    for name, value in result.get("cpu_speed", {}).items():
        print(f"{'CPU ' + name:44} {value:9.2f} {MAX_SECONDS if name == 'video_s' else float('nan'):9.1f}")
    print(f"{'weights and tokenizer (bytes)':44} {result['bytes']:9,} {MAX_BYTES:9,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--captions", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--speed", action="store_true", help="also time the product's worker on this CPU")
    parser.add_argument("--sheet", type=pathlib.Path, help="PNG: eight frames of each of the first videos")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    scenes = held_out_scenes()[: args.captions]
    sampler = Sampler.from_folder(args.folder, args.device)
    videos = generate(sampler, scenes, FULL, args.guidance, args.batch if args.device == "cuda" else 1)
    result: dict[str, Any] = {
        "captions": len(scenes),
        "steps": NUM_STEPS,
        "guidance": args.guidance,
        "attributes": attribute_shares(videos, scenes, args.workers),
        "reconstruction_db": reconstruction(sampler, scenes),
        "bytes": sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file()),
    }
    if args.speed:
        result["cpu_speed"] = cpu_speed()
    if args.sheet:
        Image.fromarray(contact_sheet(videos[:16, :, ::2, ::2])).save(args.sheet)
    show(result)
    if args.out:
        from experiments.bench.common import facts

        args.out.write_text(json.dumps({"benchmark": "wan-mini", **facts(), **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
