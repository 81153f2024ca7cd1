"""Real workers of a tiny checkpoint, one of which dies in the middle of a step that it shares with another rank."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.arms import Arm
from orchestrator.pods import ClipWorkshop
from orchestrator.types import Decision, Item, Phase

VICTIM, COMPANION = "victim", "companion"


@dataclass(frozen=True)
class ByPrompt:
    """A policy: the widths of stages 2, 3, ... by prompt id."""

    widths: dict[str, tuple[int, ...]]

    def priority(self, item: Item, decision: Decision) -> float:
        return 0.0

    def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
        widths = self.widths[item.prompt_id]
        stops = range(len(decision.action.stages) - len(widths) + 1, len(decision.action.stages) + 1)
        return tuple(Phase(stop, width, f"{width} asked for") for stop, width in zip(stops, widths, strict=True))

    def decode_width(self, item: Item, max_width: int) -> int:
        return min(2, max_width)


@dataclass(frozen=True)
class TrappedWorkshop(ClipWorkshop):
    """The first time, the first rank of the victim's slice dies in mid-step, while the companion is at work elsewhere."""

    folder: Path = Path()

    def worker_class(self) -> Any:
        from stages.worker import ClipWorker

        class Trapped(ClipWorker):
            def refine(worker, item: Item, boundary: Any, on_step: Any, *, stop: int | None = None, team: Any = None) -> Any:
                if item.prompt_id == VICTIM and team.groups.rank == team.start and not (self.folder / "died").exists():
                    team = dataclasses.replace(team, exchange=Trap(team.exchange, self.folder))
                if item.prompt_id == COMPANION:
                    on_step = beside(self.folder, on_step)
                return super().refine(item, boundary, on_step, stop=stop, team=team)

        return Trapped


@dataclass
class Trap:
    """An exchange that kills the process at the fourth call: two blocks make two of each step."""

    exchange: Any
    folder: Path
    num_calls: int = 0

    @property
    def name(self) -> str:
        return str(self.exchange.name)

    def __call__(self, *args: Any) -> Any:
        self.num_calls += 1
        if self.num_calls > 3:
            wait_for(self.folder / "beside")
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.exchange(*args)


def beside(folder: Path, on_step: Any) -> Any:
    """The companion is at work when the victim dies, and stays so until after."""

    def note(step: Any) -> None:
        (folder / "beside").touch()
        wait_for(folder / "died")
        on_step(step)

    return note


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{path.name} did not come")
        time.sleep(0.02)


def arm(weights: Path, **changes: Any) -> Arm:
    shape = {"num_frames": 25, "height": 96, "width": 96, "fps": 8, "num_steps": 12, "guidance": 1.0}
    kind = {"name": "dvg", "model": "wan-mini", "planner": "dvg", "budget": 0.5, "weights": str(weights)}
    return Arm.model_validate(kind | shape | changes)
