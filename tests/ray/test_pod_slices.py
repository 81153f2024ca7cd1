"""Clips on slices of a real pod over gloo: the width makes no difference to the video, nor does the death of a neighbour."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from orchestrator.arms import Arm
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
from tests.checkpoints import copied
from tests.ray.traps import COMPANION, VICTIM, ByPrompt, TrappedWorkshop, arm
from tests.tiny import checkpoint

WIDTHS = {VICTIM: (2, 2, 2), COMPANION: (2, 2, 2), "narrow": (1, 1, 1), "mixed": (1, 2, 4)}
"""Of stages 2, 3 and 4, in phases of one stage each."""
GUIDED_WIDTHS = {"pair": (2, 2, 2), "four": (4, 4, 4)}
GUIDANCE = {"guidance": 3.0, "negative_prompt": "slow square"}


@dataclass
class Made:
    paths: RunPaths
    arms: dict[str, Arm]
    records: dict[str, Record]
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    """The last of each clip."""
    log: list[dict[str, Any]] = field(default_factory=list)

    def video(self, name: str) -> Path:
        return self.paths.root / self.records[name].video


def clip(name: str, of: str = "dvg") -> Item:
    return Item(f"key-{name}", of, name, "a red circle moves left", 7)


@pytest.fixture(scope="module")
def made(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A sweep on a pod of four ranks: one clip by each name, all of the same prompt and seed.

    Those that are guided have weights of their own, which are spread over two ranks. Slices of two decode.
    """
    root = tmp_path_factory.mktemp("slices")
    guided = arm(copied("wan-mini", root), **GUIDANCE).model_copy(update={"name": "guided"})
    arms, widths = {"dvg": arm(checkpoint()), "guided": guided}, WIDTHS | GUIDED_WIDTHS
    items = [clip(name, "guided" if name in GUIDED_WIDTHS else "dvg") for name in widths]
    latents: dict[str, np.ndarray] = {}
    scheduler = Scheduler(SchedulerConfig(decode_on="pod"), ByPrompt(widths))

    def look(event: Event, commands: Any) -> None:
        scheduler.check()
        if isinstance(event, PhaseDone):
            latents[event.item_key.removeprefix("key-")] = ray.get(event.handle)["x"]

    paths, config = RunPaths(root / "run"), ClusterConfig(heavy_ranks=4, num_threads=1, decode_on="pod")
    sweep = Sweep("test", tuple(arms.values()), tuple(items), None, 3, config, TrackingConfig())
    workshop = TrappedWorkshop(arms, shards={"guided": 2}, folder=root)
    run_on_ray(sweep, items, scheduler, Runbook(Ledger(paths), arms), look, workshop, cluster)
    log = [json.loads(line) for line in paths.events.read_text().splitlines()]
    replay(log, Scheduler(SchedulerConfig(decode_on="pod"), ByPrompt(widths)))
    return Made(paths, arms, {record.prompt_id: record for record in Ledger(paths).records()}, latents, log)


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
    once = dict.fromkeys(WIDTHS | GUIDED_WIDTHS, 1)
    assert {name: record.attempts for name, record in made.records.items()} == once | {VICTIM: 2}
    assert made.video(VICTIM).read_bytes() == made.video(COMPANION).read_bytes()


def test_the_other_slice_finishes_what_it_has_in_hand_before_the_pod_is_formed_anew(made: Made) -> None:
    places = [(row["type"], row.get("worker")) for row in made.log]
    lost, joined = places.index(("WorkerLost", "pod-0")), places.index(("WorkerJoined", "pod-0.1"))
    begun = [command["type"] for row in made.log[: lost + 1] for command in row["commands"] if of_companion(command)]
    ended = [row["type"] for row in made.log[:joined] if of_companion(row)]
    assert 0 < begun.count("StartPhase") <= ended.count("PhaseDone")
    assert begun.count("StartDecode") <= ended.count("Decoded")


def of_companion(row: dict[str, Any]) -> bool:
    return row.get("item_key") == f"key-{COMPANION}"


def test_the_error_names_pod_rank_clip_and_stage(made: Made) -> None:
    (lost,) = [row for row in made.log if row["type"] == "WorkerLost"]
    (dead,) = lost["ranks"]
    assert dead % 2 == 0
    assert lost["worker"] == "pod-0"
    assert lost["reason"].startswith(f"rank {dead} died in clip {VICTIM} (key-{VICTIM}), stage 2, step ")


def test_guidance_is_split_weights_are_spread_and_a_pod_decodes_with_the_same_result(made: Made, tmp_path: Path) -> None:
    latent, frames = alone(made.arms["guided"], tmp_path / "alone.mp4")
    for name in GUIDED_WIDTHS:
        assert np.abs(made.latents[name] - latent).max() <= 1e-5
        apart = np.abs(read_video(made.video(name)).astype(int) - frames)
        assert apart.mean() <= 0.05, "more than a few bytes that were rounded the other way, as the encoder spreads them"
    decodes = [command for row in made.log for command in row["commands"] if command["type"] == "StartDecode"]
    assert {command["item_key"] for command in decodes} == {f"key-{name}" for name in made.records}
    assert {command["slice"]["width"] for command in decodes} == {2}


def alone(of: Arm, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The clip of an arm in this process: its last latent and its frames."""
    worker = ClipWorker({of.name: of}, num_threads=1)
    item = clip("alone", of.name)
    boundary, _ = worker.refine(item, worker.sketch(item)[2])
    worker.decode(item, boundary, path)
    return boundary.x.numpy(), read_video(path).astype(int)
