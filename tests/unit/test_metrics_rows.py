"""Rows of quality.jsonl: lines add up, what is known is not measured again, what changed is, and nothing is lost."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from experiments.metrics import completing, measure
from experiments.metrics.completing import Measurements, Wish, broken, complete, wish_of
from experiments.metrics.likeness import compare
from experiments.metrics.measure import Job
from experiments.metrics.names import METRICS, resolve
from experiments.metrics.quality import Row, current, load_quality, values_of
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_record, make_run, quality_row, read_video, write_video

BOTH = ("psnr", "ssim")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts under three arms, with videos that are what their records say."""
    names = [(arm, prompt) for arm in ("full", "dvg", "other") for prompt in ("still-circle", "fast-square")]
    return make_run(tmp_path_factory.mktemp("run"), [make_record(arm, prompt) for arm, prompt in names]).root


@pytest.fixture
def ledger(run: Path, tmp_path: Path) -> Ledger:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    return Ledger(RunPaths(tmp_path / "run"))


def measured(ledger: Ledger, names: tuple[str, ...] = BOTH, against: str | None = "full") -> tuple[list[Row], list[str]]:
    """Complete the run: its rows, and the videos that were measured on the way."""
    done: list[str] = []
    measurements = Measurements(ledger, Wish(names, against))
    complete(measurements, ledger.records(), lambda row: done.append(f"{row['arm']}/{row['prompt_id']}"))
    return measurements.rows(ledger.records()), done


def damaged(ledger: Ledger, record: Record, act: Callable[[Path], object]) -> None:
    act(ledger.paths.root / record.video)


def of(ledger: Ledger, arm: str, prompt: str = "still-circle") -> Record:
    return next(r for r in ledger.records() if (r.arm, r.prompt_id) == (arm, prompt))


def test_rows_hold_the_figures_of_the_files_beside_the_reference_of_the_same_prompt(ledger: Ledger) -> None:
    rows, done = measured(ledger)
    assert len(rows) == len(done) == 4
    for row in rows:
        video, reference = (
            read_video(ledger.paths.root / of(ledger, arm, row["prompt_id"]).video) for arm in (row["arm"], "full")
        )
        assert values_of(row) == pytest.approx(compare(video, reference), rel=1e-6)
        assert (row["reference_arm"], row["unavailable"]) == ("full", {})


def test_what_is_known_is_not_measured_again_and_what_is_new_adds_up(ledger: Ledger) -> None:
    first, _ = measured(ledger)
    lines = ledger.paths.quality.read_text()
    with ledger.paths.quality.open("a") as file:
        file.write('{"item_key": "torn')
    assert measured(ledger) == (first, [])
    ledger.paths.quality.write_text(lines)
    rows, done = measured(ledger, ("psnr", "flicker"))
    assert len(done) == 6, "the reference's own videos flicker too"
    assert {tuple(values_of(row)) for row in rows} == {("psnr", "ssim", "flicker"), ("flicker",)}
    assert ledger.paths.quality.read_text().startswith(lines)
    assert load_quality(ledger.paths) == rows


def test_a_line_torn_by_a_crash_does_not_take_the_next_one_with_it(ledger: Ledger) -> None:
    first, _ = measured(ledger)
    data = ledger.paths.quality.read_bytes()
    ledger.paths.quality.write_bytes(data[:-20])
    again, done = measured(ledger)
    assert len(done) == 1
    assert sorted(again, key=str) == sorted(first, key=str) == sorted(load_quality(ledger.paths), key=str)


@pytest.mark.parametrize("line", ['{"item_key": nonsense}', '{"psnr": 1.0}', "[1, {}]"])
def test_a_line_that_is_no_row_counts_as_not_measured(ledger: Ledger, line: str) -> None:
    rows, _ = measured(ledger)
    lines = ledger.paths.quality.read_text().splitlines()
    ledger.paths.quality.write_text("\n".join([line, *lines[1:]]) + "\n")
    again, done = measured(ledger)
    assert len(done) == 1
    assert sorted(again, key=str) == sorted(rows, key=str)


