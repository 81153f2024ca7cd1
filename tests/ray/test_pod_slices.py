"""Clips on slices of a real pod over gloo: the width makes no difference to the video, nor does the death of a neighbour."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep, TrackingConfig
from orchestrator.driver import run_on_ray
from orchestrator.events import Event, PhaseDone
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig, replay
from orchestrator.types import Item, Record
from stages.video import read_video
from stages.worker import ClipWorker
from tests.ray.traps import COMPANION, VICTIM, ByPrompt, TrappedWorkshop, arm
from tests.tiny import checkpoint

WIDTHS = {VICTIM: (2, 2, 2), COMPANION: (2, 2, 2), "narrow": (1, 1, 1), "mixed": (1, 2, 4)}
"""Of stages 2, 3 and 4, in phases of one stage each."""


@dataclass
class Made:
    paths: RunPaths
    records: dict[str, Record]
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    """The last of each clip."""
    log: list[dict[str, Any]] = field(default_factory=list)

    def video(self, name: str) -> Path:
        return self.paths.root / self.records[name].video


def clip(name: str) -> Item:
    return Item(f"key-{name}", "dvg", name, "a red circle moves left", 7)


def make(
    cluster: Cluster,
    root: Path,
    changes: dict[str, Any],
    decode_on: Literal["workers", "pod"],
    shards: dict[str, int],
    **widths: tuple[int, ...],
) -> Made:
    """A sweep of one clip by each name, all of the same prompt and seed, on a pod of four ranks."""
    made_of = arm(checkpoint(), **changes)
    items = [clip(name) for name in widths]
    config = ClusterConfig(heavy_ranks=4, num_threads=1, decode_on=decode_on)
    latents: dict[str, np.ndarray] = {}
    scheduler = Scheduler(SchedulerConfig(decode_on=decode_on), ByPrompt(widths))

    def look(event: Event, commands: Any) -> None:
        scheduler.check()
        if isinstance(event, PhaseDone):
            latents[event.item_key.removeprefix("key-")] = ray.get(event.handle)["x"]

    paths = RunPaths(root / "run")
    sweep = Sweep("test", (made_of,), tuple(items), None, 3, config, TrackingConfig())
    runbook = Runbook(Ledger(paths), {"dvg": made_of})
    run_on_ray(sweep, items, scheduler, runbook, look, TrappedWorkshop({"dvg": made_of}, shards=shards, folder=root), cluster)
    log = [json.loads(line) for line in paths.events.read_text().splitlines()]
    replay(log, Scheduler(SchedulerConfig(decode_on=decode_on), ByPrompt(widths)))
    return Made(paths, {record.prompt_id: record for record in Ledger(paths).records()}, latents, log)


@pytest.fixture(scope="module")
def made(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(cluster, tmp_path_factory.mktemp("slices"), {}, "workers", {}, **WIDTHS)


@pytest.mark.parametrize("name", [COMPANION, "mixed"])
def test_a_clip_on_several_ranks_is_the_clip_on_one(made: Made, name: str) -> None:
    assert np.abs(made.latents[name] - made.latents["narrow"]).max() <= 1e-5
    ours, alone = (read_video(made.video(each)).astype(int) for each in (name, "narrow"))
    assert np.abs(ours - alone).max() <= 1


@pytest.mark.parametrize(
    "name, degree, stage_degrees", [("narrow", 1, "1|1|1|1"), (COMPANION, 2, "1|2|2|2"), ("mixed", 4, "1|1|2|4")]
)
def test_records_say_on_how_many_ranks_each_stage_ran_and_why(made: Made, name: str, degree: int, stage_degrees: str) -> None:
    record = made.records[name]
    assert (record.degree, record.stage_degrees, record.sizing) == (degree, stage_degrees, f"{degree} asked for")
    assert record.stage_s.count("|") == 3
    assert all(float(seconds) > 0 for seconds in record.stage_s.split("|"))
    assert record.refine_s == pytest.approx(sum(map(float, record.stage_s.split("|")[1:])), abs=0.002)


def test_a_rank_killed_in_mid_step_costs_its_own_clip_one_attempt_and_not_a_byte(made: Made) -> None:
    assert {name: record.attempts for name, record in made.records.items()} == dict.fromkeys(WIDTHS, 1) | {VICTIM: 2}
    assert made.video(VICTIM).read_bytes() == made.video(COMPANION).read_bytes()


def test_the_other_slice_finishes_its_phase_before_the_pod_is_formed_anew(made: Made) -> None:
    order = [(row["type"], row.get("item_key") or row.get("worker")) for row in made.log]
    lost, joined = order.index(("WorkerLost", "pod-0")), order.index(("WorkerJoined", "pod-0.1"))
    assert ("PhaseDone", f"key-{COMPANION}") in order[lost:joined]


def test_the_error_names_pod_rank_clip_and_stage(made: Made) -> None:
    (lost,) = [row for row in made.log if row["type"] == "WorkerLost"]
    (dead,) = lost["ranks"]
    assert dead % 2 == 0
    assert lost["worker"] == "pod-0"
    assert lost["reason"].startswith(f"rank {dead} died in clip {VICTIM} (key-{VICTIM}), stage 2, step ")


def test_guidance_is_split_weights_are_spread_and_a_pod_decodes_with_the_same_result(cluster: Cluster, tmp_path: Path) -> None:
    guided = {"guidance": 3.0, "negative_prompt": "slow square"}
    made = make(cluster, tmp_path, guided, decode_on="pod", shards={"dvg": 2}, pair=(2, 2, 2), four=(4, 4, 4))
    latent, frames = alone(guided, tmp_path / "alone.mp4")
    for name in ("pair", "four"):
        assert np.abs(made.latents[name] - latent).max() <= 1e-5
        apart = np.abs(read_video(made.video(name)).astype(int) - frames)
        assert apart.mean() <= 0.05, "more than a few bytes that were rounded the other way, as the encoder spreads them"
    decodes = [command for row in made.log for command in row["commands"] if command["type"] == "StartDecode"]
    assert [command["slice"]["width"] for command in decodes] == [2, 2]


def alone(changes: dict[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same clip in this process: its last latent and its frames."""
    worker = ClipWorker({"dvg": arm(checkpoint(), **changes)}, num_threads=1)
    item = clip("alone")
    boundary, _ = worker.refine(item, worker.sketch(item)[2])
    worker.decode(item, boundary, path)
    return boundary.x.numpy(), read_video(path).astype(int)
