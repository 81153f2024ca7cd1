"""What VGDFR adds to a clip at real sizes: a look at the clean estimate, comparing, merging, encoding again, restoring.

``python -m experiments.bench.vgdfr hv --out FILE``, of autoencoders with random weights.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch

from experiments.bench.common import save
from experiments.bench.single_gpu_models import SUBJECTS, Subject
from orchestrator import vgdfr
from orchestrator.types import VideoShape
from stages.denoise import clock_s
from stages.models.adapter import Adapter
from stages.models.hunyuan import HunyuanModel, HunyuanParts
from stages.models.hunyuan15 import Hunyuan15Model, Parts
from stages.models.hunyuan15_vae import Hunyuan15Decoder, Hunyuan15ImageEncoder
from stages.models.hunyuan_vae import HunyuanDecoder, HunyuanEncoder
from stages.models.wan import WanModel, WanParts
from stages.models.wan_decoder import WanDecoder, WanEncoder
from stages.models.wan_parts import Index
from stages.planners.vgdfr import merge
from stages.restore import Motion, restored
from stages.similarity import likeness

KINDS = {"hunyuan": "AutoencoderKLHunyuanVideo", "hunyuan15": "AutoencoderKLHunyuanVideo15", "wan": "AutoencoderKLWan"}


def coder(subject: Subject, device: torch.device) -> Adapter:
    """The adapter with both halves of a random autoencoder and nothing else."""
    import diffusers

    geometry, dtype = subject.geometry, torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        vae = getattr(diffusers, KINDS[geometry.family])()
    vae.to(dtype).eval().requires_grad_(False)
    if geometry.family == "hunyuan":
        halves = HunyuanParts(encoder=HunyuanEncoder(vae), decoder=HunyuanDecoder(vae))
        return HunyuanModel(geometry, device, dtype, halves)
    if geometry.family == "hunyuan15":
        return Hunyuan15Model(
            geometry, device, dtype, Parts(image_encoder=Hunyuan15ImageEncoder(vae), decoder=Hunyuan15Decoder(vae))
        )
    parts = WanParts(encoder=WanEncoder(vae), decoder=WanDecoder(vae))
    return WanModel(geometry, device, dtype, Index(frozenset(), None, False), parts)


def timed(device: torch.device, what: Callable[[], Any]) -> tuple[Any, float, float]:
    """The second of two calls: what it gave, its seconds, and the GiB that it had at most."""
    what()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began_s = clock_s(device)
    found = what()
    seconds = clock_s(device) - began_s
    return found, seconds, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


@torch.inference_mode()
def measure(subject: Subject, device: torch.device) -> dict[str, Any]:
    """Seconds and peak memory of each part, every window being merged by twos."""
    own, num_frames = coder(subject, device), subject.shape.num_frames
    latent = torch.randn(1, subject.geometry.latent_channels, *subject.grid, device=device)
    video, preview_s, preview_gib = timed(device, lambda: own.preview(latent))
    _, compare_s, _ = timed(device, lambda: likeness((video / 2 + 0.5).clamp(0, 1), 3))
    merged = vgdfr.scan([[1.0] * num_frames], num_frames, 0.5, by_fours=False)
    left, merge_s, _ = timed(device, lambda: merge(video, merged))
    again, encode_s, encode_gib = timed(device, lambda: own.latent_of(left))
    frames = torch.randint(0, 255, (vgdfr.num_kept(merged), subject.shape.height, subject.shape.width, 3), dtype=torch.uint8)
    began_s = time.perf_counter()
    num_made = sum(len(run) for run in restored([frames.numpy()], merged, Motion(), device)) - len(frames)
    return {
        "model": subject.name,
        "shape": [num_frames, subject.shape.height, subject.shape.width],
        "latents": [subject.grid[0], again.shape[2]],
        "preview_s": preview_s,
        "compare_s": compare_s,
        "merge_s": merge_s,
        "encode_s": encode_s,
        "peak_gib": max(preview_gib, encode_gib),
        "compress_s": preview_s + compare_s + merge_s + encode_s,
        "restore_s": time.perf_counter() - began_s,
        "num_restored": num_made,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+", choices=sorted(SUBJECTS))
    parser.add_argument("--size", help="FRAMESxHEIGHTxWIDTH, for all of them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    rows = []
    for name in options.subjects:
        subject = SUBJECTS[name]
        if options.size:
            shape = VideoShape(*map(int, options.size.split("x")))
            subject = Subject(subject.name, shape, subject.stock_steps, subject.stock_branches, subject.branches)
        rows.append(measure(subject, torch.device(options.device)))
        print(rows[-1], flush=True)
        save(options.out, "vgdfr", {"rows": rows})


if __name__ == "__main__":
    main()