def test_only_a_video_made_again_or_compared_with_one_is_measured_again(ledger: Ledger) -> None:
    measured(ledger, ("psnr", "flicker"))
    records = [dataclasses.replace(r, sha256="again") if r == of(ledger, "full") else r for r in ledger.records()]
    ledger._records = {r.item_key: r for r in records}
    assert len(current(load_quality(ledger.paths), records)) == 5
    rows, done = measured(ledger, ("psnr", "flicker"))
    assert done == ["dvg/still-circle", "full/still-circle", "other/still-circle"]
    assert {row["reference_sha256"] for row in rows if row["prompt_id"] == "still-circle"} == {None, "again"}
    assert all(len(values_of(row)) == (1 if row["arm"] == "full" else 2) for row in rows)


def test_another_reference_has_the_last_word_until_the_first_is_asked_for_again(ledger: Ledger) -> None:
    first, _ = measured(ledger)
    rows, done = measured(ledger, BOTH, "dvg")
    assert {row["reference_arm"] for row in rows} == {"dvg", None}
    assert len(done) == 4
    assert {row["reference_arm"] for row in load_quality(ledger.paths)} == {"dvg", "full"}
    again, done = measured(ledger)
    assert ([values_of(row) for row in again if row["reference_arm"]], done) == ([values_of(row) for row in first], [])
    assert {row["reference_arm"] for row in load_quality(ledger.paths) if row["arm"] == "other"} == {"full"}


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def short(path: Path) -> None:
    write_video(read_video(path)[:-1], path)


def long(path: Path) -> None:
    write_video(read_video(path).repeat(2, axis=0), path)


def small(path: Path) -> None:
    write_video(read_video(path)[:, :32, :32], path)


DAMAGES = {
    "is not there": Path.unlink,
    "no whole video": torn,
    "has 8 frames, not 9": short,
    "has 18 frames": long,
    "is 32x32": small,
}


@pytest.mark.parametrize("why", DAMAGES)
def test_a_video_that_is_not_what_its_record_says_is_named_counted_and_measured_once_it_is_back(ledger: Ledger, why: str) -> None:
    record = of(ledger, "dvg")
    path = ledger.paths.root / record.video
    good = path.read_bytes()
    damaged(ledger, record, DAMAGES[why])
    rows, _ = measured(ledger, ("psnr", "flicker"))
    [(row, told)] = broken(rows)
    assert (row["item_key"], values_of(row)) == (record.item_key, {"frames_ok": 0.0})
    assert why in told
    assert record.video in told
    assert str(ledger.paths.root) not in told
    assert len(rows) == 6
    assert measured(ledger, ("psnr", "flicker"))[1] == ["dvg/still-circle"], "looked at again, and only this one"
    path.write_bytes(good)
    rows, _ = measured(ledger, ("psnr", "flicker"))
    assert not broken(rows)
    assert [set(values_of(row)) for row in rows if row["item_key"] == record.item_key] == [{"psnr", "flicker", "frames_ok"}]


def test_nothing_is_known_any_more_of_a_video_that_broke_after_it_was_measured(ledger: Ledger) -> None:
    measured(ledger)
    record = of(ledger, "dvg")
    damaged(ledger, record, torn)
    rows, _ = measured(ledger, (*BOTH, "flicker"))
    [(row, _why)] = broken(rows)
    assert (row["item_key"], values_of(row)) == (record.item_key, {"frames_ok": 0.0})
    assert row in load_quality(ledger.paths)


@pytest.mark.parametrize("why", DAMAGES)
def test_what_needs_no_reference_is_measured_though_the_reference_is_broken(ledger: Ledger, why: str) -> None:
    damaged(ledger, of(ledger, "full"), DAMAGES[why])
    rows, _ = measured(ledger, ("ssim", "flicker"))
    for row in rows:
        if row["prompt_id"] == "still-circle" and row["arm"] != "full":
            assert list(values_of(row)) == ["flicker"]
            assert why in row["unavailable"]["ssim"]
            assert "of the reference: videos/full" in row["unavailable"]["ssim"]
    assert [row["arm"] for row, _ in broken(rows)] == ["full"]


def test_a_video_without_a_partner_says_so(ledger: Ledger) -> None:
    ledger._records.pop(of(ledger, "full").item_key)
    rows, _ = measured(ledger)
    lonely = [row for row in rows if row["prompt_id"] == "still-circle"]
    assert len(lonely) == 2
    assert all(set(row["unavailable"]) == set(BOTH) and row["reference_arm"] is None for row in lonely)
    lines = ledger.paths.quality.read_text()
    measured(ledger)
    assert ledger.paths.quality.read_text() == lines


