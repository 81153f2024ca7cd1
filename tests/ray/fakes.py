"""A worker without a model: light, quick, and it dies or fails where a prompt tells it to.

A prompt is words like ``die-refine-1`` (the process kills itself in the first refine of the item), ``fail-decode-9`` (an
exception in the first nine), ``slow-sketch-9`` (they take a second), ``hang-sketch-1`` (it never ends) or ``hold-refine-9`` (they
wait for a file release.item or release.all). Calls leave one file each: phase.item.pid.number.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep, TrackingConfig
from orchestrator.types import Action, Clip, Decision, Item
from tests.arms import ARM, STAGES

DECISION = Decision(Action("s0.70-f9", STAGES, 0.5, 0.7, 9), "still")
LATENT_CELLS = 100_000
"""Large enough for the object store to hold it, as real latents are."""


def items(**prompts: str) -> list[Item]:
    return [Item(key, "dvg", key, prompt, number) for number, (key, prompt) in enumerate(prompts.items())]


def sweep(made: list[Item], cluster: ClusterConfig | None = None, max_attempts: int = 3) -> Sweep:
    return Sweep("test", (ARM,), tuple(made), None, max_attempts, cluster or ClusterConfig(), TrackingConfig())


class Tripwire:
    """Leaves word where it is unpickled in the driver: whatever holds it must never be opened there."""

    def __init__(self, driver_pid: int, folder: Path) -> None:
        self.driver_pid = driver_pid
        self.folder = folder

    def __reduce__(self) -> Any:
        return _open, (self.driver_pid, self.folder)


def _open(driver_pid: int, folder: Path) -> Tripwire:
    if os.getpid() == driver_pid:
        (folder / "opened-in-the-driver").touch()
    return Tripwire(driver_pid, folder)


@dataclass(frozen=True)
class Latent:
    x: np.ndarray
    phase: str
    wire: Tripwire

    def pack(self) -> dict[str, Any]:
        return {"x": self.x, "phase": self.phase, "wire": self.wire}


@dataclass(frozen=True)
class FakeWorkshop:
    folder: Path
    driver_pid: int
    broken: str = ""
    """"raise" or "die": workers cannot be made."""

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Any = None) -> FakeWorker:
        if self.broken == "raise":
            raise ValueError("weights 'nowhere' do not exist")
        if self.broken == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"born.{'-'.join(sorted(parts))}.{os.getpid()}").touch()
        return FakeWorker(self, device)

    def unpack(self, packed: dict[str, Any]) -> Latent:
        return Latent(**packed)


class FakeWorker:
    def __init__(self, workshop: FakeWorkshop, device: str) -> None:
        self.folder = workshop.folder
        self.wire = Tripwire(workshop.driver_pid, workshop.folder)
        assert device == "cpu"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

    def sketch(self, item: Item) -> tuple[Decision, dict[str, float], Latent]:
        self._obey(item, "sketch")
        return DECISION, {"sketch_s": 0.5}, Latent(np.full(LATENT_CELLS, item.seed), "sketched", self.wire)

    def refine(
        self, item: Item, boundary: Latent, on_step: Any = None, *, stop: int | None = None, team: Any = None
    ) -> tuple[Latent, dict[str, float]]:
        self._obey(item, "refine")
        assert boundary.phase == "sketched"
        assert boundary.x.max() == item.seed
        return Latent(boundary.x + 1000, "refined", self.wire), {"refine_s": 1.5}

    def decode(self, item: Item, boundary: Latent, path: Path) -> Clip:
        self._obey(item, "decode")
        assert boundary.phase == "refined"
        content = f"video {boundary.x.max() - 1000}".encode()
        path.write_bytes(content)
        return Clip(path.name, len(content), hashlib.sha256(content).hexdigest(), {"decode_s": 0.25})

    def _obey(self, item: Item, phase: str) -> None:
        number = len(list(self.folder.glob(f"{phase}.{item.item_key}.*"))) + 1
        (self.folder / f"{phase}.{item.item_key}.{os.getpid()}.{number}").touch()
        for word in item.prompt.split():
            what, _, rest = word.partition("-")
            when, _, times = rest.partition("-")
            if when == phase and number <= int(times):
                self._suffer(what, item)

    def _suffer(self, what: str, item: Item) -> None:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "slow":
            time.sleep(1.0)
        elif what == "hang":
            time.sleep(3600)
        elif what == "hold":
            while not any((self.folder / f"release.{name}").exists() for name in (item.item_key, "all")):
                time.sleep(0.05)
        elif what == "fail":
            raise ArithmeticError("asked to fail")
        elif what == "murder":  # an actor that is ready, idle and has nothing to do with this item
            while not (self.folder / "joined.decode-0").exists():
                time.sleep(0.05)
            (victim,) = self.folder.glob("born.vae.*")
            os.kill(int(victim.suffix[1:]), signal.SIGKILL)
            victim.unlink()


def calls(folder: Path, phase: str, item_key: str = "*") -> list[tuple[str, int]]:
    """(item, process) of every call of a phase."""
    parts = [path.name.split(".") for path in sorted(folder.glob(f"{phase}.{item_key}.*"))]
    return [(key, int(pid)) for _, key, pid, _ in parts]


def born(folder: Path) -> list[int]:
    """Processes of all workers that were ever made."""
    return [int(path.suffix[1:]) for path in folder.glob("born.*")]
