"""Where compared arms come from: folders, URLs, MLflow; and how several are told apart."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from experiments.compare.arms import arms_of
from experiments.compare.comparison import compare
from experiments.compare.export import as_json
from experiments.compare.sources import Run, read_runs, told_apart
from experiments.tracking import mirror
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths
from tests.fakerun import make_failure
from tests.unit.comparing import arm_records, write_run

KEPT = ("runs", "steps")
NOT_ALIKE = re.compile(r"(label|run|device)$|vbench\.temporal_flickering_")
PARTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


@given(st.lists(PARTS, min_size=1, unique_by=tuple))
def test_names_are_distinct_ends_of_the_places(places: list[list[str]]) -> None:
    whole = ["/" + "/".join(parts) for parts in places]
    names = told_apart(whole)
    assert len(set(names)) == len(names)
    assert all(place.endswith(name) for place, name in zip(whole, names, strict=True))


def test_names_are_no_longer_than_needed() -> None:
    assert told_apart(["/runs/demo"]) == ["demo"]
    assert told_apart(["/runs/a", "s3://bucket/b"]) == ["a", "b"]
    assert told_apart(["/h100/demo", "/h200/demo", "/h200/other"]) == ["h100/demo", "h200/demo", "other"]


def test_a_run_behind_a_url_is_as_its_folder(tmp_path: Path) -> None:
    import fsspec

    paths = write_run(tmp_path / "demo", arm_records(), vbench={"full": 0.97, "dvg": 0.965})
    make_failure(paths)
    url = f"memory://{tmp_path.name}/demo"
    fsspec.filesystem("memory").put(str(paths.root), url, recursive=True)
    there, here = read_runs([url])[0], read_runs([str(paths.root)])[0]
    assert dataclasses.replace(there, where="", name="") == dataclasses.replace(here, where="", name="")
    assert (there.where, there.name) == (url, "demo")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing/here", ["nothing/here", "is no run"]),
        ("nowhere", ["'nowhere' is no run folder", "MLFLOW_TRACKING_URI", "mlflow:nowhere@URI"]),
        ("mlflow:", ["names no experiment"]),
        ("mlflow:dvg@sqlite:///not-there.db", ["not-there.db", "is not there"]),
        ("mlflow:dvg@sqlite:///not-there.db?password=secret", ["not-there.db", "is not there"]),
        ("mlflow:@http://me:secret@nowhere", ["names no experiment"]),
        ("s3://user:secret@bucket/run", ["plain URL"]),
    ],
)
def test_what_is_no_run_is_refused(place: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError) as raised:
        read_runs([place])
    assert all(word in str(raised.value) for word in words)
    assert "secret" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "a", arm_records(("full",)))
    paths.records.write_text('{"not": "a record"}\n')
    write_run(tmp_path / "b", arm_records(("full",)))
    with pytest.raises(ConfigError) as raised:
        read_runs([str(paths.root), str(tmp_path / "b"), str(tmp_path / "b"), "not/there"])
    assert [mistake.split("'")[0].strip() for mistake in raised.value.mistakes[1:]] == ["", ""]
    told = str(raised.value)
    assert all(word in told for word in ("line 1 of records.jsonl is no record", "given twice", "not/there"))


def test_a_broken_line_of_quality_is_told(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    paths.quality.write_text("{nonsense}\n")
    with pytest.raises(ConfigError, match="holds a line that is no measurement"):
        read_runs([str(paths.root)])


def test_measurements_of_a_video_made_again_are_left_out(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    rows = [json.loads(line) for line in paths.quality.read_text().splitlines()]
    rows[1]["sha256"] = "old"
    paths.quality.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {row["item_key"] for row in read_runs([str(paths.root)])[0].quality}
    assert kept == {row["item_key"] for row in rows} - {rows[1]["item_key"]}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunPaths, str]]:
    """By how prompts are kept: a run with a failure and scores, and the tracking URI that it was mirrored to."""
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where artifacts go by default
        MlflowClient(tracking_uri=f"sqlite:///{root / 'runs.db'}").search_experiments()  # laying one out takes seconds
    shutil.copy(root / "runs.db", root / "steps.db")
    return {kept: (_mirrored(root / kept, kept, f"sqlite:///{root / kept}.db"), f"sqlite:///{root / kept}.db") for kept in KEPT}


def _mirrored(folder: Path, kept: str, uri: str) -> RunPaths:
    tracking = {"experiment": "dvg", "videos": "none", "per_prompt": kept}
    scores = {"full": 0.97, "dvg": 0.965}
    paths = write_run(folder / "demo", arm_records(num_prompts=4), vbench=scores, tracking=tracking)
    make_failure(paths, arm="dvg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mirror(Ledger(paths), uri)
    return paths


def figures(runs: list[Run]) -> dict[str, Any]:
    """All that a comparison says of the arms, without where they were read. MLflow keeps no score of single VBench videos."""
    arms = as_json(compare(runs))["arms"]
    return {arm["arm"]: {name: value for name, value in arm.items() if not NOT_ALIKE.match(name)} for arm in arms}


def alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12)
    return bool(ours == theirs)


@pytest.mark.parametrize("kept", KEPT)
def test_an_experiment_compares_as_the_run_folder_it_mirrors(
    tracked: dict[str, tuple[RunPaths, str]], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, uri = tracked[kept]
    here, there = figures(read_runs([str(paths.root)])), figures(read_runs([f"mlflow:dvg@{uri}"]))
    assert here.keys() == there.keys() == {"full", "dvg", "tiny"}
    ours, theirs = (arms_of(read_runs([place])) for place in (str(paths.root), f"mlflow:dvg@{uri}"))
    assert [(arm.name, arm.references, arm.reference_arms) for arm in ours] == [
        (arm.name, arm.references, arm.reference_arms) for arm in theirs
    ]
    for arm, row in here.items():
        assert {k: (v, there[arm].get(k)) for k, v in row.items() if not alike(v, there[arm].get(k))} == {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(paths.root.parent)
    by_name = read_runs(["dvg"])[0]
    assert (by_name.where, by_name.name) == ("mlflow:dvg/demo", "demo")


def test_a_folder_and_its_experiment_side_by_side_have_the_same_videos(tracked: dict[str, tuple[RunPaths, str]]) -> None:
    paths, uri = tracked["runs"]
    comparison = compare(read_runs([str(paths.root), f"mlflow:dvg@{uri}"]))
    speedups = {row.arm.label: row.speedup.mean for row in comparison.rows if row.speedup}
    assert speedups == pytest.approx(dict(zip(speedups, [1.0, 2.0, 4.0, 1.0, 2.0, 4.0], strict=True)))
    assert not any("different videos" in note or "text" in note for note in comparison.notes)


def test_an_experiment_that_is_not_there_is_refused_and_a_dead_server_is_told(
    tracked: dict[str, tuple[RunPaths, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="neither a run folder nor an MLflow experiment"):
        read_runs([f"mlflow:other@{tracked['runs'][1]}"])
    with pytest.raises(ConfigError, match="holds no sweep"):
        read_runs([f"mlflow:Default@{tracked['runs'][1]}"])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match="cannot be read") as raised:
        read_runs(["mlflow:dvg@http://me:secret@127.0.0.1:9"])
    assert "secret" not in str(raised.value)
