"""How close a video is to the reference arm's video of the same prompt and seed: PSNR and SSIM.

Both are means over frames of the per-frame figure on RGB in [0, 1], as the caching and reduced-resolution papers report
them (SSIM: Wang et al. 2004, 11x11 Gaussian window, sigma 1.5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.files import append_whole, write_atomic
from orchestrator.paths import RunPaths
from orchestrator.types import Record

if TYPE_CHECKING:
    import torch

PSNR_CAP_DB = 100.0
"""PSNR of identical frames, so that every figure stays a finite number that JSON, CSV and MLflow can hold."""

FRAMES_AT_ONCE = 8
"""Bounds the memory of the Gaussian windows: a 720p clip never sits in memory as floats at once."""

ReadVideo = Callable[[Path], np.ndarray]
Row = dict[str, Any]


def compare(video: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """PSNR (dB, at most ``PSNR_CAP_DB``) and SSIM of two uint8 videos [F, H, W, 3].

    Raises ValueError when they differ in shape, hold no frame, or are no uint8 RGB videos.
    """
    _check(video, reference)
    chunks = [slice(start, start + FRAMES_AT_ONCE) for start in range(0, len(video), FRAMES_AT_ONCE)]
    psnr, ssim = zip(*(_per_frame(video[chunk], reference[chunk]) for chunk in chunks), strict=True)
    return {"psnr": float(np.concatenate(psnr).clip(max=PSNR_CAP_DB).mean()), "ssim": float(np.concatenate(ssim).mean())}


def compare_many(videos: np.ndarray, references: np.ndarray, device: str) -> list[dict[str, float]]:
    """:func:`compare` of each pair of videos [B, F, H, W, 3] on a device."""
    return [
        {"psnr": float(psnr.clip(max=PSNR_CAP_DB).mean()), "ssim": float(ssim.mean())}
        for psnr, ssim in (_per_frame(*pair, device) for pair in zip(videos, references, strict=True))
    ]


def _per_frame(frames: np.ndarray, reference: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """PSNR and SSIM of each frame [F]. torch is imported here, so that reading stored figures does not load it."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    ours, theirs = _tensor(frames).to(device), _tensor(reference).to(device)
    with torch.backends.cudnn.flags(allow_tf32=False):  # variances are small differences of large numbers
        psnr = peak_signal_noise_ratio(ours, theirs, data_range=1.0, reduction="none", dim=(1, 2, 3))
        ssim = structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
    return psnr.reshape(-1).cpu().numpy(), ssim.reshape(-1).cpu().numpy()


def _check(video: np.ndarray, reference: np.ndarray) -> None:
    if video.shape != reference.shape or video.ndim != 4 or not len(video):
        raise ValueError(f"videos of shape {video.shape} and {reference.shape}: both must be the same [F, H, W, 3], F > 0")
    if video.dtype != np.uint8 or reference.dtype != np.uint8 or video.shape[-1] != 3:
        raise ValueError(f"videos are {video.dtype} {video.shape} and {reference.dtype}: both must be uint8 [F, H, W, 3]")


def _tensor(frames: np.ndarray) -> torch.Tensor:
    """Float [F, 3, H, W] in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255.0


def quality_rows(
    records: Iterable[Record], reference_arm: str, read_video: Callable[[Record], np.ndarray], known: Iterable[Row] = ()
) -> Iterator[Row]:
    """One row per record that has a reference video of the same prompt, seed and shape; ``known`` rows are not redone.

    Lazy: a row is yielded as soon as it is computed. Each reference video is decoded once.
    """
    done = {_fingerprint(row) for row in known}
    cached: tuple[str, np.ndarray] | None = None
    for record, reference in pairs(records, reference_arm):
        row = _row(record, reference)
        if _fingerprint(row) in done:
            continue
        if cached is None or cached[0] != reference.item_key:
            cached = (reference.item_key, read_video(reference))
        yield row | compare(read_video(record), cached[1])


def pairs(records: Iterable[Record], reference_arm: str) -> list[tuple[Record, Record]]:
    """(record, reference) of the same prompt, seed and shape, neighbours sharing their reference."""
    records = sorted(records, key=lambda r: (r.prompt_id, r.seed, r.arm))
    references = {(r.prompt_id, r.seed, _shape(r)): r for r in records if r.arm == reference_arm}
    candidates = ((r, references.get((r.prompt_id, r.seed, _shape(r)))) for r in records if r.arm != reference_arm)
    return [(record, reference) for record, reference in candidates if reference is not None]


def _shape(record: Record) -> tuple[int, int, int]:
    return record.num_frames, record.height, record.width


def _row(record: Record, reference: Record) -> Row:
    return {
        "item_key": record.item_key,
        "arm": record.arm,
        "prompt_id": record.prompt_id,
        "seed": record.seed,
        "reference_arm": reference.arm,
        "sha256": record.sha256,
        "reference_sha256": reference.sha256,
    }


def _fingerprint(row: Row) -> tuple[str, str, str]:
    """The two files compared: a video made again is measured again."""
    return row["item_key"], row["sha256"], row["reference_sha256"]


def measure_quality(paths: RunPaths, records: Sequence[Record], reference_arm: str, read_video: ReadVideo) -> tuple[Row, ...]:
    """Measure what ``quality.jsonl`` does not hold yet, append it row by row, and return every row that applies.

    ``read_video`` maps an mp4's path to uint8 [F, H, W, 3]. A run killed in the middle loses at most one row.
    """
    wanted = {_fingerprint(_row(*pair)) for pair in pairs(records, reference_arm)}
    rows = [row for row in load_quality(paths) if _fingerprint(row) in wanted]
    write_atomic(paths.quality, "".join(_line(row) for row in rows))
    for row in quality_rows(records, reference_arm, lambda r: read_video(paths.root / r.video), tuple(rows)):
        append_whole(paths.quality, _line(row).encode(), sync=False)
        rows.append(row)
    return tuple(rows)


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def load_quality(paths: RunPaths) -> list[Row]:
    """Every whole row of ``quality.jsonl``; a line torn by a crash is left out, no file means no rows."""
    if not paths.quality.exists():
        return []
    lines = paths.quality.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]
