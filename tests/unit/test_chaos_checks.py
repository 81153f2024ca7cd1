"""What ``experiments.bench.chaos`` looks for is found where it is: each check fails on a run that was tampered with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.bench.chaos import Rampage, Tally, parse, verdict
from experiments.bench.chaos_checks import ALIKE, losses, mistakes_of, rows_of
from orchestrator.eventlog import row as event_row
from orchestrator.events import Arrived, Decoded, Event, PhaseDone, Sketched, WorkerJoined, WorkerLost
from orchestrator.paths import RunPaths
from orchestrator.scheduler import Scheduler
from tests.unit.worlds import CLIP, DECISION, item

NUM = 2


def events() -> list[Event]:
    """Two clips side by side on a pod, of which one rank dies."""
    end = len(DECISION.action.stages)
    first, second = item(1).item_key, item(2).item_key
    return [
        WorkerJoined(0.0, "pod", "pod-0", 2),
        WorkerJoined(0.0, "sketch", "sketch-0"),
        WorkerJoined(0.0, "sketch", "sketch-1"),
        WorkerJoined(0.0, "decode", "decode-0"),
        Arrived(0.0, item(1)),
        Arrived(0.0, item(2)),
        Sketched(1.0, first, 1, DECISION, {}),
        Sketched(1.0, second, 1, DECISION, {}),
        WorkerLost(3.0, "pod-0", "killed", (1,)),
        PhaseDone(4.0, first, 1, end, {}),
        WorkerJoined(5.0, "pod", "pod-0.1", 2),
        PhaseDone(7.0, second, 2, end, {}),
        Decoded(8.0, first, 1, CLIP),
        Decoded(9.0, second, 2, CLIP),
    ]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that is in order."""
    paths, scheduler = RunPaths(tmp_path), Scheduler()
    log = [{**event_row(event, scheduler.handle(event)), "start": 1} for event in events()]
    records = []
    for number in range(1, NUM + 1):
        video = paths.video("dvg", f"p{number}", number)
        video.parent.mkdir(parents=True)
        video.write_text(f"video {number}")
        video.with_suffix(".json").write_text("{}")
        told = {"item_key": item(number).item_key, "video": paths.relative(video), "num_frames": 1}
        sha256 = hashlib.sha256(video.read_bytes()).hexdigest()
        records.append(dict.fromkeys(ALIKE, "") | told | {"sha256": sha256})
    write(paths.events, log)
    write(paths.records, records)
    return paths


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(paths: RunPaths, undisturbed: list[dict[str, Any]] | None = None) -> set[str]:
    """Names of the checks that fail."""
    wanted = [item(number).item_key for number in range(1, NUM + 1)]
    mistakes = mistakes_of(paths, wanted, undisturbed or rows_of(paths.records), Scheduler)
    return {name for name, wrong in mistakes.items() if wrong}


def test_a_run_in_order_has_no_mistakes(paths: RunPaths) -> None:
    assert found(paths) == set()


def edit(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = rows_of(path)
    change(rows)
    write(path, rows)


def test_a_record_too_many_or_too_few_is_found(paths: RunPaths) -> None:
    edit(paths.records, lambda rows: rows.append(rows[0]))
    assert found(paths) == {"one record for each item"}
    edit(paths.records, lambda rows: rows.__delitem__(slice(1, 3)))
    assert "one record for each item" in found(paths)


def test_a_video_of_other_bytes_is_found(paths: RunPaths) -> None:
    paths.video("dvg", "p1", 1).write_text("torn")
    assert found(paths) == {"every video whole"}


def test_another_decision_than_undisturbed_is_found(paths: RunPaths) -> None:
    rows = rows_of(paths.records)
    rows[0]["action"] = "s0.50-f11"
    assert found(paths, rows) == {"decisions and videos as undisturbed"}


def test_a_command_that_the_scheduler_would_not_give_is_found(paths: RunPaths) -> None:
    edit(paths.events, lambda rows: rows[6]["commands"].pop())
    assert "books balance" in found(paths)


@pytest.mark.parametrize("stray", ["videos/dvg/p1/.1.2.mp4", "checkpoints/key1.safetensors", ".records.jsonl.part"])
def test_what_a_killed_attempt_left_is_found(paths: RunPaths, stray: str) -> None:
    (paths.root / stray).parent.mkdir(parents=True, exist_ok=True)
    (paths.root / stray).touch()
    assert found(paths) == {"no stray file"}


def test_an_innocent_that_is_charged_is_found(paths: RunPaths) -> None:
    def charge(rows: list[dict[str, Any]]) -> None:
        """As if the clip on the rank that lived had been begun again."""
        (begun,) = [c for row in rows for c in row["commands"] if c["type"] == "StartPhase" and c["slice"]["start"] == 0][:1]
        rows[8]["commands"].append({**begun, "attempt": 2})

    edit(paths.events, charge)
    assert "innocents lose no attempt" in found(paths)


def test_what_was_lost_is_counted(paths: RunPaths) -> None:
    lost = losses(rows_of(paths.events))
    assert lost == {"starts": 1, "workers_lost": {"pod": 1}, "clips_interrupted": 1, "work_lost_s": pytest.approx(2.0)}


Victims = dict[str, list[list[int]]]


class PaperRig:
    """Victims are numbers of processes; those of ``gone`` end by themselves as they are struck."""

    driver = None

    def __init__(self, victims: Victims, gone: set[int]) -> None:
        self.victims, self.gone, self.killed = victims, gone, list[int]()

    def at_work(self, kind: str, patience_s: float) -> list[Any]:
        found = self.victims.get(kind, [])
        return [type("Process", (), {"pid": pid})() for pid in (found.pop(0) if found else [])]

    def kill(self, process: Any) -> None:
        if process.pid in self.gone:
            raise psutil.NoSuchProcess(process.pid)
        self.killed.append(process.pid)


def struck(paths: RunPaths, kind: str, victims: Victims, gone: set[int], items: int = 9) -> tuple[Tally, PaperRig]:
    rig, tally = PaperRig(victims, gone), Tally()
    paper: Any = rig
    Rampage(parse(["--items", str(items)]), paper, paths, tally, [], paths.root / "log")._strike(kind)
    return tally, rig


def test_only_a_kill_that_hit_somebody_counts_and_another_victim_is_looked_for(paths: RunPaths) -> None:
    tally, rig = struck(paths, "rank", {"rank": [[1], [], [2]]}, gone={1})
    assert (dict(tally.kills), rig.killed) == ({"rank": 1}, [2])


def test_where_nobody_of_a_kind_lives_a_rank_is_struck_instead_and_counted_as_one(paths: RunPaths) -> None:
    tally, rig = struck(paths, "sketch", {"rank": [[3]]}, gone=set())
    assert (dict(tally.kills), tally.misses, rig.killed) == ({"rank": 1}, 1, [3])


def test_a_sweep_that_is_over_is_struck_no_more(paths: RunPaths) -> None:
    tally, rig = struck(paths, "rank", {"rank": [[4]]}, gone=set(), items=NUM)
    assert (tally.kills.total(), rig.killed) == (0, [])


@pytest.mark.parametrize(("num_kills", "wrong", "code"), [(10, [], 0), (11, [], 0), (9, [], 1), (10, ["torn"], 1)])
def test_fewer_kills_than_asked_for_or_a_check_that_fails_is_no_success(num_kills: int, wrong: list[str], code: int) -> None:
    assert verdict({"mistakes": {"whole": wrong}, "num_kills": num_kills, "options": {"kills": 10}}) == code
