"""Workers of a real model that die just after a boundary is on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints import Checkpoints
from orchestrator.keeper import Keeper, Packable
from orchestrator.pods import ClipWorkshop
from orchestrator.work import Worker

if TYPE_CHECKING:
    from parallel.groups import Groups

DEATHS = (1, 2, 4)
"""After the sketch its worker dies; a rank after stage 2, at work on stage 3; and one after the last stage."""


class Deadly(Checkpoints):
    """Kills its process once each of ``DEATHS`` is on disk."""

    def __init__(self, root: Path, deaths: Path) -> None:
        super().__init__(root)
        self.deaths = deaths

    def save(self, item_key: str, packed: dict[str, Any], made_by: Mapping[str, str] | None = None) -> None:
        super().save(item_key, packed, made_by)
        death = self.deaths / str(packed["stage"])
        if packed["stage"] in DEATHS and not death.exists():
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Waiting(Keeper):
    """Waits for the last boundary of all: the clip may be done before a busy disk has it, and then nobody would die of it."""

    def keep(self, item_key: str, boundary: Packable, made_by: Mapping[str, str]) -> None:
        super().keep(item_key, boundary, made_by)
        if boundary.pack()["stage"] == DEATHS[-1]:
            self.settle()


@dataclass(frozen=True)
class DeadlyWorkshop(ClipWorkshop):
    deaths: Path = Path()

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Groups | None = None) -> Worker:
        worker: Any = super().make(parts, device, num_threads, groups)
        assert self.checkpoints is not None
        worker.keeper = Waiting(Deadly(self.checkpoints, self.deaths))
        return worker  # type: ignore[no-any-return]
