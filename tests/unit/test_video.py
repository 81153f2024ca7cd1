"""Video files are whole, the same for the same frames, and a torn one is noticed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages import video
from stages.video import read_video, verify, write_mp4


def clip(num_frames: int = 13, height: int = 48, width: int = 64) -> video.Frames:
    """A bright disc that moves over a gradient."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for t in range(num_frames):
        disc = ((y - height / 2) ** 2 + (x - 10 - 3 * t) ** 2) < 80
        frames.append(np.stack([np.where(disc, 230, 40 + x), 60 + y, np.full_like(x, 90)], axis=-1))
    return np.stack(frames).astype(np.uint8)


@pytest.fixture(scope="module")
def whole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(clip(), path, fps=16)
        return path.read_bytes()


def test_a_video_comes_back_nearly_as_it_was(tmp_path: Path) -> None:
    write_mp4(clip(), tmp_path / "a.mp4", fps=16)
    error = read_video(tmp_path / "a.mp4").astype(float) - clip()
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 32  # the disc's edge loses colour to 4:2:0


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    texture = np.random.default_rng(0).normal(128, 25, (96, 160, 3))
    texture = (texture + np.roll(texture, 1, 0) + np.roll(texture, 1, 1)) / 3
    drifting = np.stack([texture[:, t : t + 96] for t in range(25)]).astype(np.uint8)
    files = set()
    for _ in range(12):
        write_mp4(drifting, tmp_path / "a.mp4", fps=16)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("ends", [(13,), (1, 5, 9, 13), (4, 13), tuple(range(1, 14))], ids=str)
def test_the_runs_that_frames_come_in_do_not_show(tmp_path: Path, whole: bytes, ends: tuple[int, ...]) -> None:
    frames = clip()
    write_mp4((frames[start:end] for start, end in pairwise((0, *ends))), tmp_path / "a.mp4", fps=16)
    assert (tmp_path / "a.mp4").read_bytes() == whole


def test_a_run_is_encoded_before_the_next_is_asked_for(tmp_path: Path) -> None:
    story: list[str] = []

    class Told(np.ndarray):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[np.ndarray]:  # type: ignore[type-arg]
            for frame in np.asarray(self):
                story.append("frame")
                yield frame

    def runs() -> Iterator[video.Frames]:
        for start in (0, 2):
            story.append("run")
            yield clip()[start : start + 2].view(Told)

    write_mp4(runs(), tmp_path / "a.mp4", fps=16)
    assert story == ["run", "frame", "frame"] * 2


@pytest.mark.parametrize("runs,words", [([], "none came"), ([(2, 16, 16, 3), (2, 16, 18, 3)], "16x16 and 16x18")])
def test_runs_that_make_no_video_are_refused_and_leave_nothing(tmp_path: Path, runs: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_mp4((np.zeros(shape, np.uint8) for shape in runs), tmp_path / "a.mp4", fps=16)
    assert not list(tmp_path.iterdir())


def test_browsers_can_play_it_while_it_loads(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(whole)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate, stream.frames) == (64, 48, 16, 13)
    assert whole.index(b"moov") < whole.index(b"mdat")


def test_a_whole_video_is_verified(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(whole)
    assert verify(tmp_path / "a.mp4", 13) is None


@settings(max_examples=60, deadline=None)
@example(0.0625)  # in the middle of the header
@given(st.floats(0.0, 0.999))
def test_a_torn_video_is_noticed_wherever_it_is_torn(whole: bytes, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torn.mp4"
        path.write_bytes(whole[: int(len(whole) * share)])
        assert verify(path, 13)


@pytest.mark.parametrize("length", [16, 600])
def test_a_video_with_a_hole_is_noticed(tmp_path: Path, whole: bytes, length: int) -> None:
    start = whole.index(b"mdat") + 1000
    (tmp_path / "a.mp4").write_bytes(whole[:start] + bytes(length) + whole[start + length :])
    assert verify(tmp_path / "a.mp4", 13)


def test_missing_short_and_other_files_are_named(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(whole)
    (tmp_path / "text.mp4").write_text("no video")
    assert "not there" in (verify(tmp_path / "none.mp4", 13) or "")
    assert "13 frames, not 17" in (verify(tmp_path / "a.mp4", 17) or "")
    assert "no whole video" in (verify(tmp_path / "text.mp4", 13) or "")


def test_a_failed_write_leaves_the_old_video_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old one")

    def stop(source: str | Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(video, "_flush_to_disk", stop)
    with pytest.raises(OSError, match="disk full"):
        write_mp4(clip(), path, fps=16)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape,word", [((3, 15, 16, 3), "even"), ((3, 16, 16, 4), "uint8"), ((0, 16, 16, 3), "uint8")])
def test_frames_that_cannot_be_written_are_refused(tmp_path: Path, shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        write_mp4(np.zeros(shape, np.uint8), tmp_path / "a.mp4", fps=16)
