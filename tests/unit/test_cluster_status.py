"""``dvg status`` and ``dvg gc`` on rows as Ray's state API gives them, and on run folders."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.cli_status import ClusterStatus, SweepJob, _tell_cluster, _tell_run
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep, TrackingConfig
from orchestrator.leftovers import Nodes, held, left_behind, nodes_by_role
from orchestrator.manifest import update_manifest
from orchestrator.mistakes import ConfigError
from orchestrator.naming import Holding
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.run_status import read_status
from orchestrator.types import Item
from tests.fakerun import make_failure, make_record, make_records, make_run

RUNNING = {"job_id": "01", "end_time": 0}
ENDED = {"job_id": "02", "end_time": 1795245793604}


def actor(name: str | None, job: str = "01", state: str = "ALIVE", **more: Any) -> dict[str, Any]:
    return {"actor_id": "a", "name": name, "job_id": job, "state": state, **more}


def group(name: str, job: str = "01", state: str = "CREATED", gpus: float = 8, node: str = "n1") -> dict[str, Any]:
    bundles = [{"unit_resources": {"GPU": 1.0}, "node_id": node} for _ in range(int(gpus))]
    return {"placement_group_id": "g", "name": name, "creator_job_id": job, "state": state, "bundles": bundles}


def test_only_what_is_ours_and_still_there_is_listed_with_its_sweep() -> None:
    actors = [
        actor("dvg-a-sketch-0", required_resources={"GPU": 1}),
        actor("dvg-a-b-sketch-0"),
        actor("dvg-a-sketch-1", state="DEAD"),
        actor("somebody-elses"),
        actor(None),
    ]
    found = held(actors, [group("dvg-a-pod-0"), group("dvg-a-pod-1", state="REMOVED"), group("theirs")], [RUNNING])
    assert [(one.sweep, one.what, one.kind, one.gpus) for one in found] == [
        ("a", "actor", "sketch", 1.0),
        ("a", "placement group", "pod", 8.0),
        ("a-b", "actor", "sketch", 0.0),
    ]


def test_what_a_living_driver_holds_is_never_left_behind() -> None:
    found = held([actor("dvg-a-sketch-0", job="02"), actor("dvg-a-sketch-1", job="01")], [], [RUNNING, ENDED])
    assert [one.name for one in left_behind(found)] == ["dvg-a-sketch-0"]


SWEEPS = st.text(st.sampled_from("ab-."), min_size=1, max_size=6)


@settings(deadline=None)
@given(sweeps=st.lists(SWEEPS, max_size=6), wanted=SWEEPS)
def test_what_is_removed_for_a_sweep_is_that_sweeps_alone(sweeps: list[str], wanted: str) -> None:
    groups = [group(Holding(sweep, "pod", slot).name, job="02") for slot, sweep in enumerate(sweeps)]
    removed = left_behind(held([], groups, [ENDED]), wanted)
    assert sorted(one.name for one in removed) == sorted(g["name"] for g, s in zip(groups, sweeps, strict=True) if s == wanted)


def test_gpus_are_counted_once_by_role() -> None:
    nodes = [
        {"node_id": "n1", "state": "ALIVE", "labels": {"role": "heavy"}, "resources_total": {"GPU": 8.0}},
        {"node_id": "n2", "state": "ALIVE", "labels": {"role": "heavy"}, "resources_total": {"GPU": 8.0}},
        {"node_id": "n3", "state": "ALIVE", "labels": {}, "resources_total": {"CPU": 4.0}},
        {"node_id": "n4", "state": "DEAD", "labels": {"role": "sketch"}, "resources_total": {"GPU": 4.0}},
    ]
    ranks = [
        actor(f"dvg-a-pod-0/{rank}", node_id="n1", placement_group_id="g", required_resources={"GPU": 1}) for rank in range(8)
    ]
    theirs = actor(None, node_id="n2", required_resources={"GPU": 0.5})
    found = nodes_by_role(nodes, [*ranks, theirs], [group("dvg-a-pod-0"), group("gone", state="REMOVED", node="n2")])
    assert found == [Nodes("-", 1, 0.0, 0.0), Nodes("heavy", 2, 16.0, 8.5)]


def run_of(folder: Path, num_items: int, started: datetime) -> RunPaths:
    """A run that was started twice, with two videos, one of each start."""
    earlier = (started - timedelta(hours=5)).isoformat()
    after = (started + timedelta(minutes=10)).isoformat()
    paths = make_run(folder, [make_record("full", finished_at=earlier), make_record("dvg", finished_at=after)], videos=False)
    starts = [{"at": earlier}, {"at": started.isoformat()}]
    paths.manifest.write_text(json.dumps({"name": "[red]mine", "items": num_items, "starts": starts}))
    with paths.records.open("ab") as file:
        file.write(b'{"item_key": "torn')
    return paths


def test_a_run_in_use_is_told_with_its_pace_in_this_start_and_the_time_left(tmp_path: Path) -> None:
    started = datetime.now(UTC) - timedelta(minutes=30)
    paths = run_of(tmp_path, 10, started)
    with RunLock(paths):
        status = read_status(str(tmp_path), started + timedelta(minutes=20))
    assert (status.num_finished, status.num_failed, status.num_left, status.num_starts) == (2, 0, 8, 2)
    assert status.owner_alive
    assert status.videos_per_hour == pytest.approx(3.0)
    assert status.left_s == pytest.approx(8 * 20 * 60)


def test_a_run_that_nobody_works_on_has_no_time_left_and_the_pace_it_had(tmp_path: Path) -> None:
    started = datetime.now(UTC) - timedelta(days=2)
    run_of(tmp_path, 10, started)
    status = read_status(str(tmp_path))
    assert (status.owner, status.owner_alive, status.left_s) == (None, False, None)
    assert status.videos_per_hour == pytest.approx(6.0)


def test_only_items_of_the_latest_start_count_and_nothing_is_ever_left_below_zero(tmp_path: Path) -> None:
    records = make_records(8)
    paths = make_run(tmp_path, records, videos=False)
    for prompt_id in ("another", "one-more"):
        make_failure(paths, "dvg", prompt_id, 0)
    asked = [("full", "orbit"), ("full", "drift"), ("dvg", "another"), ("full", "another")]
    items = tuple(Item(make_record(*one).item_key, *one, prompt=one[1], seed=0) for one in asked)
    update_manifest(paths, Sweep("s", (), items, None, 3, ClusterConfig(), TrackingConfig()), ["spec.yaml", "--limit", "3"])
    status = read_status(str(tmp_path))
    assert (status.num_items, status.num_finished, status.num_failed, status.num_left) == (4, 2, 1, 1)

    manifest = json.loads(paths.manifest.read_text())
    paths.manifest.write_text(json.dumps({"items": 4, "starts": manifest["starts"]}))
    assert read_status(str(tmp_path)).num_left == 0, "of a manifest that lists no keys"


def test_a_driver_that_died_is_named_as_one(tmp_path: Path) -> None:
    paths = run_of(tmp_path, 10, datetime.now(UTC))
    with RunLock(paths):
        row = json.loads(paths.owner.read_text())
    paths.owner.write_text(json.dumps(row | {"pid": 2**22 + 1}))
    status = read_status(str(tmp_path))
    assert not status.owner_alive
    assert status.owner
    assert str(2**22 + 1) in status.owner


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run"):
        read_status(str(tmp_path))


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    run_of(tmp_path, 10, datetime.now(UTC) - timedelta(hours=1))
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    _tell_run(read_status(str(tmp_path)), console)
    jobs = [SweepJob("dvg-x-1", "[bold]x[/]", "/r/[/]", "RUNNING", "2026-01-01T00:00:00+00:00", None)]
    found = held([], [group("dvg-[red]y-pod-0")], [RUNNING])
    _tell_cluster(ClusterStatus(jobs, found, []), console)
    for text in ("[red]mine: 2 of 10 finished", "[bold]x[/]", "/r/[/]", "[red]y"):
        assert text in screen.getvalue()
