"""The MLflow mirror, against a real sqlite store."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from experiments import following, mlflow_runs, tracking
from experiments.following import Follower, follow
from experiments.mlflow_rows import METRICS, chosen_pairs
from experiments.mlflow_store import Changes
from experiments.tracking import FINISH, open_run, tracking_uri
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_failure, make_record, make_records, make_run, make_spec, quality_row
from tests.mlflowstate import by_level, runs, state

pytestmark = pytest.mark.usefixtures("own_mlflow")


ATTENTION = {"attention.sparsity", "attention.recall", "attention.choose_s", "attention.attend_s"}
"""Of arms that attend otherwise."""


def mirror(root: Path, uri: str | None = None) -> Changes:
    return tracking.mirror(Ledger(RunPaths(root)), uri)


def tracked(paths: RunPaths, records: list[Record], spec: dict[str, Any] | None = None) -> list[str]:
    """Follow a run to its end, in this process."""
    if spec:
        paths.config.write_text(yaml.safe_dump(spec))
    paths.quality.write_text("".join(json.dumps(quality_row(r)) + "\n" for r in records if r.arm == "dvg"))
    told: list[dict[str, Any]] = []
    follow(Follower(paths, told.append), lambda timeout_s: FINISH, told.append)
    warnings = [row["warn"] for row in told if "warn" in row]
    assert told[-1] == {"complete": not any("cannot be written" in line for line in warnings)}
    return warnings


def test_sixteen_prompt_runs_nest_under_two_arm_runs_under_one_sweep_run(tmp_path: Path) -> None:
    records = make_records(8)
    paths = make_run(tmp_path, records)
    assert tracked(paths, records) == []
    levels = by_level(paths)
    assert {level: len(found) for level, found in levels.items()} == {"sweep": 1, "arm": 2, "prompt": 16}
    parents = Counter(run.data.tags["mlflow.parentRunId"] for run in levels["prompt"])
    assert parents == {arm.info.run_id: 8 for arm in levels["arm"]}
    assert {arm.data.tags["mlflow.parentRunId"] for arm in levels["arm"]} == {levels["sweep"][0].info.run_id}
    assert {run.info.status for run in runs(paths)} == {"FINISHED"}


def test_prompt_runs_carry_typed_metrics_params_quality_and_their_own_times(tmp_path: Path) -> None:
    records = [dataclasses.replace(record, tflops=2.5) for record in make_records(1)]
    paths = make_run(tmp_path, records)
    tracked(paths, records)
    found = {run.data.params["arm"]: run for run in by_level(paths)["prompt"]}
    dvg, record = found["dvg"], records[1]
    assert set(dvg.data.metrics) == {*METRICS, "quality.psnr", "quality.ssim"} - ATTENTION
    assert dvg.data.metrics["latency.denoise_s"] == record.denoise_s
    assert set(found["full"].data.metrics) == set(METRICS) - {"demand.spatial", "demand.temporal", "budget"} - ATTENTION
    assert (dvg.data.params["action"], dvg.data.params["f2"]) == (record.action, str(record.f2))
    assert dvg.data.tags["item_key"] == record.item_key
    assert dvg.info.end_time - dvg.info.start_time == int(record.latency_s * 1000)


def test_arm_runs_carry_settings_means_percentiles_and_speedup(tmp_path: Path) -> None:
    records = [make_record("dvg", p, density=d, denoise_s=4.0) for p, d in (("orbit", 0.4), ("drift", 0.5))]
    records += [make_record("full", p, denoise_s=8.0) for p in ("orbit", "drift")]
    paths = make_run(tmp_path, records, videos=False)
    tracked(paths, records)
    arm = next(run for run in by_level(paths)["arm"] if run.info.run_name == "dvg")
    assert arm.data.metrics["density"] == pytest.approx(0.45)
    assert arm.data.metrics["density.p95"] == pytest.approx(0.495)
    assert arm.data.metrics["speedup"] == 2.0
    assert arm.data.params["dvg.tolerance"] == "0.02"


def test_mirroring_twice_adds_nothing(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records)
    make_failure(paths)
    assert mirror(tmp_path).num_added == 4
    before = state(paths)
    assert mirror(tmp_path) == Changes(4, 0, 0)
    assert state(paths) == before


def test_mirroring_a_tracked_run_adds_nothing(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records)
    tracked(paths, records)
    before = state(paths)
    assert mirror(tmp_path) == mirror(tmp_path) == Changes(4, 0, 0)
    assert state(paths) == before
    paths.quality.write_text("")
    assert mirror(tmp_path) == Changes(4, 0, 0)


def test_a_tracker_killed_in_the_middle_of_a_run_is_completed_without_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_runs, "sqlite_store", lambda client: None)  # as a server, which knows no whole batches
    records = make_records(2)
    paths = make_run(tmp_path, records)
    store = open_run(paths, make_spec(records))
    store.put(records[:1])
    monkeypatch.setattr(store.client, "log_batch", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    store._arm("full")
    with pytest.raises(KeyboardInterrupt):
        store.put(records[2:3])  # leaves a run that was created and never written
    assert Counter(run.info.status for run in runs(paths)) == {"RUNNING": 3, "FINISHED": 1}
    report = mirror(tmp_path)
    assert (report.num_added, report.num_updated) == (2, 1)
    assert Counter(run.data.tags["level"] for run in runs(paths)) == {"sweep": 1, "arm": 2, "prompt": 4}
    assert {run.info.status for run in runs(paths)} == {"FINISHED"}
    assert all("density" in run.data.metrics for run in by_level(paths)["prompt"])


def test_a_stopped_sweep_is_marked_killed_and_reopened_by_the_next_start(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records[:1])
    follow(Follower(paths, print), lambda timeout_s: "", print)
    assert {run.info.status for level in ("sweep", "arm") for run in by_level(paths)[level]} == {"KILLED"}
    for record in records[1:]:
        Ledger(paths).append(record)
    tracked(paths, records, make_spec(records))
    assert Counter(run.data.tags["level"] for run in runs(paths)) == {"sweep": 1, "arm": 2, "prompt": 4}
    assert {run.info.status for run in runs(paths)} == {"FINISHED"}


@pytest.mark.parametrize("uri", ["sqlite:////dev/null/no/mlflow.db", "nonsense://user:secret@nowhere"])
def test_a_broken_tracking_uri_warns_once_hides_the_password_and_never_raises(tmp_path: Path, uri: str) -> None:
    records = make_records(4)
    paths = make_run(tmp_path, records, videos=False)
    warnings = tracked(paths, records, make_spec(records, uri=uri))
    assert len(warnings) == 1
    assert "the run goes on" in warnings[0]
    assert "secret" not in warnings[0]
    assert mirror(tmp_path, paths.mlflow_uri).num_added == 8


def test_records_are_sent_as_they_are_written_and_none_twice(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records[:1], make_spec(records))
    follower, counts = Follower(paths, print), []
    for line in [b"", *Ledger.lines(records[1:]).splitlines(keepends=True)]:
        for part in (line[:30], line[30:]):
            with paths.records.open("ab") as file:
                file.write(part)
            follower.look()
            counts.append(len(by_level(paths)["prompt"]))
    assert counts == [1, 1, 1, 2, 2, 3, 3, 4]


def test_a_failure_that_goes_while_it_is_looked_at_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its item is made after all."""
    records = make_records(1)
    paths = make_run(tmp_path, records, make_spec(records, videos="none"), videos=False)
    make_failure(paths)
    told: list[dict[str, Any]] = []
    follower, glob, gone = Follower(paths, told.append), Path.glob, paths.failures / "gone.failure.json"
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [*glob(path, pattern), *[gone] * (path == paths.failures)])
    follower.look()
    assert follower._new_failures() == {}
    assert follower.finish()
    monkeypatch.setattr(follower, "_new_failures", lambda: {gone: 0})
    follower.look()
    assert told == []
    assert Counter(run.info.status for run in by_level(paths)["prompt"]) == {"FINISHED": 2, "FAILED": 1}


