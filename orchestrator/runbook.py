"""What both shells do when an item ends: make its record, write it down, pass it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator import attended
from orchestrator.actions import density_executed
from orchestrator.arms import Arm
from orchestrator.budgets import Target
from orchestrator.checkpoints import Checkpoints, Found
from orchestrator.cost import denoise_s
from orchestrator.events import Arrived, Event, Finish, GiveUp, Reached
from orchestrator.geometry import ModelGeometry, model
from orchestrator.ledger import Ledger, item_row
from orchestrator.store import Destination
from orchestrator.types import Action, Decision, Item, Phase, Record


class Runbook:
    """Writes one run's ledger. ``on_record`` and ``on_failure`` hear of an item after it is safely on disk.

    ``found`` are the boundaries that items of this run go on from; an item given up keeps its own for the next start.
    """

    def __init__(
        self,
        ledger: Ledger,
        arms: Mapping[str, Arm],
        on_record: Callable[[Record], None] = lambda record: None,
        on_failure: Callable[[dict[str, Any]], None] = lambda failure: None,
        checkpoints: Checkpoints | None = None,
        found: Mapping[str, Found] | None = None,
    ) -> None:
        self.ledger = ledger
        self.arms = arms
        self.on_record = on_record
        self.on_failure = on_failure
        self.checkpoints = checkpoints
        self.found = found or {}

    def arrived(self, item: Item, time_s: float) -> list[Event]:
        """What a shell tells of an item at the start."""
        found = self.found.get(item.item_key)
        return [Arrived(time_s, item), *([_reached(found, 1, time_s)] if found else [])]

    def reached(self, item_key: str, attempt: int, time_s: float) -> Reached | None:
        """What a shell tells right before a failure or a loss: how far the item's last boundary on disk is, if any."""
        found = self.checkpoints.find(item_key) if self.checkpoints else None
        return _reached(found, attempt, time_s) if found else None

    def staging(self, item: Item, attempt: int) -> Destination:
        """Where this attempt's decoder writes; a path is absolute, and its folder exists."""
        return self.ledger.staging(item, attempt)

    def finish(self, finish: Finish, device: str, host: str) -> Record:
        """The record, safely on disk; the shell tells :attr:`on_record` of it. Touches nothing that other calls do."""
        item, arm = finish.item, self.arms[finish.item.arm]
        record = make_record(finish, arm, model(arm.model), device, host, self.ledger.video_of(item))
        self.ledger.finish(record)
        if self.checkpoints is not None:
            self.checkpoints.remove(item.item_key)
        return record

    def give_up(self, command: GiveUp) -> None:
        self.on_failure(self.ledger.fail(command.item, command.error, command.story, command.attempt))


def _reached(found: Found, attempt: int, time_s: float) -> Reached:
    return Reached(
        *(time_s, found.item_key, attempt, found.decision, found.stop, found.timings_s, found.phases),
        device_s=found.past.device_s,
        latency_s=found.latency_s,
        handle=found.handle,
    )


def make_record(
    finish: Finish, arm: Arm, geometry: ModelGeometry, device: str, host: str, video: str, finished_at: str | None = None
) -> Record:
    """The flat row of a finished item. ``video`` is relative to the run folder; ``finished_at`` None: now, UTC."""
    item, action, clip = finish.item, finish.decision.action, finish.clip
    return Record(
        **_asked(item, arm),
        num_steps=sum(stage.steps for stage in action.stages),
        solver=arm.solver or geometry.solver,
        **_decided(finish.decision),
        density_executed=density_executed(geometry, action, arm.num_steps),
        tokens_full=geometry.num_tokens(geometry.latent_grid(arm.shape)),
        stage_s=_stage_seconds(action, finish.timings_s),
        **_seconds(finish.timings_s),
        latency_s=finish.latency_s,
        device_s=finish.device_s,
        degree=max((phase.width for phase in finish.phases), default=1),
        stage_degrees=_stage_degrees(action, finish.phases),
        sizing=max(finish.phases, key=lambda phase: phase.width).why if finish.phases else "",
        attempts=finish.attempt,
        device=device,
        host=host,
        video=video,
        num_bytes=clip.num_bytes,
        sha256=clip.sha256,
        finished_at=finished_at or datetime.now(UTC).isoformat(timespec="seconds"),
        tflops=clip.tflops,
        num_restored=clip.num_restored,
        restored_by=clip.restored_by,
        **attended.told(clip.attended),
        **_prediction(arm, geometry, action),
    )


def _asked(item: Item, arm: Arm) -> dict[str, Any]:
    return {
        **item_row(item),
        "image": item.image,
        "model": arm.model,
        "planner": arm.planner,
        "accelerators": "+".join(use.name for use in arm.accelerators),
        "reconstructed": "+".join(arm.reconstructed),
        "budget": arm.budget,
        "guidance": arm.guidance,
        "num_frames": arm.num_frames,
        "height": arm.height,
        "width": arm.width,
        "fps": arm.fps,
    }


def _decided(decision: Decision) -> dict[str, Any]:
    action, demand = decision.action, decision.demand
    spatial_weight, temporal_weight = decision.weights or (None, None)
    return {
        "spatial_demand": demand.spatial if demand else None,
        "temporal_demand": demand.temporal if demand else None,
        "spatial_weight": spatial_weight,
        "temporal_weight": temporal_weight,
        "neutral_demand": bool(demand and demand.neutral),
        "action": action.name,
        "s2": action.s2,
        "f2": action.f2,
        "why": decision.why,
        "density": action.density,
        "stage_grids": "|".join("x".join(map(str, stage.grid)) for stage in action.stages),
    }


def _seconds(timings_s: Mapping[str, float]) -> dict[str, Any]:
    told = {name: timings_s.get(name, 0.0) for name in ("text_s", "sketch_s", "refine_s", "decode_s", "encode_s", "restore_s")}
    return {**told, "denoise_s": told["sketch_s"] + told["refine_s"]}


def _prediction(arm: Arm, geometry: ModelGeometry, action: Action) -> dict[str, Any]:
    target = arm.target or (Target(value=arm.budget) if arm.budget else None)
    asked = {"target": str(target) if target else ""}
    if arm.cost is None or arm.accelerators:  # what a cache leaves out is not predicted
        return asked
    predicted_s = denoise_s(geometry, action, arm.cost)
    return {**asked, "predicted_s": predicted_s, "cost_label": arm.cost.label, "cost_device": arm.cost.device}


def _stage_degrees(action: Action, phases: Iterable[Phase]) -> str:
    widths = [1] * action.num_sketched
    for phase in phases:
        widths += [phase.width] * (phase.stop - len(widths))
    return "|".join(map(str, widths))


def _stage_seconds(action: Action, timings_s: Mapping[str, float]) -> str:
    return "|".join(f"{timings_s.get(f'stage{k}_s', 0.0):.3f}" for k in range(1, len(action.stages) + 1))
