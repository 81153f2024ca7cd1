"""A run's videos to scores: resumed, sharded, with everything that is missing or broken told. VBench itself is played."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.vbench import campaign, integrity
from experiments.vbench.campaign import Campaign, Options, only_one
from experiments.vbench.integrity import count_frames
from experiments.vbench.outcome import ArmOutcome
from experiments.vbench.probe import VARIABLE, interpreter
from experiments.vbench.results import load_all
from orchestrator.cli import app
from orchestrator.cli_evaluate import vbench_findings
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from tests.fakerun import make_record, make_spec
from tests.fakevbench import PROMPTS, loads, text_record, text_run, write_environment, write_weights

FLICKERING = "temporal_flickering"
NUM_FRAMES = make_record().num_frames


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter whose VBench is played, and a cache of weights; every video counts as whole."""
    root = tmp_path / "env"
    runtime = write_environment(root)
    monkeypatch.setenv(VARIABLE, runtime.python)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "count_frames", lambda path, num_bytes=0, deep=False: NUM_FRAMES)
    return root


def measure(
    paths: RunPaths, dims: str = FLICKERING, tell: Callable[[str], None] = lambda line: None, **more: Any
) -> dict[str, ArmOutcome]:
    return Campaign(paths, Options(dims=dims, local=True, **more), tell).run()


def results(paths: RunPaths, arm: str = "full") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.vbench_results("custom", arm).read_text())
    return found


def test_shards_of_any_size_give_the_file_that_one_shard_gives(tmp_path: Path) -> None:
    values = ["0.1", "0.2", "0.3", "0.7", "0.11", "0.13", "0.17"]
    written = []
    for size in (1, 3, 7, 25):
        paths = text_run(tmp_path / f"run{size}", values)
        measure(paths, shard_size=size, workers=2)
        written.append(paths.vbench_results("custom", "full").read_text().replace(f"run{size}", "run"))
    assert len(set(written)) == 1
    score, records = json.loads(written[0])[FLICKERING]
    assert score == sum(map(float, values)) / 7
    assert [Path(record["video_path"]).name for record in records] == [f"{prompt}-0.mp4" for prompt in PROMPTS]


def test_the_same_command_measures_nothing_again_and_a_video_made_again_alone(tmp_path: Path, environment: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5", "0.75"])
    measure(paths)
    before = results(paths)
    assert loads(environment) == [FLICKERING]
    measure(paths, shard_size=1)
    assert results(paths) == before
    assert loads(environment) == [FLICKERING]
    changed = text_record(paths.root, "full", 1, "0.8")
    ledger = Ledger(paths)
    ledger.forget([record for record in ledger.records() if record.item_key == changed.item_key])
    ledger.append(changed)
    campaign = Campaign(paths, Options(dims=FLICKERING, local=True), print)
    campaign.run()
    assert campaign.evaluation.num_scored == {FLICKERING: 1}
    assert results(paths)[FLICKERING][0] == pytest.approx((0.25 + 0.8 + 0.75) / 3)


def test_a_run_that_was_interrupted_keeps_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5", "0.75"])
    from experiments.vbench.evaluate import Evaluation

    keep, kept = Evaluation.keep, []

    def interrupted(self: Evaluation, *arguments: Any) -> None:
        keep(self, *arguments)
        kept.append(arguments)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(paths, shard_size=1)
    assert not paths.vbench_results("custom", "full").exists()
    monkeypatch.setattr(Evaluation, "keep", keep)
    campaign = Campaign(paths, Options(dims=FLICKERING, local=True), print)
    campaign.run()
    assert campaign.evaluation.num_scored == {FLICKERING: 1}
    assert results(paths)[FLICKERING][0] == 0.5


def test_videos_that_cannot_be_measured_are_named_and_tried_again_by_the_next_command(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "bad", "crash", "none", "0.75"])
    found = measure(paths)["full"].dimensions[FLICKERING]
    assert found.score == 0.5
    assert found.num_measured == 2
    assert set(found.failed) == {f"{PROMPTS[index]}-0.mp4" for index in (1, 2, 3)}
    assert not found.whole
    again = Campaign(paths, Options(dims=FLICKERING, local=True), print)
    again.run()
    assert again.evaluation.num_scored == {FLICKERING: 3}