def test_a_run_whose_making_was_not_answered_is_found_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE_S", 0.0)
    monkeypatch.setattr(mlflow_runs, "sqlite_store", lambda client: None)
    records = make_records(2)
    paths = make_run(tmp_path, records, make_spec(records), videos=False)
    told: list[dict[str, Any]] = []
    follower, create_run = Follower(paths, told.append), MlflowClient.create_run

    def lost(client: MlflowClient, *given: Any, **named: Any) -> None:
        create_run(client, *given, **named)
        if named["run_name"] == "still-circle-0":
            monkeypatch.setattr(MlflowClient, "create_run", create_run)
        raise ConnectionError("reset")

    monkeypatch.setattr(MlflowClient, "create_run", lost)
    while not told or MlflowClient.create_run is lost:
        follower.look()
    follower.look()
    assert Counter(run.data.tags["level"] for run in runs(paths)) == {"sweep": 1, "arm": 2, "prompt": 4}
    assert len(told) == 1


def test_a_video_made_again_replaces_its_run(tmp_path: Path) -> None:
    record = make_record()
    paths = make_run(tmp_path, [record], videos=False)
    mirror(tmp_path)
    paths.records.unlink()
    Ledger(paths).append(dataclasses.replace(record, sha256="made again", degree=2, action="other"))
    assert mirror(tmp_path).num_added == 1
    (run,) = by_level(paths)["prompt"]
    assert run.data.tags["sha256"] == "made again"


