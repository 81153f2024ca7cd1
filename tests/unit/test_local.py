"""The in-process shell: same events and commands as on a cluster, failures retried, everything written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.eventlog import starts
from orchestrator.events import Command, Event, StartDecode
from orchestrator.ledger import Ledger
from orchestrator.local import run_local
from orchestrator.mistakes import RunError
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig, replay
from orchestrator.types import Action, Clip, Decision, Demand, Item, Record
from tests.arms import ARM, STAGES

DECISION = Decision(Action("s0.70-f9", STAGES, 0.5, 0.7, 9), "still", Demand(0.25, 0.5), (0.3, 0.7))


def items(*numbers: int) -> list[Item]:
    return [Item(f"key{n}", "dvg", f"p{n}", "a red circle", n) for n in numbers]


class FakeWorker:
    """Makes files that say what they are; fails as often as ``failures`` says for an item and phase."""

    def __init__(self, failures: dict[tuple[str, str], int] | None = None) -> None:
        self.failures = dict(failures or {})
        self.calls: list[tuple[str, str]] = []

    def _begin(self, phase: str, item: Item) -> None:
        self.calls.append((phase, item.item_key))
        left = self.failures.get((phase, item.item_key), 0)
        if left:
            self.failures[phase, item.item_key] = left - 1
            raise ArithmeticError(f"{phase} of {item.item_key}\nbroke")

    def sketch(self, item: Item) -> tuple[Decision, dict[str, float], Any]:
        self._begin("sketch", item)
        return DECISION, {"text_s": 0.5, "sketch_s": 1.0, "stage1_s": 0.9}, "sketched"

    def refine(self, item: Item, boundary: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, float]]:
        self._begin("refine", item)
        assert options == {"stop": 2}
        assert boundary == "sketched"
        return "refined", {"refine_s": 3.0, "stage2_s": 2.5}

    def decode(self, item: Item, boundary: Any, path: Path) -> Clip:
        self._begin("decode", item)
        assert boundary == "refined"
        content = f"video {item.seed}".encode()
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return Clip(path.name, len(content), digest, {"decode_s": 0.25, "encode_s": 0.125})


class Run:
    """One run in a folder, as a caller of the shell sees it."""

    def __init__(self, root: Path, worker: FakeWorker, **config: Any) -> None:
        self.paths = RunPaths(root)
        self.worker = worker
        self.scheduler = Scheduler(SchedulerConfig(**config))
        self.records: list[Record] = []
        self.failures: list[dict[str, Any]] = []
        self.events: list[tuple[Event, list[Command]]] = []

    def make(self, *numbers: int) -> Run:
        runbook = Runbook(Ledger(self.paths), {"dvg": ARM}, self.records.append, self.failures.append)
        run_local(
            items(*numbers),
            self.worker,
            self.scheduler,
            runbook,
            lambda event, commands: self.events.append((event, list(commands))),
        )
        return self


def test_every_item_ends_in_a_record_and_a_video_and_the_log_replays(tmp_path: Path) -> None:
    run = Run(tmp_path, FakeWorker()).make(1, 2, 3)
    assert [record.item_key for record in Ledger(run.paths).records()] == ["key1", "key2", "key3"]
    assert run.records == Ledger(run.paths).records()
    for record in run.records:
        assert (tmp_path / record.video).read_bytes() == f"video {record.seed}".encode()
    rows = [json.loads(line) for line in run.paths.events.read_text().splitlines()]
    assert len(rows) == len(run.events)
    replay(rows, Scheduler())


def test_a_record_says_what_was_made_how_and_for_how_long(tmp_path: Path) -> None:
    (record,) = Run(tmp_path, FakeWorker()).make(1).records
    assert (record.text_s, record.sketch_s, record.refine_s, record.denoise_s) == (0.5, 1.0, 3.0, 4.0)
    assert (record.decode_s, record.encode_s) == (0.25, 0.125)
    assert record.stage_grids == "4x8x8|11x18x18"
    assert record.stage_s == "0.900|2.500"
    assert (record.degree, record.stage_degrees, record.sizing) == (1, "1|1", "1 rank, the narrowest")
    assert (record.spatial_demand, record.temporal_demand, record.spatial_weight) == (0.25, 0.5, 0.3)
    assert record.tokens_full == 891
    assert record.video == "videos/dvg/p1/1.mp4"
    assert 0 < record.device_s <= record.latency_s


def test_a_pod_that_decodes_is_the_same_worker_here(tmp_path: Path) -> None:
    run = Run(tmp_path, FakeWorker(), decode_on="pod").make(1, 2)
    assert [record.item_key for record in run.records] == ["key1", "key2"]
    rows = [json.loads(line) for line in run.paths.events.read_text().splitlines()]
    decodes = [command for row in rows for command in row["commands"] if command["type"] == "StartDecode"]
    assert [command["worker"] for command in decodes] == ["pod-0", "pod-0"]


def test_a_failed_phase_is_tried_again_from_its_boundary_and_only_that_item_is_charged(tmp_path: Path) -> None:
    worker = FakeWorker({("refine", "key1"): 1})
    run = Run(tmp_path, worker).make(1, 2)
    assert {record.item_key: record.attempts for record in run.records} == {"key1": 2, "key2": 1}
    assert worker.calls.count(("sketch", "key1")) == 1
    assert worker.calls.count(("refine", "key1")) == 2


def test_a_poison_item_is_given_up_with_its_story_and_the_others_finish(tmp_path: Path) -> None:
    run = Run(tmp_path, FakeWorker({("decode", "key1"): 99}), max_attempts=2).make(1, 2)
    assert [record.item_key for record in run.records] == ["key2"]
    (failure,) = run.failures
    assert json.loads(run.paths.failure("key1").read_text()) == failure
    assert failure["error"] == "decoding failed: ArithmeticError: decode of key1 broke"
    assert failure["attempts"] == 2
    assert "Traceback" in failure["story"][-1]
    assert failure["prompt"] == "a red circle"


def test_a_scheduler_that_forgets_an_item_is_an_error_and_not_a_run_that_is_done(tmp_path: Path) -> None:
    class Forgetful(Scheduler):
        def handle(self, event: Event) -> list[Command]:
            return [command for command in super().handle(event) if not isinstance(command, StartDecode)]

    run = Run(tmp_path, FakeWorker())
    run.scheduler = Forgetful()
    with pytest.raises(RunError, match="not every item is done: 1 refined, 1 decoding"):
        run.make(1, 2)


def test_an_interrupt_stops_at_once_and_the_same_call_again_finishes_the_rest(tmp_path: Path) -> None:
    class Interrupted(FakeWorker):
        def refine(self, item: Item, boundary: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, float]]:
            if item.item_key == "key2":
                raise KeyboardInterrupt
            return super().refine(item, boundary, *args, **options)

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, Interrupted()).make(1, 2, 3)
    ledger = Ledger(RunPaths(tmp_path))
    done = ledger.finished
    assert "key2" not in done
    todo, _ = ledger.resume(items(1, 2, 3), lambda video, num_frames: None)
    Run(tmp_path, FakeWorker()).make(*(item.seed for item in todo))
    rows = [json.loads(line) for line in RunPaths(tmp_path).events.read_text().splitlines()]
    assert len(starts(rows)) == 2
    for start in starts(rows):
        replay(start, Scheduler())
    assert sorted(record.item_key for record in Ledger(RunPaths(tmp_path)).records()) == ["key1", "key2", "key3"]
