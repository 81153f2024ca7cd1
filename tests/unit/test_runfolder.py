"""Opening a run folder: whose it is, what it may become, and one that is behind a URL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from orchestrator import cli_sweep
from orchestrator.cli_sweep import SweepOptions, run_report, run_sweep
from orchestrator.ledger import Ledger, read_records
from orchestrator.mirror import Mirror
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths
from orchestrator.runfolder import RAY_JOB, default_work, explained_in_a_job, open_folder
from orchestrator.store import UrlStore
from tests.fakesweep import VideoWorker

URL = "memory://bucket/run"
Sweep = Callable[..., int]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """``dvg sweep`` of two prompts, with a worker that has no model."""
    monkeypatch.setattr("stages.worker.ClipWorker", lambda arms, **options: VideoWorker())
    monkeypatch.setattr(cli_sweep, "unknown_prompt_words", lambda prompts, arm: [])
    monkeypatch.setattr(cli_sweep, "conclude", lambda *arguments: None)

    def run(out: str | Path, *overrides: str, work: Path | None = None, force: bool = False, **more: Any) -> int:
        spec = tmp_path / "spec.yaml"
        data = {"name": "one", "prompts": ["a red circle", "a blue square"], "frames": 41, "tracking": {"enabled": False}}
        spec.write_text(yaml.safe_dump({**data, **more}))
        return run_sweep(spec, overrides, out, SweepOptions(local=True, work=work, force=force))

    return run


@pytest.fixture
def url() -> Iterator[UrlStore]:
    fsspec.filesystem("memory").store.clear()
    yield UrlStore(URL)
    fsspec.filesystem("memory").store.clear()


def keys(paths: RunPaths) -> dict[str, str]:
    """Item key by video, of what is recorded."""
    return {record.video: record.item_key for record in read_records(paths.records)}


def test_videos_of_other_settings_are_set_aside_by_force_and_nothing_is_overwritten(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    out, paths = tmp_path / "run", RunPaths(tmp_path / "run")
    sweep(out)
    sweep(out, "arms.kept.steps=12", "arms.dvg.steps=null")
    before = keys(paths)
    videos = {name: (out / name).read_bytes() for name in before}
    with pytest.raises(ConfigError, match=r"arm dvg made with other settings.*--force to set those videos aside"):
        sweep(out, "steps=40")
    assert keys(paths) == before

    assert sweep(out, "steps=40", force=True) == 0
    assert "2 videos of arm dvg, made with other settings, were moved to superseded/" in capsys.readouterr().out
    after = keys(paths)
    assert {video: key for video, key in after.items() if "/kept/" in video} == {v: k for v, k in before.items() if "/kept/" in v}
    assert after.keys() == before.keys()
    assert not {key for video, key in after.items() if "/dvg/" in video} & set(before.values())
    (aside,) = paths.superseded.iterdir()
    assert keys(RunPaths(aside)) == {video: key for video, key in before.items() if "/dvg/" in video}
    for name in keys(RunPaths(aside)):
        assert (aside / name).read_bytes() == videos[name]
        assert (aside / name).with_suffix(".json").is_file()
    assert sweep(out, "steps=40") == 0, "the folder is the new settings' now"


def test_force_finishes_what_a_crash_left_of_setting_aside(tmp_path: Path, sweep: Sweep) -> None:
    out = tmp_path / "run"
    sweep(out)
    (out / next(iter(keys(RunPaths(out))))).unlink()  # moved already, its record not yet taken out
    with pytest.raises(ConfigError, match="made with other settings"):
        sweep(out, "steps=40")
    assert sweep(out, "steps=40", force=True) == 0
    assert len(keys(RunPaths(out))) == 2


def test_a_video_finished_just_before_a_crash_is_not_overwritten_by_another_item_either(tmp_path: Path, sweep: Sweep) -> None:
    out = tmp_path / "run"
    sweep(out)
    RunPaths(out).records.write_bytes(b"")
    with pytest.raises(ConfigError, match="made with other settings"):
        sweep(out, "steps=40")
    sweep(out, "steps=40", force=True)
    assert len(list(RunPaths(out).superseded.rglob("*.mp4"))) == 2


def test_the_folder_of_another_sweep_is_refused_unless_forced(tmp_path: Path, sweep: Sweep) -> None:
    out = tmp_path / "run"
    sweep(out)
    other = {"name": "two", "prompts": ["a green star"]}
    with pytest.raises(ConfigError, match="is the run folder of the sweep 'one', not of 'two'"):
        sweep(out, **other)
    assert sweep(out, force=True, **other) == 0
    assert len(keys(RunPaths(out))) == 3, "the records that were there are kept"
    assert not RunPaths(out).superseded.exists()


def test_a_run_behind_a_url_has_its_videos_and_files_there_and_goes_on_from_there_alone(
    tmp_path: Path, sweep: Sweep, url: UrlStore
) -> None:
    assert sweep(URL, work=tmp_path / "a") == 0
    there = url.sizes("")
    assert {name for name in there if "/" not in name} == {
        "config.resolved.yaml",
        "manifest.json",
        "records.jsonl",
        "events.jsonl",
    }
    assert sorted(name.rpartition(".")[2] for name in there if name.startswith("videos/")) == ["json", "json", "mp4", "mp4"]
    assert not (tmp_path / "a" / "videos").exists()

    assert sweep(URL, work=tmp_path / "b", prompts=["a red circle", "a blue square", "a green star"]) == 0
    records = read_records(RunPaths(tmp_path / "b").records)
    assert len(records) == 3
    assert url.read("records.jsonl") == Ledger.lines(records)
    assert len(json.loads(url.read("manifest.json") or b"")["starts"]) == 2
    with open_folder(tmp_path / "a") as folder:  # a working folder leads to its URL
        assert folder.store.where == URL
        assert len(folder.ledger.records()) == 3


def test_the_report_behind_a_url_links_the_videos_beside_it_and_measures_them(
    tmp_path: Path, sweep: Sweep, url: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.worker.ClipWorker", lambda arms, **options: VideoWorker(size=144))
    whole = {"arms": {"full": {"planner": "full"}, "dvg": {}}, "reference": "full"}
    sweep(URL, work=tmp_path, **whole)
    monkeypatch.undo()
    run_report(tmp_path)
    page = (url.read("report.html") or b"").decode()
    for record in read_records(RunPaths(tmp_path).records):
        assert f'"{record.video}"' in page
    assert [json.loads(line)["psnr"] for line in (url.read("quality.jsonl") or b"").splitlines()] == [100.0, 100.0]


def test_a_lost_record_of_a_video_behind_a_url_is_adopted_and_a_lost_video_is_told(
    tmp_path: Path, sweep: Sweep, url: UrlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(URL, work=tmp_path / "a")
    url.remove("records.jsonl")
    assert sweep(URL, work=tmp_path / "b") == 0
    assert "(2 adopted from videos without a record)" in capsys.readouterr().out
    url.remove(next(name for name in url.sizes("videos") if name.endswith(".mp4")))
    with pytest.raises(ConfigError, match="1 of the run's recorded videos are gone"):
        sweep(URL, work=tmp_path / "b")


def test_force_sets_videos_behind_a_url_aside_too(tmp_path: Path, sweep: Sweep, url: UrlStore) -> None:
    sweep(URL, work=tmp_path)
    sweep(URL, "steps=40", work=tmp_path, force=True)
    aside = url.sizes("superseded")
    assert sum(name.endswith(".mp4") for name in aside) == 2
    assert any(name.endswith("/records.jsonl") for name in aside)


def test_a_failure_is_mirrored_until_its_item_is_made(tmp_path: Path, url: UrlStore) -> None:
    paths = RunPaths(tmp_path / "a")
    path = paths.failure("key1")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    mirror = Mirror(paths, url, print)
    mirror.copy()
    assert url.read("failures/key1.failure.json") == b"{}"
    path.unlink()
    mirror.copy()
    assert url.sizes("") == {}


def test_a_mirror_that_cannot_be_written_warns_once_and_is_told_at_the_end(
    tmp_path: Path, url: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, data: bytes) -> None:
        tried.append(name)
        raise RunError("no way there")

    def use() -> None:
        with Mirror(paths, url, told.append, every_s=0.01):
            while len(tried) < 3:
                pass

    tried: list[str] = []
    told: list[str] = []
    paths = RunPaths(tmp_path)
    paths.config.write_text("name: x")
    monkeypatch.setattr(url, "put", broken)
    with pytest.raises(RunError, match="no way there"):
        use()
    assert told == ["the run goes on, its records are copied later: no way there"]


def test_a_working_folder_serves_one_url(tmp_path: Path, sweep: Sweep, url: UrlStore) -> None:
    sweep(URL, work=tmp_path)
    with pytest.raises(ConfigError, match=f"is the working folder of {URL}"):
        sweep("memory://bucket/other", work=tmp_path)
    with pytest.raises(ConfigError, match="--work is for an --out that is a URL"):
        sweep(tmp_path / "run", work=tmp_path)
    assert default_work(URL) != default_work("memory://bucket/other")


def test_what_is_no_run_is_neither_reported_nor_made(tmp_path: Path, url: UrlStore) -> None:
    for place in (tmp_path / "none", "memory://bucket/none"):
        with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.resolved\.yaml"):
            run_report(place)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", ["--out", "--work"])
def test_a_relative_folder_in_a_ray_job_is_refused(
    tmp_path: Path, sweep: Sweep, url: UrlStore, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAY_JOB, "{}")
    with pytest.raises(ConfigError, match=f"{option} 'runs' must be absolute in a Ray job"):
        sweep("runs") if option == "--out" else sweep(URL, work=Path("runs"))


@pytest.mark.parametrize(
    "spec",
    [
        {"prompts": "no-such.txt"},
        {"prompts": ["x"], "weights": "no/such/folder"},
        {"prompts": ["x"], "image": "no-such.png"},
        {"prompts": ["x"], "lora": ["no-such.safetensors"]},
        None,
    ],
)
def test_a_file_that_a_ray_job_does_not_have_is_explained(
    tmp_path: Path, sweep: Sweep, spec: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        if spec is None:
            run_sweep(tmp_path / "no-such.yaml", [], tmp_path / "run", SweepOptions(local=True))
        else:
            sweep(tmp_path / "run", **spec)

    with pytest.raises(ConfigError) as told:
        run()
    assert "Ray job" not in str(told.value)
    monkeypatch.setenv(RAY_JOB, "{}")
    with pytest.raises(ConfigError, match="this is a Ray job: it sees the files of its --working-dir"):
        run()


def test_other_mistakes_in_a_ray_job_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake() -> None:
        with explained_in_a_job():
            raise ConfigError(["steps: must be at least 1"])

    monkeypatch.setenv(RAY_JOB, "{}")
    with pytest.raises(ConfigError) as told:
        mistake()
    assert told.value.mistakes == ("steps: must be at least 1",)