def test_a_video_whose_measuring_fails_costs_no_other(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(job: Job) -> Row:
        if job.record.arm == "dvg":
            raise RuntimeError("CUDA out of memory")
        return measure.measure(job)

    monkeypatch.setattr(completing, "measure", fragile)
    measurements = Measurements(ledger, Wish(BOTH, "full"))
    lost = complete(measurements, ledger.records())
    assert [(one.record.arm, one.why) for one in lost] == [("dvg", "RuntimeError: CUDA out of memory")] * 2
    assert {row["arm"] for row in measurements.rows(ledger.records())} == {"other"}


def test_a_file_that_a_file_system_does_not_give_is_no_broken_video(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that goes between two looks, or a disk that fails: PyAV's errors are the system's then."""

    def opened(*arguments: object, **options: object) -> None:
        raise av.error.OSError(errno.ESTALE, "Stale file handle")

    assert {row["frames_ok"] for row in measured(ledger, ("frames_ok",))[0]} == {1.0}
    ledger.paths.quality.unlink()
    monkeypatch.setattr("stages.video.av.open", opened)
    measurements = Measurements(ledger, Wish(("frames_ok",), None))
    assert ["Stale file handle" in one.why for one in complete(measurements, ledger.records())] == [True] * 6
    assert load_quality(ledger.paths) == []


def test_every_metric_of_an_ordinary_video_has_a_number_or_a_reason(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVG_LPIPS_WEIGHTS", str(ledger.paths.root))
    rows, _ = measured(ledger, resolve(["all"]))
    for row in rows:
        names = {name for name, metric in METRICS.items() if row["arm"] != "full" or not metric.of_reference}
        assert values_of(row).keys() | row["unavailable"].keys() == names
        assert not values_of(row).keys() & row["unavailable"].keys()
    assert {why for row in rows for name, why in row["unavailable"].items() if name == "latent_cosine"} == set()


def test_a_row_of_an_older_run_is_read_as_it_is(tmp_path: Path) -> None:
    paths, records = RunPaths(tmp_path), [make_record("full"), make_record("dvg")]
    paths.quality.write_text(json.dumps(quality_row(records[1])) + "\n")
    [row] = current(load_quality(paths), records)
    assert values_of(row) == {"psnr": 27.5, "ssim": 0.91}


@pytest.mark.parametrize(
    "spec, names, against",
    [
        ({}, BOTH, "full"),
        ({"metrics": {"names": ["flicker"], "against": "dvg"}}, ("flicker",), "dvg"),
        ({"metrics": {"names": []}}, (), "full"),
    ],
)
def test_the_spec_says_what_is_wished_for(spec: dict[str, Any], names: tuple[str, ...], against: str) -> None:
    whole = {"reference": "full", "arms": [{"name": "full"}, {"name": "dvg", "weights": "here"}], **spec}
    wish = wish_of(whole)
    assert (wish.names, wish.against, wish.weights) == (names, against, {"full": None, "dvg": "here"})
    with pytest.raises(ValueError, match=r"arm 'dgv' is not one of the run's; arms: full, dvg"):
        wish_of(whole, against="dgv")


def test_memory_does_not_grow_with_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    frame = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    place = tmp_path / "0.mp4"
    place.touch()

    def peak(num_frames: int) -> int:
        monkeypatch.setattr(measure, "read_frames", lambda path: (frame.copy() for _ in range(num_frames)))
        record = make_record("dvg", num_frames=num_frames, height=64, width=64)
        names = ("psnr", "latent_cosine", "flicker", "motion", "static")
        monkeypatch.setattr(measure.latents, "encoder", lambda *_: lambda video: video.mean((3, 4)))
        tracemalloc.start()
        row = measure.measure(Job(record, record, names, place, place))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert row["flicker"] == 1.0
        assert row["latent_cosine"] == pytest.approx(1.0)
        return held

    compare(frame[None], frame[None])  # imports are not counted
    short, long = peak(49), peak(201)
    assert long < short + 40 * frame.nbytes, "152 frames more"
