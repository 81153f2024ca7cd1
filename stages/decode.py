"""The last phase of a clip: latent to frames to an mp4 on disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.types import Clip
from stages.denoise import Boundary
from stages.models.base import Model
from stages.video import Frames, write_mp4


def decode(model: Model, boundary: Boundary, path: Path, fps: int) -> Clip:
    """Decode a finished latent and write it to ``path``, whole or not at all, each run of frames as soon as it is ready.

    Seconds waited for frames are ``decode_s``, the others ``encode_s``. Raises RuntimeError when stages are still to be run.
    """
    if boundary.decision is None or boundary.stage != len(boundary.decision.action.stages):
        raise RuntimeError(f"only a finished latent can be decoded; this one has run {boundary.stage} of its stages")
    started_s = time.perf_counter()
    runs = _Timed(model.decode(boundary.x))
    write_mp4(runs, path, fps)
    timings_s = {"decode_s": runs.waited_s, "encode_s": time.perf_counter() - started_s - runs.waited_s}
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Clip(str(path), path.stat().st_size, sha256, timings_s)


class _Timed:
    """An iterator that counts the seconds its source takes."""

    def __init__(self, source: Iterator[Frames]) -> None:
        self._source, self.waited_s = source, 0.0

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        started_s = time.perf_counter()
        try:
            return next(self._source)
        finally:
            self.waited_s += time.perf_counter() - started_s
