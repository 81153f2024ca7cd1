"""Workers without a model that meet in real collectives, and come to grief in them as a clip's id says."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.types import Item
from tests.ray.fakes import FakeWorker, FakeWorkshop, Latent


@dataclass(frozen=True)
class StepDone:
    stage: int
    step: int


@dataclass(frozen=True)
class SharedWorkshop(FakeWorkshop):
    """Fakes that meet in real collectives: the second rank of the slice does what the clip's id says, at its first attempt."""

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Any = None) -> FakeWorker:
        super().make(parts, device, num_threads)
        return SharedWorker(self, device)


class SharedWorker(FakeWorker):
    def refine(
        self, item: Item, boundary: Latent, on_step: Any, *, stop: int | None, team: Any
    ) -> tuple[Latent, dict[str, float]]:
        import torch

        how, group = item.item_key, team.layout(1).whole
        first = not (self.folder / f"suffered.{how}.{group.rank}").exists()
        (self.folder / f"suffered.{how}.{group.rank}").touch()
        suffers = group.rank == 1 and first
        group.agree("latent 7x14x14" if suffers and how == "mismatch" else "latent 7x18x18")
        for step in range(4):
            on_step(StepDone(1, step))
            if suffers and step == 2:
                self._fall(how)
            if how == "still" and first and step == 3:
                time.sleep(3600)
            if how == "ill" and step == 3:
                raise ArithmeticError("the latent is not finite")
            group.gather_rows(torch.ones(1), (1, 1))
        return super().refine(item, boundary, on_step, stop=stop, team=team)

    def _fall(self, how: str) -> None:
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(3600)  # another thread may be the one that the signal stops first
        elif how == "alone":
            raise MemoryError("no room on this rank")
        elif how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
