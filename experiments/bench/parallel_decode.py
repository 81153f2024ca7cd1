"""Decoding a latent of full size on one rank and on slices of all widths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.bench import single_gpu_models
from experiments.bench.parallel_cases import Subject, degrees
from experiments.bench.parallel_models import SINGLE
from experiments.bench.parallel_rig import Rig, Row, of_slices
from stages.models.adapter import to_frames
from stages.models.base import load

ABOUT_S = {"wan": 1.5, "hv": 17.0, "hv15": 4.0}
"""One decode on one GPU."""
LONG_S = 6.0
"""A decode as long as this is not repeated."""


def decode(rig: Rig, kind: str, subject: Subject) -> None:
    """Seconds from latent to frames on the host of rank 0, peak memory, and the largest difference to one rank's video."""
    torch.manual_seed(0)
    with torch.inference_mode():
        decoder = _decoder(rig, kind, subject)
        latent = _latent(rig, kind, subject)
        expected: list[Tensor] = []
        row = {"section": "decode", "model": subject.name, "grid": tuple(latent.shape[2:])}
        for degree in degrees(rig.num_ranks):
            wait_s = 0.0 if rig.is_tiny else 1.5 * ABOUT_S[kind] / degree
            rig.attempt({**row, "degree": degree}, wait_s, lambda: _decoded(rig, decoder, latent, degree, expected))  # noqa: B023


def _decoder(rig: Rig, kind: str, subject: Subject) -> Any:
    if rig.is_tiny:
        model: Any = load(subject.name, str(rig.folder / subject.name), str(rig.device), parts=frozenset({"vae"}))
        return model._decoder
    family = subject.geometry.family
    return _KINDS[family](single_gpu_models.vae(family))


def _wan(vae: Any) -> Any:
    from stages.models.wan_decoder import WanDecoder

    return WanDecoder(vae)


def _hunyuan(vae: Any) -> Any:
    from stages.models.hunyuan_vae import HunyuanDecoder

    return HunyuanDecoder(vae)


def _hunyuan15(vae: Any) -> Any:
    from stages.models.hunyuan15_vae import Hunyuan15Decoder

    return Hunyuan15Decoder(vae)


_KINDS = {"wan": _wan, "hunyuan": _hunyuan, "hunyuan15": _hunyuan15}


def _latent(rig: Rig, kind: str, subject: Subject) -> Tensor:
    grid = (3, 8, 8) if rig.is_tiny else single_gpu_models.SUBJECTS[SINGLE[kind]].grid
    generator = torch.Generator(rig.device).manual_seed(0)
    return torch.randn(1, subject.geometry.latent_channels, *grid, device=rig.device, generator=generator)


def _decoded(rig: Rig, decoder: Any, latent: Tensor, degree: int, expected: list[Tensor]) -> Row:
    """The first decode of a width is compared, and counts where it is long; short ones are repeated."""
    layout = rig.layout(degree)
    decoder.group = None if layout is None else layout.whole
    kept: list[Tensor] = []
    if rig.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    rig.settle()
    seconds = rig.series(lambda: _to_host(decoder, latent, kept), 1)
    peak = torch.cuda.max_memory_allocated() / 2**30 if rig.is_cuda else 0.0
    found: Row = {"num_runs": len(kept), "first_s": max(rig.gather(seconds[0])), "peak_gib": rig.gather(peak)}
    if kept:
        video = torch.cat([run.cpu() for run in kept], dim=2)
        found |= _compared(video, expected[0]) if expected else {}
        expected += [] if expected else [video]
    kept.clear()
    rig.tidy()
    found = rig.told(found)
    if found["first_s"] < LONG_S:
        rig.settle()
        seconds = rig.series(lambda: _to_host(decoder, latent), 2)
    by_rank = rig.gather(min(seconds))
    return {**found, "median_s": of_slices(by_rank, degree), "by_rank_s": by_rank}


def _compared(video: Tensor, expected: Tensor) -> Row:
    gap = (video - expected).abs()
    return {"max_gap": float(gap.max()), "mean_gap": float(gap.mean()), "distance": float(gap.norm() / expected.norm())}


def _to_host(decoder: Any, latent: Tensor, kept: list[Tensor] | None = None) -> None:
    """As the engine streams frames to the encoder; ``kept`` takes the video itself too."""
    for run in decoder.runs(latent):
        to_frames(run)
        if kept is not None:
            kept.append(run)