def test_a_video_cut_short_after_its_record_is_named_and_not_scored(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5", "0.75"])
    (paths.root / Ledger(paths).records()[1].video).write_text("0.")
    found = measure(paths)["full"].dimensions[FLICKERING]
    assert found.score == 0.5
    assert "recorded" in found.failed[f"{PROMPTS[1]}-0.mp4"]


def test_videos_that_are_not_whole_are_told_by_the_check_before_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "count_frames", count_frames)
    paths = text_run(tmp_path / "run", ["0.25"])
    found = measure(paths)["full"].dimensions[FLICKERING]
    assert found.score is None
    assert list(found.failed) == [f"{PROMPTS[0]}-0.mp4"]


def test_files_that_no_record_accounts_for_are_counted_for_people_and_in_the_json(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    (paths.root / Ledger(paths).records()[0].video).with_name("stranger.mp4").write_text("0.9")
    told: list[str] = []
    found = measure(paths, tell=told.append)["full"]
    assert any("stranger.mp4" in line for line in told)
    assert found.as_json()["integrity"]["counts"]["extra"] == 1
    assert found.dimensions[FLICKERING].num_videos == 2


def test_dimensions_that_cannot_run_are_told_with_where_their_weights_go_and_never_score_zero(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    told: list[str] = []
    found = measure(paths, "motion_smoothness,temporal_flickering", told.append)["full"].dimensions
    assert found["motion_smoothness"].score is None
    assert str(tmp_path / "cache/amt_model/amt-s.pth") in str(found["motion_smoothness"].unavailable)
    assert "huggingface.co" in str(found["motion_smoothness"].unavailable)
    assert any("amt-s.pth" in line for line in told)
    assert set(results(paths)) == {FLICKERING}


def test_a_dimension_whose_weights_do_not_load_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree", "motion_smoothness")
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    found = measure(paths, "dynamic_degree,motion_smoothness", workers=2)["full"].dimensions
    assert "another network" in str(found["dynamic_degree"].unavailable)
    assert found["motion_smoothness"].score == 0.375


def test_other_weights_measure_again_and_what_an_earlier_command_measured_stays(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "motion_smoothness")
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    measure(paths, "motion_smoothness")
    measure(paths, FLICKERING)
    assert set(results(paths)) == {"motion_smoothness", FLICKERING}
    (tmp_path / "cache/amt_model/amt-s.pth").write_text("others")
    again = Campaign(paths, Options(dims="motion_smoothness", local=True), print)
    again.run()
    assert again.evaluation.num_scored == {"motion_smoothness": 2}


def test_a_video_made_since_takes_the_older_dimensions_out_of_the_file_until_they_are_measured_again(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "motion_smoothness")
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    measure(paths, "motion_smoothness")
    Ledger(paths).append(text_record(paths.root, "full", 2, "0.75"))
    found = measure(paths, FLICKERING)["full"]
    assert set(results(paths)) == {FLICKERING}
    assert found.dimensions["motion_smoothness"].told() == "n/a (2/3 videos)"


def test_arms_are_measured_apart_and_read_back_by_suite_arm_and_dimension(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.5"], arms=("full", "dvg"))
    measure(paths)
    assert load_all(paths.root) == {"custom": {arm: {FLICKERING: 0.375} for arm in ("full", "dvg")}}
    listed = json.loads((paths.vbench_arm("custom", "dvg") / "dvg_full_info.json").read_text())
    assert [entry["prompt_en"] for entry in listed] == PROMPTS[:2]


def test_following_measures_what_a_sweep_still_makes_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = text_run(tmp_path / "run", ["0.25"])
    later = [text_record(paths.root, "full", index, text) for index, text in ((1, "0.5"), (2, "0.75"))]
    spec = make_spec([*Ledger(paths).records(), *later])
    paths.config.write_text(json.dumps(spec))

    def over(paths: RunPaths) -> bool:
        if later:
            Ledger(paths).append(later.pop(0))
            return False
        return True

    monkeypatch.setattr(campaign, "sweep_over", over)
    monkeypatch.setattr(campaign, "STATUS_S", 0.0)
    found = measure(paths, follow=True)["full"].dimensions[FLICKERING]
    assert found.num_videos == 3
    assert found.score == 0.5


def test_the_filter_of_static_videos_chooses_five_of_each_prompt_and_without_it_the_first_five_count() -> None:
    from experiments.vbench import work
    from experiments.vbench.view import Line, View
    from experiments.vbench.view import Video as Named
    from orchestrator.suites import NUM_CANDIDATES, Entry, Suite

    entry = Entry("a tree", (FLICKERING,), num_videos=NUM_CANDIDATES)
    record = make_record()
    named = [Named(f"a tree-{i}.mp4", i, Path(f"a tree-{i}.mp4"), record, None) for i in range(NUM_CANDIDATES)]
    suite = Suite("vbench-filtered", (entry,), "vbench", True)
    view = View(RunPaths(Path()), suite, "full", Path(), (Line(entry, tuple(named)),), frozenset(), 0, 0)
    how = work.measuring("0.1.5", (FLICKERING,), {})
    candidates = work.candidates(view, how)
    assert len(candidates) == NUM_CANDIDATES
    verdicts = {task.key: index % 2 == 0 for index, task in enumerate(candidates)}
    chosen = [Path(task.video.path).stem for task in work.static(view, how, verdicts)]
    assert chosen == ["a tree-0", "a tree-10", "a tree-12", "a tree-14", "a tree-16"]
    assert [Path(task.video.path).stem for task in work.tasks(view, FLICKERING, how)] == [f"a tree-{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dims": "flicker"}, "choices: all, quality"),
        ({"dims": "camera_motion"}, "does not measure it"),
        ({"arms": ("fill",)}, "did you mean 'full'"),
        ({"suite": "vbench-nothing"}, "vbench-nothing"),
        ({"python": "/nowhere/python"}, "make vbench-env"),
    ],
)
def test_what_a_person_wrote_wrong_is_told_before_anything_starts(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    paths = text_run(tmp_path / "run", ["0.25"])
    with pytest.raises(ConfigError, match=told):
        measure(paths, **options)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25"])
    with only_one(paths), pytest.raises(ConfigError, match="another process evaluates"):
        measure(paths)


def test_the_interpreter_is_the_one_told_then_the_environments(tmp_path: Path) -> None:
    told, other = tmp_path / "told", tmp_path / "other"
    told.touch()
    other.touch()
    assert interpreter(str(told), {VARIABLE: str(other)}) == str(told)
    assert interpreter(None, {VARIABLE: str(other)}) == str(other)


def test_the_command_prints_scores_or_json_and_its_code_tells_whether_all_is_there(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25", "0.75"])
    run = [str(paths.root), "--dims", "weightless", "--local"]
    done = CliRunner().invoke(app, ["evaluate", *run])
    assert done.exit_code == 0, done.output
    assert "0.5000 (2 videos)" in done.stdout
    done = CliRunner().invoke(app, ["evaluate", *run, "--json"])
    assert json.loads(done.stdout)["arms"]["full"]["dimensions"][FLICKERING]["score"] == 0.5
    done = CliRunner().invoke(app, ["evaluate", str(paths.root), "--dims", "quality", "--local"])
    assert done.exit_code == 3
    assert "not available" in done.stdout


def test_the_command_refuses_what_is_no_run_and_unknown_words(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--reduce", "mean", "--runner", "slurm"])
    assert isinstance(done.exception, ConfigError)
    told = "\n".join(done.exception.mistakes)
    assert "no run folder" in told
    assert "official_torchrun" in told
    assert "torchrun" in told


def test_doctor_tells_each_dimension_and_where_what_it_lacks_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "cache", "motion_smoothness")
    found = {finding.topic: finding for finding in vbench_findings()}
    assert "0.1.5" in found["vbench"].found
    assert found["vbench temporal_flickering"].state == found["vbench motion_smoothness"].state == "ok"
    assert found["vbench dynamic_degree"].state == "missing"
    assert str(tmp_path / "cache/raft_model/models/raft-things.pth") in found["vbench dynamic_degree"].found
    assert "no detectron2" in found["vbench color"].found
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    (finding,) = vbench_findings()
    assert finding.state == "missing"
    assert "make vbench-env" in finding.found