def test_a_failure_is_a_failed_run_until_its_item_succeeds(tmp_path: Path) -> None:
    records = make_records(1)
    paths = make_run(tmp_path, records)
    make_failure(paths, "dvg", "orbit", 0)
    mirror(tmp_path)
    failed = [run for run in by_level(paths)["prompt"] if run.info.status == "FAILED"]
    assert "out of memory" in failed[0].data.tags["error"]
    assert "pod-0 lost" in failed[0].data.tags["story"]
    assert failed[0].data.params["prompt_id"] == "orbit"
    Ledger(paths).append(make_record("dvg", "orbit"))
    mirror(tmp_path)
    assert {run.info.status for run in by_level(paths)["prompt"]} == {"FINISHED"}
    assert len(by_level(paths)["prompt"]) == 3


def test_videos_summary_and_config_are_artifacts_without_the_tracking_uri(tmp_path: Path) -> None:
    records = make_records(1)
    paths = make_run(tmp_path, records)
    paths.summary.write_text("item_key\n")
    (tmp_path / "copy").mkdir()
    spec = make_spec(records, uri=paths.mlflow_uri)
    tracked(paths, records, spec)
    client = MlflowClient(tracking_uri=paths.mlflow_uri)
    levels = by_level(paths)
    for run in levels["prompt"]:
        assert [a.path for a in client.list_artifacts(run.info.run_id, "video")] == ["video/0.mp4"]
    sweep = levels["sweep"][0]
    names = {a.path for a in client.list_artifacts(sweep.info.run_id)}
    assert names == {"config.resolved.yaml", "summary.csv", "per_prompt.json"}
    copy = client.download_artifacts(sweep.info.run_id, "config.resolved.yaml", str(tmp_path / "copy"))
    assert "sqlite" not in Path(copy).read_text()
    assert "tolerance" in Path(copy).read_text()
    assert all(Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path) for run in levels["prompt"])


def test_the_uri_is_the_specs_then_the_environments_then_the_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = RunPaths(tmp_path)
    assert tracking_uri(paths, {}) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(paths, {"tracking": {"uri": None}}) == "http://127.0.0.1:1"
    assert tracking_uri(paths, {"tracking": {"uri": "sqlite:///x.db"}}) == "sqlite:///x.db"


def test_the_video_sample_is_the_same_for_every_arm_and_every_call() -> None:
    pairs = [(f"p{i}", seed) for i in range(20) for seed in (0, 1)]
    sample = chosen_pairs("sample", pairs, 2)
    assert len(sample) == 4
    assert sample == chosen_pairs("auto", reversed(pairs), 2)
    assert chosen_pairs("auto", pairs[:25], 2) == set(pairs[:25])
    assert chosen_pairs("none", pairs, 2) == frozenset()
    with pytest.raises(ValueError, match="'some'; choices: auto, none, sample, all"):
        chosen_pairs("some", pairs, 2)


def test_a_file_system_without_locks_is_written_to_mlflow_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tracking.fcntl, "flock", unknown)
    with tracking.only_writer(RunPaths(tmp_path)):
        reached = True
    assert reached


def test_an_arm_of_which_every_item_was_given_up_ends_as_failed_with_their_number(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(1, ("full",)), videos=False)
    make_failure(paths, "dvg", "orbit", 0)
    make_failure(paths, "dvg", "drift", 0)
    open_run(paths, make_spec(make_records(1)))._arm("left-open")
    mirror(tmp_path)
    arms = {run.info.run_name: run for run in by_level(paths)["arm"]}
    assert {name: run.info.status for name, run in arms.items()} == {"full": "FINISHED", "dvg": "FAILED", "left-open": "FAILED"}
    assert {name: arms[name].data.metrics["num_failed"] for name in arms} == {"full": 0.0, "dvg": 2.0, "left-open": 0.0}
    before = state(paths)
    mirror(tmp_path)
    assert state(paths) == before
