"""The last phase of a clip: latent to frames to an mp4 on disk."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from orchestrator.types import Clip
from stages.denoise import Boundary
from stages.models.base import Model
from stages.video import write_mp4


def decode(model: Model, boundary: Boundary, path: Path, fps: int) -> Clip:
    """Decode a finished latent and write it to ``path``, whole or not at all; seconds as ``decode_s`` and ``encode_s``.

    Raises RuntimeError when stages are still to be run.
    """
    if boundary.decision is None or boundary.stage != len(boundary.decision.action.stages):
        raise RuntimeError(f"only a finished latent can be decoded; this one has run {boundary.stage} of its stages")
    started_s = time.perf_counter()
    frames = model.decode(boundary.x)
    decoded_s = time.perf_counter()
    write_mp4(frames, path, fps)
    timings_s = {"decode_s": decoded_s - started_s, "encode_s": time.perf_counter() - decoded_s}
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Clip(str(path), path.stat().st_size, sha256, timings_s)
