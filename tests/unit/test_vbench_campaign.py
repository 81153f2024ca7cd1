"""What an evaluation keeps of earlier ones, which arms and videos it looks at, and what it refuses. VBench itself is played."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.vbench import campaign, hiring, integrity, view
from experiments.vbench.campaign import Campaign, Options
from experiments.vbench.hiring import device_of
from experiments.vbench.outcome import ArmOutcome
from experiments.vbench.probe import VARIABLE, Environment
from experiments.vbench.process import Row, Video
from experiments.vbench.shards import ShardStore, Task, key_of
from orchestrator import cli_evaluate, cluster
from orchestrator.cli import app
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.suite_files import load_suite
from tests.fakerun import make_record, make_spec
from tests.fakevbench import PROMPTS, finished, loads, record_of, text_record, text_run, write_environment, write_weights

FLICKERING, MOTION = "temporal_flickering", "motion_smoothness"
FILTERED = "vbench-temporal-filtered"
NUM_FRAMES = make_record().num_frames


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter whose VBench is played, and a cache of weights; a video whose text says ``short`` lacks a frame."""
    monkeypatch.setenv(VARIABLE, write_environment(tmp_path / "env").python)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(
        integrity, "count_frames", lambda path, num_bytes=0, deep=False: NUM_FRAMES - ("short" in path.read_text())
    )
    return tmp_path / "env"


def measure(paths: RunPaths, dims: str = FLICKERING, told: list[str] | None = None, **more: Any) -> dict[str, ArmOutcome]:
    return Campaign(paths, Options(dims=dims, local=True, **more), [].append if told is None else told.append).run()


def results(paths: RunPaths, suite: str = "custom", arm: str = "full") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.vbench_results(suite, arm).read_text())
    return found


def filtered_run(root: Path, num_candidates: int = 25) -> RunPaths:
    """Twenty-five videos of a prompt of temporal flickering, of which every third moves, and one of another prompt."""
    suite = load_suite(FILTERED)
    prompt = next(entry.prompt for entry in suite.entries if FLICKERING in entry.dimensions)
    other = next(entry.prompt for entry in suite.entries if MOTION in entry.dimensions)
    records = [candidate(root, prompt, seed) for seed in range(num_candidates)]
    records.append(record_of(root, make_record("full", "other", prompt=other), "0.9"))
    rows = [{"id": "p0", "prompt": prompt, "seed": seed} for seed in range(25)] + [{"id": "other", "prompt": other, "seed": 0}]
    return finished(root, records, make_spec(records) | {"prompts": rows, "suite": {"name": FILTERED}})


def candidate(root: Path, prompt: str, seed: int) -> Any:
    return record_of(root, make_record("full", "p0", seed, prompt=prompt), f"{seed / 100} {'moving' if seed % 3 == 0 else ''}")


def indices(paths: RunPaths) -> list[str]:
    """Of the videos that temporal flickering's score is of."""
    return [Path(row["video_path"]).stem.rpartition("-")[2] for row in results(paths, FILTERED)[FLICKERING][1]]


