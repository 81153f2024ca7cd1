"""Video files: H.264 in mp4, written whole or not at all, the same bytes for the same frames."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

Frames = np.ndarray[Any, np.dtype[np.uint8]]
"""``[F, H, W, 3]``, RGB."""

ENCODER_OPTIONS = {"crf": "10", "preset": "medium", "x264-params": "mbtree=0"}
"""Near-lossless. x264's macroblock tree gives other bytes from run to run on AVX-512 machines, even on one thread."""


def write_mp4(frames: Frames | Iterable[Frames], path: Path, fps: int) -> None:
    """H.264, yuv420p, index first (plays while it loads); renamed onto ``path`` once it is on disk.

    ``frames`` come all at once or in runs. One encoder thread and no time stamps, so the bytes depend on the frames alone,
    not on their runs. Raises ValueError for other shapes, for runs of different sizes and for no frames at all.
    """
    runs = _checked([frames] if isinstance(frames, np.ndarray) else frames)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        _encode(runs, temporary, fps)
        _flush_to_disk(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_to_disk(path.parent)


def _checked(runs: Iterable[Frames]) -> Iterator[Frames]:
    size: tuple[int, ...] = ()
    for run in runs:
        if run.ndim != 4 or run.shape[3] != 3 or run.dtype != np.uint8 or not run.size:
            raise ValueError(f"frames must be uint8 [F, H, W, 3], not {run.dtype} {list(run.shape)}")
        if run.shape[1] % 2 or run.shape[2] % 2:
            raise ValueError(f"yuv420p needs an even height and width, not {run.shape[1]}x{run.shape[2]}")
        size = size or run.shape[1:3]
        if run.shape[1:3] != size:
            raise ValueError(f"the runs of one video have one size, not {size[0]}x{size[1]} and {run.shape[1]}x{run.shape[2]}")
        yield run


def _encode(runs: Iterator[Frames], path: str, fps: int) -> None:
    first = next(runs, None)
    if first is None:
        raise ValueError("a video needs frames, and none came")
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=ENCODER_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = first.shape[1], first.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in itertools.chain(first, itertools.chain.from_iterable(runs)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _flush_to_disk(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_video(path: Path) -> Frames:
    """All frames of a video. Raises ValueError for a file that cannot be decoded to its end."""
    return np.stack(list(read_frames(path)))


def read_frames(path: Path) -> Iterator[Frames]:
    """The frames ``[H, W, 3]`` of a video, one by one. Raises ValueError where the file cannot be decoded further."""
    num_frames = 0
    try:
        with av.open(str(path)) as container:
            decoder = container.streams.video[0].codec_context
            if decoder is None:
                raise ValueError(f"{path} is no whole video: its header is torn")
            decoder.options = {"err_detect": "explode"}
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                num_frames += 1
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no whole video: {error}") from error
    if not num_frames:
        raise ValueError(f"{path} is no whole video: it has no frames")


def verify(path: Path, num_frames: int) -> str | None:
    """What is wrong with the file, or None when all of its ``num_frames`` frames decode."""
    if not Path(path).is_file():
        return f"{path} is not there"
    try:
        found = sum(1 for _ in read_frames(path))
    except ValueError as error:
        return str(error)
    return None if found == num_frames else f"{path} has {found} frames, not {num_frames}"
