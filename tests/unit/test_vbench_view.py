"""A run's videos under VBench's names, and what the check before scoring finds wrong with them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments.vbench.integrity import check, check_view
from experiments.vbench.names import MAX_NAME_BYTES, parse_name, stem_of, stems_of, video_name
from experiments.vbench.view import build_view, plan_view
from orchestrator.files import append_whole
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths, file_name
from orchestrator.prompts import prompt_id
from orchestrator.suite_files import load_suite
from orchestrator.types import Record
from tests.fakerun import make_record, moving_square, write_video

SUITE = load_suite("vbench-11")
NUM_FRAMES = 9


@pytest.fixture(scope="module")
def mp4s(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Real small videos: of the right length, one frame short, and the first cut in its middle."""
    folder = tmp_path_factory.mktemp("mp4s")
    write_video(moving_square(NUM_FRAMES, noise=20), folder / "good.mp4")
    write_video(moving_square(NUM_FRAMES - 1), folder / "short.mp4")
    found = {path.stem: path.read_bytes() for path in folder.iterdir()}
    return found | {"cut": found["good"][: len(found["good"]) * 6 // 10], "garbage": b"no video at all" * 50}


Row = dict[str, Any]
Make = Callable[..., RunPaths]


def row_of(prompt: str, seed: int, **more: Any) -> Row:
    return {"id": prompt_id(prompt), "prompt": prompt, "seed": seed, **more}


@pytest.fixture
def make(tmp_path: Path, mp4s: dict[str, bytes]) -> Make:
    """A run folder of these rows of its spec, each made under each arm."""

    def run(rows: list[Row], arms: tuple[str, ...] = ("full",), skip: tuple[tuple[str, int], ...] = ()) -> RunPaths:
        paths = RunPaths(tmp_path / "run")
        paths.root.mkdir(exist_ok=True)
        paths.config.write_text(yaml.safe_dump({"name": "r", "prompts": rows}))
        ledger = Ledger(paths)
        for row in rows:
            for arm in arms if (row["prompt"], row["seed"]) not in skip else ():
                record = dataclasses.replace(
                    make_record(arm, row["id"], row["seed"]), num_frames=NUM_FRAMES, prompt=row["prompt"]
                )
                video = paths.root / record.video
                video.parent.mkdir(parents=True, exist_ok=True)
                video.write_bytes(mp4s["good"])
                ledger.append(dataclasses.replace(record, num_bytes=len(mp4s["good"])))
        return paths

    return run


def whole(num_seeds: int = 5) -> list[Row]:
    return [row_of(prompt, seed) for prompt in SUITE.prompts for seed in range(num_seeds)]


def file_of(paths: RunPaths, prompt: str, seed: int = 0) -> Path:
    return paths.video("full", prompt_id(prompt), seed)


def first() -> str:
    return SUITE.entries[0].prompt


def test_every_official_name_is_read_back_and_fits_a_file_system() -> None:
    suite = load_suite("vbench-filtered")
    names = {video_name(prompt, i): (prompt, i) for prompt, entry in suite.prompts.items() for i in range(entry.num_videos)}
    assert len(names) == 6220
    assert {name: parse_name(name) for name in names} == names
    assert max(len(name.encode()) for name in names) <= MAX_NAME_BYTES


@given(st.text(min_size=1, max_size=60), st.integers(0, 99))
def test_any_prompt_that_can_be_a_name_is_read_back(prompt: str, index: int) -> None:
    if stem_of(prompt, "its-id") == prompt:
        assert parse_name(video_name(prompt, index)) == (prompt, index)


@pytest.mark.parametrize("prompt", ["a/b", "a\0b", "x" * 252, "é" * 130])
def test_a_prompt_that_can_be_no_name_goes_by_its_id(prompt: str) -> None:
    with pytest.raises(ValueError, match="is no file name"):
        video_name(prompt, 0)
    assert stem_of(prompt, "its-id") == "its-id"


@pytest.mark.parametrize("name", ["a cat.mp4", "a cat-0.avi", "a cat-x.mp4", "-0.mp4"])
def test_another_name_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="is not named"):
        parse_name(name)


def test_a_run_of_a_suite_is_linked_under_the_official_names(make: Make) -> None:
    paths = make(whole(), arms=("full", "dvg"))
    view = build_view(paths.root, "vbench-11", "full")
    assert {p.name for p in view.folder.iterdir()} == {video_name(p, i) for p in SUITE.prompts for i in range(5)}
    for prompt in SUITE.prompts:
        link = view.folder / video_name(prompt, 3)
        assert link.resolve() == file_of(paths, prompt, 3).resolve()
        assert not os.path.isabs(os.readlink(link))
    assert view.missing == ()
    assert json.loads(paths.vbench_suite("vbench-11").read_text())["digest"] == SUITE.digest
    assert check(paths, "vbench-11", "full").ok


def test_links_hold_when_the_run_is_moved(make: Make, tmp_path: Path) -> None:
    paths = make(whole(1))
    build_view(paths, "vbench-11", "full")
    moved = RunPaths(shutil.move(paths.root, tmp_path / "elsewhere"))
    assert (moved.vbench_view("vbench-11", "full") / video_name(first(), 0)).is_file()


def test_a_view_has_the_entries_of_the_suite_with_what_their_dimensions_need(make: Make) -> None:
    view = plan_view(make(whole()), "vbench-11", "full")
    assert tuple(line.entry for line in view.lines) == SUITE.entries
    (line,) = view.of("object_class")
    assert line.entry.auxiliary["object_class"]["object"] in line.entry.prompt
    assert [video.name for video in line.there] == [video_name(line.entry.prompt, i) for i in range(5)]
    assert {video.sha256 for video in line.videos} == {
        r.sha256 for r in Ledger(view.paths).records() if r.prompt == line.entry.prompt
    }


def test_a_prompt_of_two_entries_has_its_videos_in_both() -> None:
    suite = load_suite("vbench")
    twice = [p for p in suite.prompts if sum(entry.prompt == p for entry in suite.entries) == 2]
    assert len(twice) == 2
    assert all(
        "appearance_style" in suite.prompts[p].dimensions and "imaging_quality" in suite.prompts[p].dimensions for p in twice
    )


def test_indices_follow_the_seeds_of_the_spec_finished_or_not(make: Make) -> None:
    rows = [row_of(first(), seed) for seed in (42, 7, 99)]
    paths = make(rows, skip=((first(), 42),))
    (line, *_) = plan_view(paths, "vbench-11", "full").lines
    assert [(v.index, v.record and v.record.seed) for v in line.videos] == [(0, None), (1, 7), (2, 99), (3, None), (4, None)]


def test_a_view_follows_a_run_that_goes_on_and_forgets_what_no_longer_holds(make: Make) -> None:
    paths = make(whole(), skip=((first(), 1),))
    view = build_view(paths, "vbench-11", "full")
    late = video_name(first(), 1)
    assert late in view.missing
    assert not (view.folder / late).exists()
    (view.folder / "an old prompt-0.mp4").symlink_to("../gone.mp4")
    (view.folder / video_name(first(), 0)).unlink()
    (view.folder / video_name(first(), 0)).symlink_to("../other.mp4")
    make([row_of(first(), 1)])
    paths.config.write_text(yaml.safe_dump({"name": "r", "prompts": whole()}))
    append_whole(paths.records, b'{"item_key": "half a li', sync=False)
    again = build_view(paths, "vbench-11", "full")
    assert again.missing == ()
    assert {p.name for p in again.folder.iterdir()} == set(again.videos)
    assert all(p.is_file() for p in again.folder.iterdir())


def test_longer_prompts_are_saved_under_their_originals_and_told(make: Make) -> None:
    rows = [row_of(first(), s) | {"prompt": f"{first()}, in great detail", "original": first()} for s in range(5)]
    view = build_view(make(rows), "vbench-11", "full")
    assert (view.folder / video_name(first(), 4)).is_file()
    assert view.num_extended == 5
    assert "5 videos are of longer forms" in " ".join(check_view(view).lines())


def test_the_prompts_of_any_run_are_a_suite_of_their_own(make: Make) -> None:
    long, slash = "a very " + "long " * 60 + "prompt", "red/blue circle"
    rows = [row_of("a red circle", 0), row_of("a red circle", 1), row_of(long, 0), row_of(slash, 0)]
    rows.append(row_of("a red circle", 0) | {"id": "same-text-other-image"})
    view = build_view(make(rows), "custom", "full")
    stems = ["a red circle", prompt_id(long), prompt_id(slash), "same-text-other-image"]
    assert [line.videos[0].name for line in view.lines] == [f"{stem}-0.mp4" for stem in stems]
    assert [len(line.there) for line in view.lines] == [2, 1, 1, 1]
    assert "human_action" not in view.suite.dimensions
    assert "motion_smoothness" in view.suite.dimensions
    assert check_view(view).ok


@given(
    st.dictionaries(st.sampled_from(["a", "b", "a~2", "x y", "x/y", "a" * 300]), st.sampled_from(["a", "b", "x/y", "", "a~2"]))
)
def test_no_two_prompts_of_a_run_share_a_name_whatever_their_texts_and_ids(prompts: dict[str, str]) -> None:
    stems = stems_of(prompts)
    names = {video_name(stem, index) for stem in stems.values() for index in range(12)}
    assert len(names) == 12 * len(prompts)
    first = dict(list(prompts.items())[:2])
    assert stems_of(first) == {name: stems[name] for name in first}


def test_a_prompt_that_reads_as_the_id_of_another_has_videos_of_its_own(make: Make) -> None:
    rows = [row_of("red", 0) | {"id": "a"}, row_of("red", 0) | {"id": "b"}, row_of("b", 0) | {"id": "a/b"}]
    rows.append(row_of("b", 0) | {"id": "red"})
    view = build_view(make(rows), "custom", "full")
    assert [line.videos[0].name for line in view.lines] == ["red-0.mp4", "b-0.mp4", f"{file_name('a/b')}-0.mp4", "red~2-0.mp4"]
    assert len({path.resolve() for path in view.folder.iterdir()}) == 4
    assert check_view(view).ok


def test_what_is_new_since_an_earlier_view_is_linked_and_what_is_gone_is_not(make: Make) -> None:
    paths = make(whole(2), skip=((first(), 1),))
    before = build_view(paths, "vbench-11", "full")
    records = Ledger(make([row_of(first(), 1)])).records()
    paths.config.write_text(yaml.safe_dump({"name": "r", "prompts": whole(2)}))
    gone = next(record for record in records if record.prompt == SUITE.entries[1].prompt and record.seed == 0)
    view = build_view(paths, "vbench-11", "full", [record for record in records if record != gone], before)
    assert [video.name for video in view.since(before).videos.values() if video.record] == [video_name(first(), 1)]
    there = {name for name, video in view.videos.items() if video.record}
    assert {path.name for path in view.folder.iterdir()} == there
    assert video_name(gone.prompt, 0) not in there


def test_videos_that_a_suite_does_not_ask_for_are_counted_and_left_alone(make: Make) -> None:
    found = check(make([*whole(6), row_of("a red circle", 0)]), "vbench-11", "full")
    assert found.ok
    assert found.num_unused == len(SUITE.prompts) + 1


def test_missing_videos_are_named_and_counted(make: Make) -> None:
    found = check(make(whole(), skip=((first(), 2), (first(), 4))), "vbench-11", "full")
    assert found.missing == (video_name(first(), 2), video_name(first(), 4))
    assert not found.ok
    assert (found.expected, found.num_sound) == (55, 53)
    assert any(line.startswith("2 missing: ") and video_name(first(), 2) in line for line in found.lines())


def test_extra_files_are_named_whether_in_the_view_or_beside_the_videos(make: Make) -> None:
    paths = make(whole())
    view = build_view(paths, "vbench-11", "full")
    (view.folder / "notes.txt").write_text("x")
    (view.folder / video_name(first(), 0)).unlink()
    shutil.copy(file_of(paths, first()), view.folder / video_name(first(), 0))
    (view.folder / "another cat-0.mp4").write_text("x")
    file_of(paths, first(), 17).write_text("x")
    (file_of(paths, first()).parent / ".0.2.mp4").write_text("a draft")
    file_of(paths, first()).with_suffix(".json").write_text("{}")
    found = check_view(build_view(paths, "vbench-11", "full"))
    assert found.extra == tuple(
        [f"vbench/vbench-11/full/view/{name}" for name in sorted(("another cat-0.mp4", "notes.txt", video_name(first(), 0)))]
        + [paths.relative(file_of(paths, first(), 17))]
    )
    assert (view.folder / "notes.txt").is_file()


def _forget_size(paths: RunPaths) -> None:
    """As in a record that does not know how large its video is."""
    rows = [json.loads(line) | {"num_bytes": 0} for line in paths.records.read_text().splitlines()]
    paths.records.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_broken_videos_are_named_with_the_reason(make: Make, mp4s: dict[str, bytes], deep: bool, sized: bool) -> None:
    paths = make(whole())
    file_of(paths, first(), 0).write_bytes(mp4s["cut"])
    file_of(paths, first(), 1).write_bytes(mp4s["garbage"])
    file_of(paths, first(), 2).unlink()
    file_of(paths, first(), 3).write_bytes(b"")
    if not sized:
        _forget_size(paths)
    found = check_view(build_view(paths, "vbench-11", "full"), deep)
    assert [flaw.name for flaw in found.broken] == [video_name(first(), index) for index in range(4)]
    assert "gone" in found.broken[2].reason
    assert ("bytes, not the" in found.broken[0].reason) == sized
    assert found.broken[1].video == paths.relative(file_of(paths, first(), 1))
    assert found.unsound == {flaw.name for flaw in found.broken}
    assert (found.missing, found.extra, found.num_sound) == ((), (), 51)


def test_a_video_that_lost_its_last_bytes_is_cut_short(make: Make, mp4s: dict[str, bytes]) -> None:
    paths = make(whole())
    file_of(paths, first(), 1).write_bytes(mp4s["good"][:-8])
    _forget_size(paths)
    (flaw,) = check(paths, "vbench-11", "full").broken
    assert flaw.reason == "cut short: 8 of 9 frames are there"


def test_a_video_of_another_length_is_named_with_both(make: Make, mp4s: dict[str, bytes]) -> None:
    paths = make(whole())
    file_of(paths, first(), 1).write_bytes(mp4s["short"])
    _forget_size(paths)
    (flaw,) = check(paths, "vbench-11", "full").wrong_frames
    assert (flaw.name, flaw.reason) == (video_name(first(), 1), "8 frames, not 9")


def test_the_json_of_a_check_holds_every_flaw_and_its_count(make: Make, mp4s: dict[str, bytes]) -> None:
    paths = make(whole(), skip=((first(), 4),))
    file_of(paths, first(), 0).write_bytes(mp4s["cut"])
    told = json.loads(json.dumps(check(paths, "vbench-11", "full").as_json()))
    assert told["counts"] == {"missing": 1, "extra": 0, "broken": 1, "wrong_frames": 0}
    assert told["broken"][0]["name"] == video_name(first(), 0)
    assert (told["ok"], told["expected"], told["num_sound"], told["digest"]) == (False, 55, 53, SUITE.digest)


def test_long_clips_are_told_to_be_for_the_long_benchmark(make: Make) -> None:
    def slow(record: Record) -> Record:
        return dataclasses.replace(record, fps=1)

    paths = make(whole(1))
    view = plan_view(paths, "vbench-11", "full", [slow(record) for record in Ledger(paths).records()])
    assert "9.00 s" in check_view(view).notes[0]
    assert check(paths, "vbench-11", "full").notes == ()


@pytest.mark.parametrize(
    "suite, arm, told",
    [
        ("vbench-11", "ful", "arms"),
        ("vbench-10", "full", "11 to 944"),
        ("vbanch", "full", "custom"),
        ("vbench-i2v", "full", "VBENCH_I2V_DIR"),
    ],
)
def test_an_unknown_suite_or_arm_is_told_with_the_choices(make: Make, suite: str, arm: str, told: str) -> None:
    paths = make(whole(1), arms=("full", "arms"))
    with pytest.raises(ConfigError, match=told):
        plan_view(paths, suite, arm)


def test_a_run_without_videos_says_so(make: Make) -> None:
    with pytest.raises(ConfigError, match="no finished video"):
        plan_view(make([]), "vbench", "full")
