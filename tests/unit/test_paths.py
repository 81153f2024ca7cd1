"""One place knows the file names, and no text can make an unsafe one."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.paths import RunPaths, file_name, slug


@given(st.text(max_size=300))
def test_any_text_becomes_one_plain_file_name(text: str) -> None:
    for name in (file_name(text), slug(text)):
        assert Path(name).name == name
        assert name not in ("", ".", "..")
        assert not name.startswith(".")
        assert len(name) <= 100
        assert name.isascii()


@given(st.text(max_size=60), st.text(max_size=60))
def test_different_texts_have_different_names(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_every_clip_path_stays_below_the_videos_folder(arm: str, prompt_id: str) -> None:
    paths = RunPaths(Path("somewhere"))
    files = [
        paths.video(arm, prompt_id, 1),
        paths.sidecar(arm, prompt_id, 1),
        paths.staging(arm, prompt_id, 1, 1),
        paths.staging(arm, prompt_id, 1, 2),
    ]
    assert len(set(files)) == 4
    for path in files:
        assert path.is_absolute()
        assert path.parent.parent.parent == paths.videos
        assert ".." not in path.parts


def test_plain_names_stay_as_they_are() -> None:
    paths = RunPaths(Path("/r"))
    assert paths.video("dvg-budget0.5", "p1", 7) == Path("/r/videos/dvg-budget0.5/p1/7.mp4")
    assert paths.relative(paths.video("dvg", "p1", 7)) == "videos/dvg/p1/7.mp4"
    assert paths.failure("0123abcd") == Path("/r/failures/0123abcd.failure.json")
    assert slug("A red circle, drifting!").startswith("a-red-circle-drifting-")
