"""The last phase of a clip: latent to frames to an mp4 on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from orchestrator.types import Clip
from orchestrator.vgdfr import num_kept
from stages.denoise import Boundary
from stages.models.base import Model
from stages.restore import Interpolator, Motion, restored
from stages.video import Frames, write_mp4


def decode(model: Model, boundary: Boundary, path: Path, fps: int, made: Interpolator | None = None) -> Clip:
    """Decode a finished latent and write it to ``path``, whole or not at all. Frames that were merged are ``made`` again.

    A run of frames is encoded while the next is decoded: ``decode_s`` are the seconds of decoding, ``restore_s`` of making
    frames where any were merged, ``encode_s`` what encoding adds to them. Raises RuntimeError when stages are still to be run.
    """
    if boundary.decision is None or boundary.stage != len(boundary.decision.action.stages):
        raise RuntimeError(f"only a finished latent can be decoded; this one has run {boundary.stage} of its stages")
    started_s = time.perf_counter()
    decoded, merged, made = _Timed(model.decode(boundary.x)), boundary.decision.merged, made or Motion()
    runs = decoded if merged is None else _Timed(restored(decoded, merged, made, model.device))
    write_mp4(_ahead(runs, model.device), path, fps)
    timings_s = {"decode_s": decoded.spent_s, "encode_s": max(0.0, time.perf_counter() - started_s - runs.spent_s)}
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    clip = Clip(str(path), path.stat().st_size, sha256, timings_s, boundary.past.tflops or None, attended=boundary.past.attended)
    if merged is None:
        return clip
    timings_s["restore_s"] = runs.spent_s - decoded.spent_s
    return dataclasses.replace(clip, num_restored=merged.num_frames - num_kept(merged), restored_by=made.name)


def _ahead(source: Iterator[Frames], device: torch.device) -> Iterator[Frames]:
    """The same runs, each next one made by another thread while this one is in use."""
    with ThreadPoolExecutor(max_workers=1, initializer=_use, initargs=(device,)) as pool:
        coming = pool.submit(next, source, None)
        while (run := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield run


def _use(device: torch.device) -> None:
    """Each thread has a current GPU of its own, and launches on that."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class _Timed:
    """An iterator that counts the seconds its source takes."""

    def __init__(self, source: Iterator[Frames]) -> None:
        self._source, self.spent_s = source, 0.0

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        started_s = time.perf_counter()
        try:
            return next(self._source)
        finally:
            self.spent_s += time.perf_counter() - started_s
