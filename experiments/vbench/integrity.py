"""Before anything is scored: is every video there, whole, of the length it should have, and nothing else beside it?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from experiments.vbench.view import Video, View, plan_view
from orchestrator.paths import RunPaths, file_name

NUM_THREADS = 8
"""Opening files waits for the disk more than it computes."""
MAX_S = 5.0
"""VBench is for clips under five seconds, VBench-Long for the others."""
SHOWN = 5


@dataclass(frozen=True)
class Flaw:
    """``name`` is the video's in the view, ``video`` the run's own file, relative to the run."""

    name: str
    video: str
    reason: str


@dataclass(frozen=True)
class Integrity:
    """What :func:`check` found for one arm and suite."""

    suite: str
    digest: str
    arm: str
    expected: int
    """Videos that the suite asks for."""
    missing: tuple[str, ...]
    """Names of those that the run has not made."""
    extra: tuple[str, ...]
    """Files, relative to the run, that no record accounts for: in the view, or beside the arm's videos."""
    broken: tuple[Flaw, ...]
    """Gone, cut short or unreadable."""
    wrong_frames: tuple[Flaw, ...]
    num_extended: int
    num_unused: int
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.missing or self.extra or self.broken or self.wrong_frames)

    @property
    def num_sound(self) -> int:
        return self.expected - len(self.missing) - len(self.broken) - len(self.wrong_frames)

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """Of the videos that are there and must not be scored."""
        return (*self.broken, *self.wrong_frames)

    @property
    def unsound(self) -> frozenset[str]:
        """Their names."""
        return frozenset(flaw.name for flaw in self.flaws)

    def as_json(self) -> dict[str, Any]:
        """Every flaw by name, with the counts."""
        counts = {kind: len(getattr(self, kind)) for kind in KINDS}
        return {"ok": self.ok, "num_sound": self.num_sound, "counts": counts, **asdict(self)}

    def lines(self) -> list[str]:
        """For people: one line in all, one per kind of flaw with its count and the first few, then the notes."""
        told = [f"{self.arm}: {self.num_sound:,} of {self.expected:,} videos of {self.suite} ({self.digest}) are sound"]
        for kind, what in KINDS.items():
            found = [f"{flaw.name} ({flaw.reason})" if isinstance(flaw, Flaw) else flaw for flaw in getattr(self, kind)]
            if found:
                more = f", and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
                told.append(f"{len(found):,} {what}: {', '.join(found[:SHOWN])}{more}")
        return [*told, *self.notes]


KINDS = {"missing": "missing", "extra": "extra files", "broken": "broken", "wrong_frames": "of the wrong length"}


def check(run: RunPaths | Path, suite: str, arm: str, deep: bool = False) -> Integrity:
    """Look at every video that a suite asks of one arm; touches nothing. ``deep``: decode them instead of reading their packets.

    Raises ConfigError for an unknown suite or arm; everything else is in what it returns.
    """
    return check_view(plan_view(run, suite, arm), deep)


def check_view(view: View, deep: bool = False) -> Integrity:
    """:func:`check` of a view."""
    there = [video for video in view.videos.values() if video.record is not None]
    found = _looked(there, deep)
    return Integrity(
        suite=view.suite.name,
        digest=view.suite.digest,
        arm=view.arm,
        expected=len(view.videos),
        missing=view.missing,
        extra=tuple(_extra(view)),
        broken=tuple(flaw for kind, flaw in found if kind == "broken"),
        wrong_frames=tuple(flaw for kind, flaw in found if kind == "wrong_frames"),
        num_extended=view.num_extended,
        num_unused=view.num_unused,
        notes=tuple(_notes(view, there)),
    )


def flaws_of(videos: Iterable[Video]) -> tuple[Flaw, ...]:
    """Of videos as they come: those that are there and not whole, or not as long as they should be."""
    return tuple(flaw for _, flaw in _looked(videos, False))


def _looked(videos: Iterable[Video], deep: bool) -> list[tuple[str, Flaw]]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return [flaw for flaw in pool.map(lambda video: _look(video, deep), videos) if flaw is not None]


def _look(video: Video, deep: bool) -> tuple[str, Flaw] | None:
    """The kind of flaw and the flaw, or None for a sound video."""
    record = video.record
    if record is None or video.source is None:
        return None
    try:
        frames = count_frames(video.source, record.num_bytes, deep)
    except ValueError as error:
        return "broken", Flaw(video.name, record.video, str(error))
    if frames == record.num_frames:
        return None
    return "wrong_frames", Flaw(video.name, record.video, f"{frames} frames, not {record.num_frames}")


def count_frames(path: Path, num_bytes: int = 0, deep: bool = False) -> int:
    """Frames of a video file. Raises ValueError, without the path, for one that is gone, cut short or unreadable.

    ``num_bytes``: what its record says it has; 0: unknown.
    """
    if not path.is_file():
        raise ValueError("its file is gone")
    if num_bytes and (there := path.stat().st_size) != num_bytes:
        raise ValueError(f"{there:,} bytes, not the {num_bytes:,} of its record")
    try:
        with av.open(str(path)) as container:
            return _decoded(container) if deep else _packets(container)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"not a whole video: {getattr(error, 'strerror', None) or error}") from error


def _packets(container: Any) -> int:
    """Frames by their packets, which reads all of the file and decodes none of it."""
    stream = container.streams.video[0]
    found = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)
    if found < stream.frames:
        raise ValueError(f"cut short: {found} of {stream.frames} frames are there")
    return found


def _decoded(container: Any) -> int:
    decoder = container.streams.video[0].codec_context
    if decoder is None:
        raise ValueError("not a whole video: its header is torn")
    decoder.options = {"err_detect": "explode"}
    return sum(1 for _ in container.decode(video=0))


def _extra(view: View) -> Iterator[str]:
    """Strangers in the view, which VBench would take the suffix of, and videos of the arm that no record knows."""
    if view.folder.is_dir():
        wanted = {name for name, video in view.videos.items() if video.record is not None}
        names = sorted(path.name for path in view.folder.iterdir())
        yield from (view.paths.relative(view.folder / name) for name in names if not _expected(view, name, wanted))
    yield from sorted(_unrecorded(view))


def _expected(view: View, name: str, wanted: set[str]) -> bool:
    return name in wanted and (view.folder / name).is_symlink()


def _unrecorded(view: View) -> Iterator[str]:
    """Drafts of a decoder have hidden names, records beside videos end in .json."""
    for folder, _, names in os.walk(view.paths.videos / file_name(view.arm)):
        for name in names:
            where = view.paths.relative(Path(folder) / name)
            if not name.startswith(".") and not name.endswith(".json") and where not in view.recorded:
                yield where


def _notes(view: View, there: Sequence[Video]) -> Iterator[str]:
    if view.num_extended:
        yield f"{view.num_extended:,} videos are of longer forms of their prompts: say so beside the scores"
    lengths = {record.num_frames / record.fps for video in there if (record := video.record)}
    if lengths and max(lengths) >= MAX_S:
        yield f"clips last up to {max(lengths):.2f} s; VBench is meant for less than {MAX_S:g} s, VBench-Long for more"