def forget_weights(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("weights_left", [True, False])
def test_other_dimensions_later_leave_the_filtered_score_of_temporal_flickering_as_it_is(
    tmp_path: Path, weights_left: bool
) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree", MOTION)
    paths = filtered_run(tmp_path / "run")
    measure(paths)
    before = results(paths, FILTERED)[FLICKERING]
    if not weights_left:
        forget_weights(tmp_path)
        write_weights(tmp_path / "cache", MOTION)
    found = measure(paths, MOTION)["full"].dimensions[FLICKERING]
    assert results(paths, FILTERED)[FLICKERING] == before
    assert indices(paths) == ["1", "10", "11", "13", "14"]
    assert set(results(paths, FILTERED)) == {FLICKERING, MOTION}
    assert ("earlier start's filter" in found.note) is not weights_left


def test_without_its_weights_the_filters_earlier_verdicts_on_the_same_videos_count(tmp_path: Path, environment: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree")
    paths = filtered_run(tmp_path / "run")
    measure(paths)
    forget_weights(tmp_path)
    done = len(loads(environment))
    measure(paths)
    assert indices(paths) == ["1", "10", "11", "13", "14"]
    assert len(loads(environment)) == done


def test_a_score_of_the_first_five_stays_while_nobody_asks_for_the_filter(tmp_path: Path) -> None:
    paths = filtered_run(tmp_path / "run")
    measure(paths)
    write_weights(tmp_path / "cache", "dynamic_degree", MOTION)
    found = measure(paths, MOTION)["full"].dimensions[FLICKERING]
    assert indices(paths) == ["0", "1", "2", "3", "4"]
    assert "static or not" in found.note


def test_a_candidate_that_came_since_takes_the_filtered_score_out_until_it_is_judged(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree", MOTION)
    paths = filtered_run(tmp_path / "run", num_candidates=10)
    measure(paths)
    assert indices(paths) == ["1", "2", "4", "5", "7"]
    Ledger(paths).append(candidate(paths.root, Ledger(paths).records()[0].prompt, 10))
    assert measure(paths, MOTION)["full"].dimensions[FLICKERING].score is None
    assert FLICKERING not in results(paths, FILTERED)
    measure(paths)
    assert indices(paths) == ["1", "10", "2", "4", "5"]


def test_a_filter_that_does_not_load_is_told_and_the_first_five_count(tmp_path: Path, environment: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree")
    (environment / "vbench/cli/static_filter.py").write_text("raise OSError('weights of another network')\n")
    told: list[str] = []
    paths = filtered_run(tmp_path / "run")
    found = measure(paths, told=told)["full"].dimensions[FLICKERING]
    assert indices(paths) == ["0", "1", "2", "3", "4"]
    assert "static or not" in found.note
    assert "weights of another network" in found.note
    assert any("static_filter" in line and "another network" in line for line in told)


def test_the_filter_alone_may_be_asked_and_judges_no_video_that_is_not_whole(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree", MOTION)
    paths = filtered_run(tmp_path / "run")
    short = paths.root / Ledger(paths).records()[10].video
    short.write_text("0.1 short")
    found = Campaign(paths, Options(dims="quality", local=True), [].append)
    found.look()
    found.judge()
    (view,) = found.views.values()
    names = [Path(task.video.path).stem.rpartition("-")[2] for task in found.tasks_of(view, FLICKERING)]
    assert names == ["1", "11", "13", "14", "16"]
    assert [why for name, why in found.check(view).items() if name.endswith("-10.mp4")] == ["8 frames, not 9"]
    assert set(found.evaluation.num_scored) == {"static_filter"}


def test_every_video_of_a_runs_own_prompts_counts_however_many_there_are(tmp_path: Path) -> None:
    records = [
        record_of(tmp_path / "run", make_record("full", "p0", seed, prompt=PROMPTS[0]), str(seed / 10)) for seed in range(8)
    ]
    paths = finished(tmp_path / "run", records, make_spec(records))
    assert measure(paths)["full"].dimensions[FLICKERING].num_videos == 8
    assert results(paths)[FLICKERING][0] == pytest.approx(0.35)


def test_a_score_stays_with_a_note_where_its_weights_are_gone_and_its_videos_are_the_same(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", MOTION)
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    measure(paths, MOTION)
    before = results(paths)[MOTION]
    forget_weights(tmp_path)
    for dims in (FLICKERING, "quality"):
        found = measure(paths, dims)["full"].dimensions[MOTION]
        assert results(paths)[MOTION] == before
        assert "an earlier start measured these very videos (VBench 0.1.5, amt-s.pth" in found.note
        assert found.whole
    measure(paths, FLICKERING, shard_size=1)
    assert set(results(paths)) == {FLICKERING, MOTION}


def test_an_earlier_score_of_other_videos_does_not_stay(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", MOTION)
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    measure(paths, MOTION)
    forget_weights(tmp_path)
    changed = text_record(paths.root, "full", 1, "0.8")
    ledger = Ledger(paths)
    ledger.forget([record for record in ledger.records() if record.item_key == changed.item_key])
    ledger.append(changed)
    found = measure(paths, f"{MOTION},{FLICKERING}")["full"].dimensions[MOTION]
    assert found.score is None
    assert set(results(paths)) == {FLICKERING}


def test_the_latest_weights_that_measured_every_video_are_the_ones_whose_rows_stay(tmp_path: Path) -> None:
    store = ShardStore(tmp_path)
    videos = [Video(f"{name}-0.mp4", name, sha256=name) for name in "ab"]

    def written(mark: str, value: float, which: list[Video], at_s: int) -> None:
        weights = [["amt-s.pth", 7, mark]]
        tasks = [Task("full", video, key_of("full", MOTION, "0.1.5", weights, video)) for video in which]
        store.write(MOTION, tasks, [Row({"video_results": value})] * len(tasks), vbench="0.1.5", weights=weights)
        for path in (tmp_path / MOTION).glob("*.json"):
            if mark in path.read_text():
                os.utime(path, (at_s, at_s))

    now = [Task("full", video, f"now {video.prompt}") for video in videos]
    assert store.earlier(MOTION, now) is None
    written("old", 0.1, videos, 100)
    written("mid", 0.2, videos, 200)
    written("new", 0.3, videos[:1], 300)
    (tmp_path / MOTION / "torn.json").write_text("[")
    found, how = store.earlier(MOTION, now) or ({}, "")
    assert {key: row.record for key, row in found.items()} == {"now a": {"video_results": 0.2}, "now b": {"video_results": 0.2}}
    assert how == "VBench 0.1.5, amt-s.pth mid"
    assert store.earlier(MOTION, []) is None


def two_arms(tmp_path: Path) -> RunPaths:
    """Of which ``dvg`` has no video yet."""
    paths = text_run(tmp_path / "run", ["0.25", "0.75"])
    spec = json.loads(paths.config.read_text())
    spec["arms"].append({**spec["arms"][0], "name": "dvg"})
    paths.config.write_text(json.dumps(spec))
    return paths


def test_an_arm_without_a_video_is_named_and_makes_the_exit_code_3(tmp_path: Path) -> None:
    paths = two_arms(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", str(paths.root), "--dims", FLICKERING, "--local", "--json"])
    assert done.exit_code == 3
    assert "arm dvg has no finished video" in done.stderr
    told = json.loads(done.stdout)["arms"]
    assert told["full"]["dimensions"][FLICKERING]["score"] == 0.5
    assert (told["dvg"]["dimensions"][FLICKERING]["score"], told["dvg"]["dimensions"][FLICKERING]["num_missing"]) == (None, 2)
    done = CliRunner().invoke(app, ["evaluate", str(paths.root), "--dims", FLICKERING, "--local"])
    assert "dvg: no finished video" in done.stdout
    assert "n/a (0/2 videos)" in done.stdout
    assert not paths.vbench_results("custom", "dvg").exists()


def test_following_a_sweep_that_makes_nothing_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = two_arms(tmp_path)
    paths.records.unlink()
    monkeypatch.setattr(campaign, "sweep_over", lambda paths: True)
    done = CliRunner().invoke(app, ["evaluate", str(paths.root), "--dims", FLICKERING, "--local", "--follow"])
    assert done.exit_code == 3, done.output
    assert "full: no finished video" in done.stdout


def test_nothing_at_all_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = text_run(tmp_path / "run", ["0.25"])
    monkeypatch.setattr(cli_evaluate, "_run", lambda paths, options, runner: {})
    assert CliRunner().invoke(app, ["evaluate", str(paths.root), "--local"]).exit_code == 3


def followed(paths: RunPaths, later: list[Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, ArmOutcome]:
    """``later`` are made while the evaluation looks on."""
    paths.config.write_text(json.dumps(make_spec([*Ledger(paths).records(), *later])))

    def over(paths: RunPaths) -> bool:
        if later:
            Ledger(paths).append(later.pop(0))
            return False
        return True

    monkeypatch.setattr(campaign, "sweep_over", over)
    monkeypatch.setattr(campaign, "STATUS_S", 0.0)
    return measure(paths, follow=True)


def test_following_measures_no_video_of_the_wrong_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.9 short"])
    later = [text_record(paths.root, "full", index, text) for index, text in ((2, "0.8 short"), (3, "0.75"))]
    found = followed(paths, later, monkeypatch)["full"].dimensions[FLICKERING]
    assert found.score == 0.5
    assert set(found.failed.values()) == {"8 frames, not 9"}
    assert set(found.failed) == {f"{PROMPTS[1]}-0.mp4", f"{PROMPTS[2]}-0.mp4"}


def test_following_looks_at_each_video_once_and_links_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    later = [text_record(paths.root, "full", index, "0.75") for index in (2, 3, 4)]
    looked: list[str] = []
    linked: list[str] = []
    links, flaws_of = view._links, campaign.flaws_of
    monkeypatch.setattr(
        view, "_links", lambda folder, names: links(folder, names if names is None else linked.extend(names) or names)
    )

    def counted(videos: Any) -> Any:
        made = [video for video in videos if video.record]
        looked.extend(video.name for video in made)
        return flaws_of(made)

    monkeypatch.setattr(campaign, "flaws_of", counted)
    found = followed(paths, later, monkeypatch)["full"].dimensions[FLICKERING]
    assert found.num_measured == 5
    assert looked == [f"{prompt}-0.mp4" for prompt in PROMPTS[:5]]
    assert linked == [f"{prompt}-0.mp4" for prompt in PROMPTS[3:5]]  # one came before the first look


def test_a_pinned_suite_has_the_folder_of_its_name(tmp_path: Path) -> None:
    suite = load_suite("vbench-100")
    prompt = next(entry.prompt for entry in suite.entries if FLICKERING in entry.dimensions)
    record = record_of(tmp_path / "run", make_record("full", "p0", prompt=prompt), "0.5")
    paths = finished(tmp_path / "run", [record], make_spec([record]))
    measure(paths, suite=f"vbench-100@{suite.digest}")
    assert [path.name for path in paths.vbench.iterdir() if path.is_dir()] == ["vbench-100"]
    assert results(paths, "vbench-100")[FLICKERING][0] == 0.5
    again = Campaign(paths, Options(suite="vbench-100", dims=FLICKERING, local=True), [].append)
    again.run()
    assert not again.evaluation.num_scored


def test_the_list_of_the_work_holds_what_was_measured_alone(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree", MOTION)
    paths = filtered_run(tmp_path / "run")
    measure(paths)
    (entry,) = json.loads((paths.vbench_arm(FILTERED, "full") / "full_full_info.json").read_text())
    assert [Path(path).stem.rpartition("-")[2] for path in entry["video_list"]] == ["1", "10", "11", "13", "14"]
    paths = text_run(tmp_path / "bad", ["0.25", "bad"])
    measure(paths)
    (entry,) = json.loads((paths.vbench_arm("custom", "full") / "full_full_info.json").read_text())
    assert entry["prompt_en"] == PROMPTS[0]


def test_cuda_without_a_gpu_is_refused_at_once_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--device 'cuda' needs a GPU .*; choices: auto, cpu"):
        measure(text_run(tmp_path / "run", ["0.25"]), device="cuda")


@pytest.mark.parametrize(("owned", "where"), [(True, "this machine has none"), (False, "192.0.2.1:6379 now has none")])
def test_on_ray_too_and_the_cluster_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owned: bool, where: str) -> None:
    paths = text_run(tmp_path / "run", ["0.25"])
    left: list[bool] = []
    monkeypatch.setattr(cluster.Cluster, "leave", lambda self: left.append(True))
    monkeypatch.setattr(cluster, "start_or_join", lambda *options: cluster.Cluster("192.0.2.1:6379", owned, 4, 0, False))
    monkeypatch.setattr(hiring, "RayPool", lambda *options: pytest.fail("workers are waited for"))
    found = Campaign(paths, Options(dims=FLICKERING, device="cuda"), [].append)
    found.found = dataclasses.replace(found.found, torch="2.8.0")
    with pytest.raises(ConfigError, match=where):
        found.run()
    assert left == [True]


@pytest.mark.parametrize(
    ("asked", "torch", "num_gpus", "device"),
    [("auto", "2.8.0", 2, "cuda"), ("auto", "2.8.0+cpu", 2, "cpu"), ("auto", "2.8.0", 0, "cpu"), ("cuda", "2.8.0", 1, "cuda")],
)
def test_the_device_is_a_gpu_where_there_is_one_that_torch_knows(asked: str, torch: str, num_gpus: int, device: str) -> None:
    found = Environment("python", "0.1.5", torch, "package")
    assert device_of(asked, found, num_gpus, "here") == device


@pytest.mark.parametrize(("torch", "num_gpus", "told"), [("2.8.0", 0, "here has none"), ("2.8.0+cpu", 4, "knows no GPU")])
def test_cuda_on_a_cluster_is_refused_where_it_can_never_be(torch: str, num_gpus: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        device_of("cuda", Environment("python", "0.1.5", torch, "package"), num_gpus, "here")
